# SPDX-License-Identifier: Apache-2.0
"""How an exported model's answers compare with the network's own, picture by picture, and what the difference costs.

Rounding may swap the rows of two segments with almost equal scores, so segments are matched by category and overlap
before their pixels, depths and scores are compared. h, w: the network's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np

from panoptic_depth_ros.engines import parity
from panoptic_depth_ros.manifest import Manifest
from panoptic_depth_ros.maps import OutputMaps
from panoptic_depth_ros.prediction import predict
from panoptic_depth_ros.preprocess import Placement
from panoptic_depth_training.export.pictures import Picture, Pictures, batches
from panoptic_depth_training.metrics.panoptic import PanopticQuality

Outputs = dict[str, np.ndarray]
Infer = Callable[[np.ndarray], Outputs]  # the contract's outputs for images [B, h, w, 3] uint8


@dataclass(frozen=True)
class Agreement:
    """Two answers about one picture; errors of depth are relative, those of scores are differences."""

    picture: str
    segments: int  # that the network found
    equal_pixels: float  # share of pixels that both give to the same segment
    equal_ids: float  # share of pixels with the same id, which is the same row of the table
    depth_median: float  # where the segments are the same
    depth_p99: float
    depth_max: float  # where the ids are the same
    score_difference: float  # median over matched segments


# What a model may differ in, over all pictures. In float32 only the order of sums changes. The others are about ten
# times what the compact model shows on a rendered drive: float16 keeps 99.8 % of the pixels there, with a depth error
# of 0.03 % (0.2 % at the 99th percentile) and scores within 0.0001; int8 keeps 99.5 %, with 0.2 % (2 %) and 0.002. Of
# pixels there must be room for a segment that is barely accepted, or barely not, and changes sides by any rounding.
# What is rounded and should not be is far outside: masks lose their edges, and depth its scale.
LIMITS = {
    "float32": Agreement("", 0, 0.999, 0.999, 1e-4, 1e-3, 1e-3, 1e-3),
    "fp16": Agreement("", 0, 0.97, 0.0, 3e-3, 2e-2, np.inf, 1e-3),
    "int8": Agreement("", 0, 0.93, 0.0, 2e-2, 0.2, np.inf, 2e-2),
    "int8-fp16": Agreement("", 0, 0.93, 0.0, 2e-2, 0.2, np.inf, 2e-2),
}
NO_SEGMENTS = (
    "The network finds no segment on these pictures, so that they cannot show whether masks survived the export; "
    "train it longer, or give other pictures (--images)."
)
_SHARES = ("equal_pixels", "equal_ids")


@dataclass(frozen=True)
class Quality:
    """Panoptic quality in points, over all pictures."""

    what: str
    by_network: float  # with the float32 network's answers, at its own label stride, as the truth
    by_labels: float | None  # None where the pictures have no labels of these categories


@dataclass(frozen=True)
class Comparison:
    """Everything that an export says about its file."""

    agreements: tuple[Agreement, ...]
    qualities: tuple[Quality, ...]


def compare(
    pictures: Iterable[Picture], answers: Mapping[str, Infer], manifest: Manifest, batch: int, has_labels: bool
) -> Comparison:
    """Ask all about the same pictures.

    Args:
        answers: by name. The first one's are what panoptic quality takes for the truth; the agreement is that of the
            last two, the network and its exported file.
        batch: pictures that the exported file takes at once.
        has_labels: whether the pictures' labels are of the manifest's categories.
    """
    agreements: list[Agreement] = []
    by_network = {name: PanopticQuality(manifest.taxonomy) for name in answers}
    by_labels = {name: PanopticQuality(manifest.taxonomy, instance_zero_is_crowd=True) for name in answers}
    for group in batches(pictures, manifest.height, manifest.width, batch):
        outputs = {name: infer(group.images) for name, infer in answers.items()}
        for row, (picture, placement) in enumerate(zip(group.pictures, group.placements, strict=True)):
            rows = {name: {k: v[row] for k, v in values.items()} for name, values in outputs.items()}
            *_, network, exported = rows.values()
            agreements.append(agreement(picture.name, network, exported))
            ids = {name: panoptic_ids(values, manifest, placement, picture.rgb) for name, values in rows.items()}
            for name in answers:
                by_network[name].add(ids[name], next(iter(ids.values())))
                if has_labels and picture.panoptic_ids is not None:
                    by_labels[name].add(ids[name], picture.panoptic_ids)
    qualities = (
        Quality(name, _points(by_network[name]), _points(by_labels[name]) if has_labels else None) for name in answers
    )
    return Comparison(tuple(agreements), tuple(qualities))


def agreement(picture: str, network: Outputs, exported: Outputs) -> Agreement:
    """Two answers about one picture, outputs without a batch axis."""
    one, other = ({name: values[None] for name, values in outputs.items()} for outputs in (network, exported))
    found = parity.compare([one], [other])
    same = network["segment_ids"] == exported["segment_ids"]
    difference = np.abs(exported["depth"] - network["depth"])[same] / np.maximum(network["depth"][same], 1e-6)
    return Agreement(
        picture=picture,
        segments=found.segments,
        equal_pixels=found.equal_pixels,
        equal_ids=float(same.mean()),
        depth_median=found.depth_median,
        depth_p99=found.depth_p99,
        depth_max=float(difference.max(initial=0.0)),
        score_difference=found.score_difference,
    )


def overall(agreements: Sequence[Agreement]) -> Agreement:
    """Over all pictures: the sum of segments, the worst of `depth_max`, and the mean of everything else."""
    figures = ("equal_pixels", "equal_ids", "depth_median", "depth_p99", "score_difference")
    means = {name: float(np.mean([getattr(each, name) for each in agreements])) for name in figures}
    worst = max(each.depth_max for each in agreements)
    return Agreement("all", sum(each.segments for each in agreements), depth_max=worst, **means)


def faults(comparison: Comparison, precision: str) -> list[str]:
    """What is past the tolerance of a precision, a phrase each."""
    found, limits = overall(comparison.agreements), LIMITS[precision]
    phrases = []
    for name, value in vars(found).items():
        if name in ("picture", "segments"):
            continue
        limit = getattr(limits, name)
        if not (value >= limit if name in _SHARES else value <= limit):  # NaN is none of both
            phrases.append(f"{name.replace('_', ' ')} {value:.4g} (limit {limit:g})")
    return phrases


def table(comparison: Comparison) -> str:
    """The comparison for a terminal."""
    rows = [*comparison.agreements, overall(comparison.agreements)]
    width = max(len("picture"), *(len(row.picture) for row in rows))
    lines = [f"{'picture':{width}}  segments  same segment  same id   depth error: median  99 %     score error"]
    lines += [
        f"{row.picture:{width}}  {row.segments:8d}  {row.equal_pixels:12.3%}  {row.equal_ids:7.2%}"
        f"  {row.depth_median:20.1e}  {row.depth_p99:.1e}  {row.score_difference:11.1e}"
        for row in rows
    ]
    width = max(len("panoptic quality by"), *(len(quality.what) for quality in comparison.qualities))
    lines += ["", f"{'panoptic quality by':{width}}  the network's answers  the data's labels"]
    first = comparison.qualities[0].by_labels
    for quality in comparison.qualities:
        line = f"{quality.what:{width}}  {'-' if isnan(quality.by_network) else f'{quality.by_network:.1f}':>21}"
        if quality.by_labels is not None and first is not None:
            line += f"  {quality.by_labels:9.2f} ({quality.by_labels - first:+.2f})"
        lines.append(line)
    if not any(row.segments for row in comparison.agreements):
        lines += ["", NO_SEGMENTS]
    return "\n".join(lines)


def panoptic_ids(outputs: Outputs, manifest: Manifest, placement: Placement, rgb: np.ndarray) -> np.ndarray:
    """Panoptic ids [H, W] uint16 at the picture's own size, as the node publishes them."""
    height, width = rgb.shape[:2]
    maps = OutputMaps(predict(outputs, manifest, placement, None), rgb, height, width)
    return maps.panoptic_ids(np.empty((height, width), np.uint16))


def labels_fit(pictures: Pictures, manifest: Manifest) -> bool:
    """Whether the pictures come with labels of the model's categories."""
    if pictures.taxonomy is None:
        return False
    ours, theirs = ([(c.name, c.is_thing) for c in t] for t in (manifest.taxonomy, pictures.taxonomy))
    return ours == theirs


def _points(quality: PanopticQuality) -> float:
    return 100 * quality.result().all.pq
