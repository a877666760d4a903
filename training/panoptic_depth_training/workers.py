# SPDX-License-Identifier: Apache-2.0
"""Processes that share a long job, and end at once when it is interrupted or killed or one of them fails."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import cv2


class WorkerDied(ValueError):
    """A process ended without a word."""


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes; what still runs when the block is left is ended. Submit within `deaf_to_interrupts`.

    Raises:
        WorkerDied: a process was killed, as the system does when memory runs out.
    """
    others = set(multiprocessing.active_children())
    # A forked process would inherit threads of the ray caster or of an engine in an unknown state.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise WorkerDied("a process died, most likely for want of memory; give fewer --jobs") from error
        finally:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal. Those that are started in here leave it to their parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot end its processes: without this they would wait for more work for good."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # sys.exit would end this thread alone
