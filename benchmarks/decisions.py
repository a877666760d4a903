# SPDX-License-Identifier: Apache-2.0
"""How much of its tables a network fills, and how many rounds its merges take.

    python benchmarks/decisions.py WEIGHTS.pt --images synthetic:heldout --images camvid:camvid:val --count 60

All shapes are fixed, so a network considers so many centers, keeps so many things and merges in so many rounds
(`Decisions` in panoptic_depth_model/config.py); what is beyond is lost without a word, and what is never used costs
time. Here the tables hold whatever the images have. SOURCE is a folder, a recording, or KIND:PATH as for train.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from candidates import network_of
from rich.console import Console
from rich.progress import track
from rich.table import Table

from panoptic_depth_model.config import MAX_TOPK
from panoptic_depth_model.kernels import center_peaks
from panoptic_depth_model.panoptic_depth import CENTER_WINDOWS, EMBEDDING_STRIDE, PanopticDepth, Segments
from panoptic_depth_ros.arguments import count, image_size
from panoptic_depth_ros.interrupt import INTERRUPTED
from panoptic_depth_training.datasets.labeled import DataError
from panoptic_depth_training.export.pictures import Pictures, batches, open_pictures
from panoptic_depth_training.inference import prepared, with_decisions


@dataclass(frozen=True)
class Usage:
    """What one image asks of the tables."""

    centers_per_level: int  # peaks above the threshold, on the level that has most of them
    centers: int  # on all levels
    things: int  # that are different ones, and sure enough
    last_thing: int  # row of the last one that stays when masks are merged: those behind it change nothing
    rounds: int  # after which no further round changes what stays


def usage(network: PanopticDepth, image: torch.Tensor) -> Usage:
    """Of one RGB image [1, h, w, 3] uint8. The network's table sizes do not matter."""
    maps = network(network.normalized(image))
    decisions = network.config.decisions
    peaks = [
        int((center_peaks(level.centers, window) > decisions.min_center_score).sum())
        for level, window in zip(maps.levels, CENTER_WINDOWS, strict=True)
    ]
    size = min(max(sum(peaks), 1), MAX_TOPK)
    roomy = with_decisions(network, replace(decisions, centers_per_level=size, max_centers=size, max_things=size))
    segments = roomy.segments(maps.levels)
    things = int((segments.things.score > 0).sum())
    return Usage(max(peaks), sum(peaks), things, *merged(roomy, segments, maps.mask_embedding))


def merged(network: PanopticDepth, segments: Segments, embedding: torch.Tensor) -> tuple[int, int]:
    """The row of the last thing that stays, and how many rounds settle that.

    A round that changes nothing is followed by others like it.
    """
    height, width = (EMBEDDING_STRIDE * length for length in embedding.shape[2:])

    def scores(count: int) -> torch.Tensor:
        merging = with_decisions(network, replace(network.config.decisions, merge_rounds=count))
        return merging.choose(segments, embedding, (height, width), EMBEDDING_STRIDE).score

    answers = enumerate(itertools.pairwise(map(scores, itertools.count())))
    rounds, score = next((n, one) for n, (one, other) in answers if torch.equal(one, other))
    stay = score[0, : segments.things.score.shape[1]].nonzero()
    return int(stay.max()) + 1 if len(stay) else 0, rounds


def usages(network: PanopticDepth, pictures: Pictures, size: tuple[int, int]) -> Iterator[Usage]:
    with torch.inference_mode():
        for batch in batches(pictures, *size, 1):
            yield usage(network, torch.from_numpy(batch.images))


def table_of(network: PanopticDepth, found: dict[str, list[Usage]]) -> Table:
    decisions = network.config.decisions
    things = decisions.max_things
    limits = (decisions.centers_per_level, decisions.max_centers, things, things, decisions.merge_rounds)
    table = Table("of an image", "limit", title="median, 99 % and most; images that want more")
    for source, rows in found.items():
        table.add_column(f"{source} ({len(rows)})", justify="right", overflow="fold")
    for place, (field, limit) in enumerate(zip(fields(Usage), limits, strict=True)):
        columns = (np.array([astuple(row)[place] for row in rows]) for rows in found.values())
        cells = (
            f"{np.median(values):.0f}, {np.percentile(values, 99):.0f}, {values.max()}; {(values > limit).sum()}"
            for values in columns
        )
        table.add_row(field.name.replace("_", " "), str(limit), *cells)
    return table


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="weights (.pt) that train wrote, or preset:NAME for random ones")
    parser.add_argument("--images", required=True, action="append", metavar="SOURCE", help="may be given again")
    parser.add_argument("--count", type=count, help="images of each source, spread over it (default: all)")
    parser.add_argument("--size", type=image_size, metavar="HEIGHTxWIDTH", help="default: that of the training")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    console = Console()
    try:
        network, facts = network_of(options.weights, options.size)
        network = prepared(network, half=False)
        size = options.size or (facts.height, facts.width)
        sources = {source: open_pictures(source, options.count) for source in options.images}
        found = {}
        for source, pictures in sources.items():
            each = usages(network, pictures, size)
            found[source] = list(track(each, source, total=len(pictures), console=console, transient=True))
    except (DataError, ValueError, OSError) as error:
        print(f"decisions: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    console.print(f"{Path(options.weights).name} at {size[0]}x{size[1]}", highlight=False)
    console.print(table_of(network, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
