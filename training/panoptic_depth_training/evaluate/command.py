# SPDX-License-Identifier: Apache-2.0
"""Score a model on labeled images: trained weights or an exported model, any data set.

    python -m panoptic_depth_training.evaluate WEIGHTS.pt --data cityscapes_dvps:/data/dvps:val --out scores
    python -m panoptic_depth_training.evaluate MODEL.onnx --data recording:/data/drive --device tensorrt

Answers are made as on the vehicle and compared at the truth's own resolution; depth is in meters, through the
camera of the data. OUT gets scores.json and scores.html with the best and worst frames. Ctrl-C prints the scores so
far. The exit status is 1 when an image could not be read, and 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from panoptic_depth_model.weights import load_weights, save_weights
from panoptic_depth_ros.arguments import count, image_size
from panoptic_depth_ros.engines import DEVICES
from panoptic_depth_ros.interrupt import INTERRUPTED
from panoptic_depth_training.datasets.labeled import LabeledImages
from panoptic_depth_training.datasets.sources import KINDS, SYNTAX, Source, parse_source
from panoptic_depth_training.evaluate.files import write_report
from panoptic_depth_training.evaluate.run import Evaluation, Stopped, Watch, opened, score_all
from panoptic_depth_training.evaluate.scoring import Rules, Scores, ScoringResult, ScoringSettings, readable
from panoptic_depth_training.evaluate.tables import flat, grids, is_flat, rich_table
from panoptic_depth_training.facts import ModelFacts
from panoptic_depth_training.metrics.depth import EIGEN_CROP, GARG_CROP, DepthSettings
from panoptic_depth_training.metrics.depth_panoptic import (
    OCCURRING,
    PROTOCOLS,
    VIP_DEEPLAB_CITYSCAPES,
    VIP_DEEPLAB_SEMKITTI,
)
from panoptic_depth_training.output_files import make_writable
from panoptic_depth_training.torch_engine import WEIGHTS_SUFFIX

CROPS = {"none": None, "garg": GARG_CROP, "eigen": EIGEN_CROP}
# The windows [frames] of each data set's own DVPQ; in other data sets instances may have new numbers in every image.
VIDEO_WINDOWS = {
    "cityscapes_dvps": VIP_DEEPLAB_CITYSCAPES.windows,
    "semkitti_dvps": VIP_DEEPLAB_SEMKITTI.windows,
}
OTHER_WINDOWS = VIP_DEEPLAB_CITYSCAPES.windows
RECORDED_TEXTS = ("scored_on", "evaluation", "dpq_protocol")  # beside the numbers of an evaluation


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m panoptic_depth_training.evaluate",
        description=__doc__,
        epilog="data:\n" + "\n".join(f"  {kind}:{place}" for kind, place in KINDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="weights (.pt) that train wrote, or an exported model (.onnx)")
    parser.add_argument("--data", required=True, metavar="DATA", help=SYNTAX)
    parser.add_argument("--count", type=count, help="score the first COUNT images (default: all)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where JSON, page, pictures go (default: nowhere)")
    parser.add_argument(
        "--record", nargs="?", const="", type=_name, metavar="NAME",
        help="write the scores into the weights' file, as its main scores; or as NAME_pq and so on, beside those of "
        "other names",
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="what runs the model (default %(default)s)")
    parser.add_argument("--jobs", type=count, default=1, help="processes, each with the model (default %(default)s)")
    parser.add_argument(
        "--size", type=image_size, metavar="HEIGHTxWIDTH", help="input of weights, px (default: the training's)"
    )
    parser.add_argument("--depth-cap", type=float, default=80.0, metavar="M", help="depth below it counts (default 80)")
    parser.add_argument("--crop", choices=CROPS, default="none", help="where depth counts (default %(default)s)")
    parser.add_argument(
        "--averaging", choices=("image", "pixel"), default="image",
        help="depth errors per image, then their mean; or over all pixels at once (default %(default)s)",
    )
    parser.add_argument(
        "--median-scaling", action="store_true",
        help="scale each predicted depth by median(true) / median(predicted), the usual protocol of self-supervised "
        "depth: the depth errors then say nothing about meters (DPQ is never scaled)",
    )
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default=OCCURRING.name,
        help="of DPQ and DVPQ. occurring: the mean runs over the categories that occur. The others are the published "
        "scripts, with their windows: a category without a match is 0/0 in vip_deeplab_cityscapes, and so is the "
        "mean, and counts 0 in panoptic_depth_cityscapes and vip_deeplab_semkitti (default %(default)s)",
    )
    parser.add_argument(
        "--video", action=argparse.BooleanOptionalAction,
        help=f"DVPQ: instances keep their numbers over a sequence (default: for {', '.join(VIDEO_WINDOWS)})",
    )
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    options.command = shlex.join(["panoptic_depth_training.evaluate", *arguments])
    if options.record is not None and options.model.suffix != WEIGHTS_SUFFIX:
        parser.error(f"--record: {options.model} holds the scores that it was exported with; score its weights (.pt)")
    return options


def _name(text: str) -> str:
    """Of scores, "" of the main ones."""
    if not re.fullmatch(r"([a-z][a-z0-9_]*)?", text) or "iou" in text.split("_"):  # iou_ begins names of scores
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name for scores; expected lower-case letters, digits and underscores, like camvid_val, "
            "and no part iou. Without NAME, write --record at the end"
        )
    return text


def evaluation_of(options: argparse.Namespace) -> Evaluation:
    """What the command line asks for. Raises ValueError where it contradicts itself."""
    kind = parse_source(options.data).kind
    is_video = kind in VIDEO_WINDOWS if options.video is None else options.video
    protocol = PROTOCOLS[options.protocol]
    windows = VIDEO_WINDOWS.get(kind, OTHER_WINDOWS) if protocol is OCCURRING else protocol.windows
    edges = tuple(edge for edge in DepthSettings().range_edges_m if edge < options.depth_cap)
    depth = DepthSettings(
        max_depth_m=options.depth_cap,
        crop=CROPS[options.crop],
        averaging=options.averaging,
        median_scaling=options.median_scaling,
        range_edges_m=(*edges, options.depth_cap),
    )
    return Evaluation(
        model=options.model,
        data=options.data,
        device=options.device,
        size=options.size,
        settings=ScoringSettings(depth, protocol, windows if is_video else ()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Score what the command line names; the exit status."""
    options = parse_arguments(arguments)
    try:
        return run(options)
    except (ValueError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("evaluate: stopped before the first score", file=sys.stderr)
        return INTERRUPTED


def run(options: argparse.Namespace) -> int:
    """Score, print, write; the exit status."""
    evaluation = evaluation_of(options)
    if options.out:
        make_writable(options.out)
    pipeline, images, rules = opened(evaluation)
    try:
        print(f"{options.model} with {pipeline.engine.description}, on {options.data}")
        return run_opened(options, evaluation, images, rules)
    finally:
        opened.cache_clear()
        pipeline.engine.close()


def run_opened(options: argparse.Namespace, evaluation: Evaluation, images: LabeledImages, rules: Rules) -> int:
    """`run`, with model and data at hand."""
    if options.video and not rules.windows:
        raise ValueError("--video needs a model with depth and data with exact segments; leave it out")
    scores = Scores(rules)
    count = min(options.count or len(images), len(images))
    warning = ""
    with Watch(count) as watch:
        try:
            score_all(evaluation, count, options.jobs, scores, watch)
        except Stopped:
            warning = f"INCOMPLETE: stopped after {watch.scored} of {count} images"
    if warning and not scores.frames:
        raise KeyboardInterrupt
    result = readable(scores.result(), options.data)
    tell(result, warning, images)
    if options.record is not None:
        record(options, result, is_complete=not (warning or result.faults))
    if options.out:
        for path in write_report(options.out, evaluation, result, count, warning):
            print(f"wrote {path}")
    if warning:
        return INTERRUPTED
    return 1 if result.faults else 0


def tell(result: ScoringResult, warning: str, images: LabeledImages) -> None:
    """Print all tables, and what is missing from them."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    for grid in grids(result):
        console.print(rich_table(grid))
    if result.depth and not result.depth_panoptic and images.supervision.has_segments:
        print("no DPQ: the labels leave open which category a pixel is")
    for line in result.left_out_sequences:
        print(f"left out of DVPQ: {line}", file=sys.stderr)
    for fault in result.faults:
        print(f"left out {fault}", file=sys.stderr)
    if result.faults:
        print(f"evaluate: {len(result.faults)} images could not be scored", file=sys.stderr)
    if warning:
        print(warning)


def record(options: argparse.Namespace, result: ScoringResult, *, is_complete: bool) -> None:
    """Write the scores into the weights' facts, unless images are missing from them."""
    if not is_complete:
        print("evaluate: the scores are not recorded, for images are missing from them", file=sys.stderr)
        return
    network, stored = load_weights(options.model)
    facts = ModelFacts.from_dict(stored)
    found = flat(result) | {"scored_on": short_name(parse_source(options.data)), "evaluation": options.command}
    if result.depth_panoptic:
        found["dpq_protocol"] = result.depth_panoptic.settings.name
    scores = with_scores(facts.scores, options.record, found)
    save_weights(options.model, network, replace(facts, scores=scores).to_dict())
    print(f"recorded in {options.model}")


def with_scores(
    known: Mapping[str, float | str], name: str, found: Mapping[str, float | str]
) -> dict[str, float | str]:
    """What is known of a network, with all scores of a name ("": the main ones) replaced by those found."""
    start = f"{name}_" if name else ""

    def is_earlier(key: str) -> bool:
        score = key.removeprefix(start)
        return key.startswith(start) and (is_flat(score) or score in RECORDED_TEXTS)

    kept = {key: value for key, value in known.items() if not is_earlier(key)}
    return kept | {start + key: value for key, value in found.items()}


def short_name(source: Source) -> str:
    """A source without the folders before its last one, which mean nothing on other machines."""
    text = f"{source.kind}:{Path(os.path.abspath(source.place)).name}"
    if source.first is source.last is None:
        return text
    first, last = ("" if bound is None else bound for bound in (source.first, source.last))
    return f"{text}@{first}:{last}"
