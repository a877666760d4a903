# SPDX-License-Identifier: Apache-2.0
"""Render synthetic streets with exact truth: training frames, sequences, or a drive as a rosbag2.

python -m panoptic_depth_training.render frames OUT_DIR --count 2500
python -m panoptic_depth_training.render sequences OUT_DIR --split val --count 50
python -m panoptic_depth_training.render drive OUT_DIR --seed 7

An interrupted command goes on where it stopped when it is given again. A drive starts again, once what is left of
it, OUT_DIR.unfinished, was removed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Protocol

from panoptic_depth_ros.arguments import count, natural
from panoptic_depth_ros.interrupt import INTERRUPTED, interrupt_once
from panoptic_depth_training.datasets import street_folder, street_sequences
from panoptic_depth_training.datasets.street_recording import SAMPLE_SEED, DriveOptions, write_drive
from panoptic_depth_training.workers import deaf_to_interrupts, workers

GOES_ON = "the same command goes on from here"
AGAIN = {  # how to go on after a command was stopped
    "frames": GOES_ON,
    "sequences": GOES_ON,
    "drive": "remove {folder}.unfinished and give the same command again",
}


class Work(Protocol):
    """Frames that one process writes one after the other."""

    @property
    def missing(self) -> list[int]:
        """Frames that are not there yet."""
        ...

    def write(self) -> Iterator[int]:
        """Write what is missing; yields the number of frames after each step."""
        ...


def render_all(planned: Sequence[Work], jobs: int, place: Path) -> None:
    """Write the frames that are missing, in so many processes; shows progress."""
    left = [work for work in planned if work.missing]
    progress = Progress(sum(len(work.missing) for work in left))
    if jobs == 1:
        for work in left:
            for count in work.write():
                progress.add(count)
    else:
        _share_out(left, jobs, progress.add)
    print(f"\ncomplete: {place}", file=sys.stderr)


def render_drive(folder: Path, options: DriveOptions) -> None:
    """A recording of one drive; the folder appears when it is complete."""
    progress = Progress(options.num_frames)
    for _ in write_drive(folder, options):
        progress.add(1)
    print(f"\ncomplete: {folder}", file=sys.stderr)


class Progress:
    """Frames done, their rate and the time that is left, on one line."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._started = total, 0, time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        rate = self._done / (time.monotonic() - self._started)
        left = time.strftime("%H:%M:%S", time.gmtime((self._total - self._done) / rate))
        line = f"\r{self._done}/{self._total} frames, {rate:.2f} frames/s, {left} left "
        print(line, end="", file=sys.stderr, flush=True)


def _share_out(todo: Sequence[Work], jobs: int, report: Callable[[int], None]) -> None:
    """Let processes do the work. They end at once when this one is interrupted or one of them fails."""
    waiting, running = iter(todo), set[Future[int]]()
    with workers(jobs) as pool:
        while True:
            with deaf_to_interrupts():
                for work in waiting:
                    running.add(pool.submit(_write, work))
                    if len(running) > jobs:
                        break
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                report(future.result())


def _write(work: Work) -> int:
    return sum(work.write())


def main() -> None:
    options = _parser().parse_args()
    again = AGAIN[options.command].format(folder=options.folder)
    interrupt_once()
    try:
        _run(options)
    except KeyboardInterrupt:
        print(f"\nstopped; {again}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except ValueError as error:
        sys.exit(f"render: {error}")
    except OSError as error:
        place, cause = error.filename or options.folder, error.strerror or error
        sys.exit(f"render: {place}: {cause}; expected a folder that can be written and has room. When it is: {again}")


def _run(options: argparse.Namespace) -> None:
    folder, size = options.folder, (options.height, options.width)
    match options.command:
        case "frames":
            render_all(street_folder.plan(folder, options.count, options.seed, *size), options.jobs, folder)
        case "sequences":
            planned = street_sequences.plan(
                folder, options.split, options.count, options.seed, *size, has_lidar=options.lidar
            )
            render_all(planned, options.jobs, folder)
        case "drive":
            render_drive(folder, DriveOptions(options.seed, options.seconds, options.rate, *size))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m panoptic_depth_training.render",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    frames = commands.add_parser("frames", help="images with panoptic ids and depth, six of every street")
    frames.add_argument("folder", type=Path, metavar="OUT_DIR")
    frames.add_argument("--count", type=count, default=1000, help="how many frames (default %(default)s)")
    first = "number of the first frame; every multiple of 6 starts another street"
    frames.add_argument("--seed", type=natural, default=0, help=first)
    _add_size(frames, 256, 512)
    _add_jobs(frames)
    sequences = commands.add_parser("sequences", help="six frames of every street in the layout of Cityscapes-DVPS")
    sequences.add_argument("folder", type=Path, metavar="OUT_DIR")
    sequences.add_argument("--split", choices=("train", "val"), default="train", help="(default %(default)s)")
    sequences.add_argument("--count", type=count, default=50, help="how many sequences (default %(default)s)")
    sequences.add_argument("--seed", type=natural, default=0, help="of the first one; the next ones count up")
    sequences.add_argument("--lidar", action="store_true", help="also a lidar scan and poses for every frame")
    _add_size(sequences, 256, 512)
    _add_jobs(sequences)
    drive = commands.add_parser("drive", help="a recording: camera, lidar, transforms and truth")
    drive.add_argument("folder", type=Path, metavar="OUT_DIR", help="the bag's folder; must not exist yet")
    sample = "of the street (default: that of samples/street_drive)"
    drive.add_argument("--seed", type=natural, default=SAMPLE_SEED, help=sample)
    drive.add_argument("--seconds", type=float, default=5.0, help="how long (default %(default)s)")
    drive.add_argument("--rate", type=float, default=10.0, help="frames a second (default %(default)s)")
    _add_size(drive, 512, 1024)
    return parser


def _add_size(parser: argparse.ArgumentParser, height: int, width: int) -> None:
    parser.add_argument("--height", type=count, default=height, help="px (default %(default)s)")
    parser.add_argument("--width", type=count, default=width, help="px (default %(default)s)")


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=count, default=os.cpu_count(), help="processes (default: one for each core)")


if __name__ == "__main__":
    main()
