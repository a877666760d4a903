# SPDX-License-Identifier: Apache-2.0
"""What the commands take for numbers and sizes: `type` functions for argparse, which names the option at fault."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from math import isfinite


def count(text: str) -> int:
    """A whole number from 1 up."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """A whole number from 0 up."""
    return _whole(text, 0)


def positive(text: str) -> float:
    """A number above 0."""
    value = _number(text)
    if value <= 0:
        raise ArgumentTypeError(f"{text} is not a number above 0")
    return value


def not_negative(text: str) -> float:
    """A number from 0 up."""
    value = _number(text)
    if value < 0:
        raise ArgumentTypeError(f"{text} is not a number from 0 up")
    return value


def image_size(text: str) -> tuple[int, int]:
    """Height and width [px]."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise ArgumentTypeError(f"{text!r} is no size; expected HEIGHTxWIDTH, like 256x512")
    height, width = text.split("x")
    return int(height), int(width)


def _whole(text: str, least: int) -> int:
    if not re.fullmatch(r"[+-]?\d+", text) or int(text) < least:
        raise ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
    return int(text)


def _number(text: str) -> float:
    """A finite number; what is none counts as less than all of them."""
    try:
        value = float(text)
    except ValueError:
        return float("-inf")
    return value if isfinite(value) else float("-inf")
