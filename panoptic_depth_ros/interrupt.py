# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM end a program alike, and a second one does not cut its ending short."""

from __future__ import annotations

import signal
from types import FrameType

INTERRUPTED = 130  # the exit status that shells give a program that Ctrl-C ended
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupt_once() -> None:
    """Let the first of these signals raise KeyboardInterrupt, and the others do nothing.

    A program often gets several: from the terminal, from its parent, from an impatient user. Its recording must be
    closed all the same. Call it before rclpy.init, which passes signals on.
    """
    for number in _SIGNALS:
        signal.signal(number, _interrupt)


def was_interrupted() -> bool:
    """Whether KeyboardInterrupt has been raised, for code that finds it turned into another error."""
    return signal.getsignal(signal.SIGINT) is _ignore


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, _ignore)  # SIG_IGN would be inherited by processes that are started later
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    pass
