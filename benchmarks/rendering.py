# SPDX-License-Identifier: Apache-2.0
"""What a rendered training frame costs, stage by stage, at two sizes, in one process and in two.

    python benchmarks/rendering.py [--streets 4]

A street's layout, meshes and ray caster (BVH) serve all of its views; the table shares them out among the frames.
Stages are in CPU time, which other work on the machine changes little; frames/s are by the clock.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from panoptic_depth_ros.arguments import count
from panoptic_depth_training.datasets.street_folder import encode
from panoptic_depth_training.datasets.street_scene import Hits, Scene
from panoptic_depth_training.datasets.street_shapes import bake
from panoptic_depth_training.datasets.street_view import View
from panoptic_depth_training.datasets.synthetic import VIEWS_A_STREET, Frame, Street, random_shot
from panoptic_depth_training.output_files import write_whole

STAGES = {
    "layout": "draws what stands where",
    "meshes": "triangles of all parts",
    "BVH": "Embree's tree over them",
    "casting": "rays through pixels and at borders",
    "shadows": "rays to the sun and the sky",
    "shading": "materials, light, air",
    "sensor": "exposure, noise, JPEG",
    "writing": "JPEG and two PNGs to the disk",
}
SIZES = ((256, 512), (512, 1024))
PROCESSES = (1, 2)
FIRST_STREET = 5000
Seconds = dict[str, float]


class TimedScene(Scene):
    """Counts the seconds that rays take."""

    spent: Seconds

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        with clock(self.spent, "casting"):
            return super().cast(origins, directions)

    def blocked(self, origins: np.ndarray, directions: np.ndarray, reach: float) -> np.ndarray:
        with clock(self.spent, "shadows"):
            return super().blocked(origins, directions, reach)


class TimedStreet(Street):
    """Counts the seconds until rays can be cast."""

    def __init__(self, seed: int, spent: Seconds) -> None:
        with clock(spent, "layout"):
            super().__init__(seed, is_crowded=True)
        self._spent, self._timed = spent, {}

    def scene(self, time_s: float = 0.0) -> Scene:
        if time_s not in self._timed:
            with clock(self._spent, "meshes"):
                mesh = bake(self.labeled_parts(time_s))
            with clock(self._spent, "BVH"):
                scene = TimedScene(mesh)
                super(TimedScene, scene).cast(np.zeros(3), np.ones((1, 3)))  # the first ray has the tree built
            scene.spent = self._spent
            self._timed[time_s] = scene
        return self._timed[time_s]


@contextmanager
def clock(spent: Seconds, stage: str) -> Iterator[None]:
    started = time.process_time()
    yield
    spent[stage] += time.process_time() - started


def render_street(seed: int, height: int, width: int, folder: Path) -> Seconds:
    """Seconds by stage for all frames of a street."""
    spent = dict.fromkeys(STAGES, 0.0)
    street = TimedStreet(seed, spent)
    for number in range(seed * VIEWS_A_STREET, (seed + 1) * VIEWS_A_STREET):
        shot = random_shot(street, number, height, width)
        rng = np.random.default_rng(number)
        scene, line = street.scene(shot.time_s), street.layout.centerline
        view = View(scene, line, shot.light, shot.camera, shot.world_from_camera)
        rays = spent["casting"] + spent["shadows"]
        with clock(spent, "shading"):
            light, hits = view.render(rng)
        spent["shading"] -= spent["casting"] + spent["shadows"] - rays
        with clock(spent, "sensor"):
            rgb = shot.sensor.compress(shot.sensor.expose(light, rng))
        with clock(spent, "writing"):
            ids = np.append(scene.mesh.panoptic_id, np.uint16(10000))[hits.part].reshape(height, width)
            depth = np.where(hits.part < 0, np.float32(0), hits.length).reshape(height, width)
            frame = Frame(rgb, ids, depth, shot.camera, shot.world_from_camera, shot.time_s)
            for kind, data in enumerate(encode(frame)):
                write_whole(folder / f"{number}_{kind}", data)
    return spent


def start_worker() -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        render_street(0, 64, 128, Path(folder))  # shapes and noise are made once in a process


def measure(height: int, width: int, processes: int, streets: int) -> tuple[Seconds, float]:
    """Mean seconds of a frame by stage, and frames/s of all processes together."""
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(processes, context, start_worker) as pool,
    ):
        list(pool.map(time.sleep, [1.0] * processes))  # all processes have started
        started = time.perf_counter()
        seeds = range(FIRST_STREET, FIRST_STREET + streets * processes)
        jobs = [pool.submit(render_street, seed, height, width, Path(folder)) for seed in seeds]
        answers = [job.result() for job in jobs]
        elapsed = time.perf_counter() - started
    frames = len(answers) * VIEWS_A_STREET
    return {stage: sum(answer[stage] for answer in answers) / frames for stage in STAGES}, frames / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streets", type=count, default=4, help="for each process (default %(default)s)")
    streets = parser.parse_args().streets
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before"
    table = Table(title=f"Rendering, ms of CPU a frame ({VIEWS_A_STREET} frames a street); {machine}")
    table.add_column("stage")
    table.add_column("what")
    results = []
    for height, width in SIZES:
        for processes in PROCESSES:
            table.add_column(f"{height}x{width}\n{processes} process{'es' * (processes > 1)}", justify="right")
            results.append(measure(height, width, processes, streets))
    for stage, what in STAGES.items():
        table.add_row(stage, what, *(f"{1e3 * seconds[stage]:.1f}" for seconds, _ in results))
    table.add_section()
    table.add_row("sum", "", *(f"{1e3 * sum(seconds.values()):.0f}" for seconds, _ in results))
    table.add_row("frames/s", "all processes together", *(f"{rate:.1f}" for _, rate in results))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
