# SPDX-License-Identifier: Apache-2.0
"""Render synthetic streets: training frames with exact truth, or a drive as a rosbag2.

python -m panoptic_depth_training.render frames OUT_DIR --count 2500
python -m panoptic_depth_training.render drive OUT_DIR --seed 7
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from panoptic_depth_training.datasets.frames import DEPTH_STEPS
from panoptic_depth_training.datasets.street_recording import SAMPLE_SEED, DriveOptions, write_drive
from panoptic_depth_training.datasets.synthetic import Frame, random_camera, random_frame

JPEG_QUALITY = 95
CAMERAS_FILE = "cameras.json"


@dataclass(frozen=True)
class FrameJob:
    """One frame to render into a folder."""

    folder: Path
    index: int
    seed: int
    height: int
    width: int

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """Image, panoptic ids, depth."""
        stem = f"{self.index:06d}"
        return (
            self.folder / f"{stem}_image.jpg",
            self.folder / f"{stem}_panoptic.png",
            self.folder / f"{stem}_depth.png",
        )

    @property
    def is_done(self) -> bool:
        return all(path.exists() for path in self.paths)


def render_frames(folder: Path, count: int, seed: int, height: int, width: int, jobs: int) -> None:
    """Frames 0 .. count-1 from the seeds seed .. seed+count-1; frames that are there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    planned = [FrameJob(folder, index, seed + index, height, width) for index in range(count)]
    _write_cameras(folder / CAMERAS_FILE, planned)
    todo = [job for job in planned if not job.is_done]
    started = time.monotonic()
    for done, _ in enumerate(_render_all(todo, jobs), start=1):
        _report(count - len(todo) + done, count, done / (time.monotonic() - started))
    print(f"\n{count} frames in {folder}", file=sys.stderr)


def render_drive(folder: Path, options: DriveOptions) -> None:
    """A recording of one drive; the folder appears when it is complete."""
    started = time.monotonic()
    for done in write_drive(folder, options):
        _report(done, options.num_frames, done / (time.monotonic() - started))
    print(f"\n{options.num_frames} frames in {folder}", file=sys.stderr)


def _render_all(todo: list[FrameJob], jobs: int) -> Iterator[None]:
    """Render in order; yields after each frame."""
    if jobs == 1:
        yield from map(_render, todo)
        return
    # A forked process would inherit the ray caster's threads in an unknown state.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_render, todo)


def _render(job: FrameJob) -> None:
    frame = random_frame(job.seed, job.height, job.width)
    for path, data in zip(job.paths, encode(frame), strict=True):
        _write(path, data)


def encode(frame: Frame) -> tuple[bytes, bytes, bytes]:
    """Image as JPEG; panoptic ids as 16-bit PNG; depth as 16-bit PNG, 1/256 m, 0 where there is none or it is
    farther than 16 bits reach."""
    steps = np.round(frame.depth * DEPTH_STEPS)
    depth = np.where(steps > np.iinfo(np.uint16).max, 0, steps).astype(np.uint16)
    image = cv2.imencode(".jpg", frame.rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return (
        image.tobytes(),
        cv2.imencode(".png", frame.panoptic_ids)[1].tobytes(),
        cv2.imencode(".png", depth)[1].tobytes(),
    )


def _write_cameras(path: Path, planned: list[FrameJob]) -> None:
    """Intrinsics and seed for each frame; an existing file may only be longer or shorter, not different."""
    cameras = {}
    for job in planned:
        camera = random_camera(job.seed, job.height, job.width)
        size = {"seed": job.seed, "height": job.height, "width": job.width}
        cameras[f"{job.index:06d}"] = {**size, "fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy}
    if path.exists():
        there = json.loads(path.read_text())
        if any(cameras.get(name, camera) != camera for name, camera in there.items()):
            raise SystemExit(f"{path}: holds frames of another seed or size; give the same ones or another folder")
        cameras = there | cameras
    _write(path, json.dumps(cameras, indent=1).encode())


def _write(path: Path, data: bytes) -> None:
    """All of the file or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(path)


def _report(done: int, total: int, rate: float) -> None:
    left = time.strftime("%H:%M:%S", time.gmtime((total - done) / rate))
    print(f"\r{done}/{total} frames, {rate:.2f} frames/s, {left} left ", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m panoptic_depth_training.render",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    frames = commands.add_parser("frames", help="images with panoptic ids and depth, each from a street of its own")
    frames.add_argument("folder", type=Path, metavar="OUT_DIR")
    frames.add_argument("--count", type=int, default=1000, help="how many frames (default %(default)s)")
    frames.add_argument("--seed", type=int, default=0, help="of the first frame; the next ones count up")
    frames.add_argument("--height", type=int, default=256, help="px (default %(default)s)")
    frames.add_argument("--width", type=int, default=512, help="px (default %(default)s)")
    frames.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one for each core)")
    drive = commands.add_parser("drive", help="a recording: camera, lidar, transforms and truth")
    drive.add_argument("folder", type=Path, metavar="OUT_DIR", help="the bag's folder; must not exist yet")
    drive.add_argument("--seed", type=int, default=SAMPLE_SEED, help="of the street (default: samples/street_drive's)")
    drive.add_argument("--seconds", type=float, default=5.0, help="how long (default %(default)s)")
    drive.add_argument("--rate", type=float, default=10.0, help="frames a second (default %(default)s)")
    drive.add_argument("--height", type=int, default=512, help="px (default %(default)s)")
    drive.add_argument("--width", type=int, default=1024, help="px (default %(default)s)")
    options = parser.parse_args()
    if options.command == "drive":
        size = options.height, options.width
        render_drive(options.folder, DriveOptions(options.seed, options.seconds, options.rate, *size))
    else:
        size = options.height, options.width
        render_frames(options.folder, options.count, options.seed, *size, options.jobs)


if __name__ == "__main__":
    main()
