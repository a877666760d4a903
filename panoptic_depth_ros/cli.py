# SPDX-License-Identifier: Apache-2.0
"""panoptic-depth: the command line for machines with or without ROS 2."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from panoptic_depth_ros.arguments import not_negative, positive
from panoptic_depth_ros.interrupt import INTERRUPTED, interrupt_once
from panoptic_depth_ros.manifest import ModelError
from panoptic_depth_ros.recording import RecordingError
from panoptic_depth_ros.ros_types import MissingMessageError
from panoptic_depth_ros.share import share_path


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns the process's exit code."""
    options = _parser().parse_args(arguments)
    interrupt_once()
    try:
        options.run(options)
    except (RecordingError, ModelError, MissingMessageError, OSError, ValueError) as error:
        print(f"panoptic-depth: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"panoptic-depth: {error}; {options.command} needs ROS 2: source one, or pip install 'panoptic-depth[ros]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="panoptic-depth", description="Panoptic segmentation and metric depth.")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="play a recording through the node, record it, draw pictures")
    demo.add_argument("bag", type=Path, nargs="?", help="a rosbag2; without it the drive that comes along")
    demo.add_argument(
        "--out", type=Path, default=Path("demo_output"), help="folder for the results (default: %(default)s)"
    )
    _add_model(demo)
    _add_image(demo)
    demo.add_argument("--rate", type=positive, default=1.0, help="pace; 1 is the recorded one")
    demo.set_defaults(run=_demo)

    run = commands.add_parser("run", help="run a recording through a model without topics, every frame of it")
    run.add_argument("bag", type=Path)
    run.add_argument("out", type=Path, help="the new recording's folder")
    _add_model(run)
    _add_image(run)
    run.set_defaults(run=_run)

    play = commands.add_parser("play", help="publish a recording's messages (needs ROS 2)")
    play.add_argument("bag", type=Path)
    play.add_argument("--rate", type=positive, default=1.0, help="pace; 1 is the recorded one")
    play.add_argument("--topics", nargs="+", help="only these topics")
    play.add_argument("--wait-for", default="", metavar="TOPIC", help="start when this topic has a subscriber")
    play.add_argument("--wait", type=positive, default=30.0, metavar="SECONDS", help="and give up after this long")
    play.add_argument(
        "--delay", type=not_negative, default=0.0, metavar="SECONDS", help="and wait this long before playing"
    )
    play.set_defaults(run=_play)

    record = commands.add_parser("record", help="record topics until interrupted (needs ROS 2)")
    record.add_argument("out", type=Path, help="the new recording's folder")
    record.add_argument("--topics", default=".*", metavar="REGEX", help="whose whole name matches (default: all)")
    record.set_defaults(run=_record)
    _add_model_commands(commands)
    return parser


def _add_model_commands(commands: Any) -> None:
    build = commands.add_parser("build-engine", help="build and prove a model's TensorRT engine before it is needed")
    build.add_argument("model", type=Path, nargs="?", help="an exported .onnx; without it the one that comes along")
    build.add_argument(
        "--target",
        nargs="+",
        default=[],
        metavar="GPU",
        help="build for these GPUs, such as sm86, without having one (TensorRT-RTX); not for use on this machine",
    )
    build.add_argument(
        "--workspace-gib", type=not_negative, default=0.0, metavar="GIB", help="memory that a layer may use; 0: free"
    )
    build.add_argument("--out", type=Path, help="with --target: write the engine to this file")
    build.set_defaults(run=_build_engine)

    look = commands.add_parser("inspect", help="say what a model or a built engine is")
    look.add_argument("file", type=Path, help="an exported .onnx, or an .engine that build-engine wrote")
    look.set_defaults(run=_inspect)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="an exported .onnx; without it the compact model that comes along")


def _add_image(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", default="", metavar="TOPIC", help="the image topic, where a recording has several")


def _model(options: argparse.Namespace) -> Path:
    return options.model or share_path("model", "compact.onnx")


def _demo(options: argparse.Namespace) -> None:
    from panoptic_depth_ros.demo import demo

    bag = options.bag or share_path("samples", "street_drive")
    demo(bag, options.out, _model(options), options.rate, options.image, Console())


def _run(options: argparse.Namespace) -> None:
    from panoptic_depth_ros.demo import run_offline
    from panoptic_depth_ros.report import read_report, report_table

    console = Console()
    run_offline(options.bag, options.out, _model(options), options.image, console)
    report = read_report(options.bag, options.out, options.image)
    console.print(report_table(report, title=str(options.out)))
    if report.failed:
        raise RecordingError(
            f"recording {options.out}: complete but for {report.failed} of {report.frames_in} frames; "
            "the lines above say why they were left out"
        )


def _play(options: argparse.Namespace) -> None:
    from panoptic_depth_ros.player import Start, play

    start = Start(options.wait_for, options.wait, options.delay)
    counts = play(options.bag, options.rate, options.topics, start)
    _print_counts("published", counts)


def _record(options: argparse.Namespace) -> None:
    from panoptic_depth_ros.player import record

    _print_counts("recorded", record(options.out, options.topics))


def _build_engine(options: argparse.Namespace) -> None:
    from panoptic_depth_ros.build_engine import build_engine, build_for_targets

    console = Console()
    if options.target:
        targets = tuple(target.lower() for target in options.target)
        build_for_targets(_model(options), targets, options.workspace_gib, options.out, console)
    elif options.out:
        raise ValueError("--out goes with --target; an engine for this machine is kept in the cache, where it is found")
    else:
        build_engine(_model(options), options.workspace_gib, console)


def _inspect(options: argparse.Namespace) -> None:
    from panoptic_depth_ros.inspect import inspect

    console = Console()
    for table in inspect(options.file):
        console.print(table)


def _print_counts(verb: str, counts: dict[str, int]) -> None:
    print(f"{verb} {sum(counts.values())} messages")
    for topic, count in sorted(counts.items()):
        print(f"  {count:6d}  {topic}")


if __name__ == "__main__":
    sys.exit(main())
