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
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from panoptic_depth_model.weights import load_weights, save_weights
from panoptic_depth_ros.engines import DEVICES
from panoptic_depth_training.datasets.labeled import LabeledImages
from panoptic_depth_training.datasets.sources import KINDS, SYNTAX, parse_source
from panoptic_depth_training.evaluate.files import write_report
from panoptic_depth_training.evaluate.run import Evaluation, Stopped, Watch, opened, score_all
from panoptic_depth_training.evaluate.scoring import Rules, Scores, ScoringResult, ScoringSettings, readable
from panoptic_depth_training.evaluate.tables import flat, grids, rich_table
from panoptic_depth_training.facts import ModelFacts
from panoptic_depth_training.metrics.depth import EIGEN_CROP, GARG_CROP, DepthSettings
from panoptic_depth_training.torch_engine import WEIGHTS_SUFFIX

INTERRUPTED = 130  # the exit status that shells give a program that Ctrl-C ended
CROPS = {"none": None, "garg": GARG_CROP, "eigen": EIGEN_CROP}
# The windows [frames] of each data set's own DVPQ; in other data sets instances may have new numbers in every image.
VIDEO_WINDOWS = {"cityscapes_dvps": (1, 2, 3, 4), "semkitti_dvps": (1, 5, 10, 20)}
OTHER_WINDOWS = (1, 2, 3, 4)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m panoptic_depth_training.evaluate",
        description=__doc__,
        epilog="data:\n" + "\n".join(f"  {kind}:{place}" for kind, place in KINDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="weights (.pt) that train wrote, or an exported model (.onnx)")
    parser.add_argument("--data", required=True, metavar="DATA", help=SYNTAX)
    parser.add_argument("--count", type=int, help="score the first COUNT images (default: all)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where JSON, page, pictures go (default: nowhere)")
    parser.add_argument("--record", action="store_true", help="write the scores into the weights' file")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="what runs the model (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with the model (default %(default)s)")
    parser.add_argument(
        "--size", type=_size, metavar="HEIGHTxWIDTH", help="input of weights, px (default: the training's)"
    )
    parser.add_argument("--depth-cap", type=float, default=80.0, metavar="M", help="depth below it counts (default 80)")
    parser.add_argument("--crop", choices=CROPS, default="none", help="where depth counts (default %(default)s)")
    parser.add_argument(
        "--averaging", choices=("image", "pixel"), default="image",
        help="depth errors per image, then their mean; or over all pixels at once (default %(default)s)",
    )
    parser.add_argument(
        "--absent", choices=("left_out", "zero", "nan"), default="left_out",
        help="categories without a match in the mean of DPQ: left out if they do not occur, 0, or 0/0 as in the "
        "official script (default %(default)s)",
    )
    parser.add_argument(
        "--video", action=argparse.BooleanOptionalAction,
        help=f"DVPQ: instances keep their numbers over a sequence (default: for {', '.join(VIDEO_WINDOWS)})",
    )
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    options.command = shlex.join(["panoptic_depth_training.evaluate", *arguments])
    for name in ("count", "jobs"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} {value}: expected at least 1")
    if options.record and options.model.suffix != WEIGHTS_SUFFIX:
        parser.error(f"--record: {options.model} holds the scores that it was exported with; score its weights (.pt)")
    return options


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width)


def evaluation_of(options: argparse.Namespace) -> Evaluation:
    """What the command line asks for. Raises ValueError where it contradicts itself."""
    kind = parse_source(options.data).kind
    windows = VIDEO_WINDOWS.get(kind, OTHER_WINDOWS if options.video else ())
    edges = tuple(edge for edge in DepthSettings().range_edges_m if edge < options.depth_cap)
    depth = DepthSettings(
        max_depth_m=options.depth_cap,
        crop=CROPS[options.crop],
        averaging=options.averaging,
        range_edges_m=(*edges, options.depth_cap),
    )
    windows = () if options.video is False else windows
    return Evaluation(
        model=options.model,
        data=options.data,
        device=options.device,
        size=options.size,
        settings=ScoringSettings(depth, options.absent, windows),
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
    if options.out:
        for path in write_report(options.out, evaluation, result, count, warning):
            print(f"wrote {path}")
    if options.record:
        record(options, result, is_complete=not (warning or result.faults))
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
    """Write the scores into the weights' facts in place of earlier ones, unless images are missing from them."""
    if not is_complete:
        print("evaluate: the scores are not recorded, for images are missing from them", file=sys.stderr)
        return
    network, stored = load_weights(options.model)
    facts = ModelFacts.from_dict(stored)
    # Numbers of an earlier evaluation are of other data; how the network was trained stays.
    texts = {name: value for name, value in facts.scores.items() if isinstance(value, str)}
    scores = texts | {"data": options.data, "evaluation": options.command} | flat(result)
    save_weights(options.model, network, replace(facts, scores=scores).to_dict())
    print(f"recorded in {options.model}")
