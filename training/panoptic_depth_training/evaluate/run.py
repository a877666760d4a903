# SPDX-License-Identifier: Apache-2.0
"""Scoring many images: in one process or several, with progress, and stoppable between any two images."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from panoptic_depth_ros.pipeline import Pipeline
from panoptic_depth_training.datasets.labeled import LabeledImages
from panoptic_depth_training.datasets.sources import list_images, parse_source
from panoptic_depth_training.evaluate.scoring import Rules, Scores, ScoringSettings, rules_for, score, sequences
from panoptic_depth_training.torch_engine import open_model
from panoptic_depth_training.workers import deaf_to_interrupts, workers

LINE_EVERY_S = 30.0  # where output is not a terminal
LOOK_EVERY_S = 0.5  # for a request to stop, while other processes work
IMAGES_A_TASK = 4  # of one process, where images are no videos


@dataclass(frozen=True)
class Evaluation:
    """A model, data, and how to compare them; other processes get a copy."""

    model: Path
    data: str
    device: str = "auto"
    threads: int = 0  # of the model on the CPU; 0: one per core
    size: tuple[int, int] | None = None  # of the network's input [px]; None: the model's own
    settings: ScoringSettings = field(default_factory=ScoringSettings)


@lru_cache(maxsize=1)
def opened(evaluation: Evaluation) -> tuple[Pipeline, LabeledImages, Rules]:
    """Model and data, opened once in each process. Raises ValueError where they cannot be, or do not fit."""
    images = list_images(parse_source(evaluation.data))
    engine = open_model(evaluation.model, evaluation.device, evaluation.threads, evaluation.size, _tell)
    return Pipeline(engine), images, rules_for(engine.manifest, images, evaluation.settings)


class Stopped(Exception):
    """Somebody asked to stop; what was scored before is whole."""


class Watch:
    """Shows how far the scoring is, and takes Ctrl-C and a scheduler's stop as a request, heard between images."""

    def __init__(self, count: int) -> None:
        self.scored = 0
        self._count = count
        self._stop = False
        self._started_s = self._printed_s = time.monotonic()
        console = Console(stderr=True)
        self._is_terminal = console.is_terminal
        self._bar = Progress(
            TextColumn("scoring"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.speed} images/s"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=count)

    def __enter__(self) -> Watch:
        self._before = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def check(self) -> None:
        """Raise Stopped if that was asked for."""
        if self._stop:
            raise Stopped

    def done(self, images: int = 1) -> None:
        """Count images that were scored; raises Stopped if that was asked for."""
        self.scored += images
        self._bar.update(self._task, completed=self.scored)
        now = time.monotonic()
        if not self._is_terminal and now - self._printed_s >= LINE_EVERY_S:
            rate = self.scored / (now - self._started_s)
            left = time.strftime("%H:%M:%S", time.gmtime((self._count - self.scored) / rate))
            print(f"{self.scored}/{self._count} images, {rate:.2f} images/s, {left} left", file=sys.stderr, flush=True)
            self._printed_s = now
        self.check()


def score_all(evaluation: Evaluation, count: int, jobs: int, scores: Scores, watch: Watch) -> None:
    """Add the first `count` images to `scores`, in so many processes.

    Raises:
        Stopped: that was asked for; `scores` holds all images before it.
    """
    pipeline, images, rules = opened(evaluation)
    if rules.windows:
        parts = sequences(images, count)
    else:
        parts = [range(first, min(first + IMAGES_A_TASK, count)) for first in range(0, count, IMAGES_A_TASK)]
    if jobs == 1 or len(parts) == 1:
        for part in parts:
            score(pipeline, images, part, scores, watch.done)
        return
    cores = os.cpu_count() or 1
    share = replace(evaluation, threads=max(1, cores // jobs))
    for part, scored in _shared_out(share, parts, min(jobs, len(parts)), watch):
        scores.merge(scored)
        watch.done(len(part))


def _shared_out(
    evaluation: Evaluation, parts: Sequence[range], jobs: int, watch: Watch
) -> Iterator[tuple[range, Scores]]:
    """The scores of the parts, in the order in which processes are done with them. They end when this is left."""
    with workers(jobs) as pool:
        with deaf_to_interrupts():
            running = {pool.submit(_score_part, evaluation, part): part for part in parts}
        while running:
            finished: set[Future[Scores]]
            finished, _ = wait(running, LOOK_EVERY_S, return_when=FIRST_COMPLETED)
            for future in finished:
                part = running.pop(future)
                yield part, future.result()
            watch.check()


def _score_part(evaluation: Evaluation, part: range) -> Scores:
    pipeline, images, rules = opened(evaluation)
    scores = Scores(rules)
    score(pipeline, images, part, scores, done=lambda: None)
    return scores


def _tell(text: str) -> None:
    print(text, file=sys.stderr)
