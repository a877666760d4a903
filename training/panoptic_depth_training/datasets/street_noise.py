# SPDX-License-Identifier: Apache-2.0
"""Noise for the surfaces of a rendered street: two tables that repeat, and lots drawn from whole numbers.

N is the number of points that are painted at once.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

SIZE = 512  # texels along each side of a table; a power of two, so that wrapping is a bit mask
_MASK, _SHIFT = SIZE - 1, SIZE.bit_length() - 1
_POSITIVE = np.float32(1 << 17)  # whole tables: makes coordinates positive, so that cutting off rounds down


@cache
def grain() -> np.ndarray:
    """Tileable noise [SIZE * SIZE] of standard deviation 1, smooth over about three texels."""
    noise = np.random.default_rng(7).normal(size=(SIZE, SIZE)).astype(np.float32)
    return _normalized(_blurred(noise, 1.0)).ravel()


@cache
def billows() -> np.ndarray:
    """Tileable noise [SIZE * SIZE] with detail at every scale, for clouds and stains; standard deviation 1."""
    rng = np.random.default_rng(8)
    total = np.zeros((SIZE, SIZE), np.float32)
    for sigma in (2, 4, 8, 16, 32):
        noise = _normalized(_blurred(rng.normal(size=total.shape).astype(np.float32), sigma))
        total += sigma**0.9 * noise
    return _normalized(total).ravel()


def _blurred(noise: np.ndarray, sigma: float) -> np.ndarray:
    pad = int(4 * sigma) + 1
    wide = cv2.GaussianBlur(np.pad(noise, pad, mode="wrap"), (0, 0), sigma)
    return wide[pad:-pad, pad:-pad]


def _normalized(noise: np.ndarray) -> np.ndarray:
    return (noise - noise.mean()) / noise.std()


def sample(table: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Nearest texel [N] of a table, repeating; u and v [N] in texels, up to 2^17 either way."""
    index = (v + _POSITIVE).astype(np.int32)
    index &= _MASK
    index <<= _SHIFT
    column = (u + _POSITIVE).astype(np.int32)
    column &= _MASK
    index |= column
    return table.take(index)


def lot(*numbers: np.ndarray) -> np.ndarray:
    """A pseudo-random share 0..1 [N] for every tuple of whole numbers."""
    mixed = np.zeros(len(numbers[0]), np.uint32)
    for number in numbers:
        mixed ^= number.astype(np.int32).view(np.uint32)
        mixed *= np.uint32(2654435761)
        mixed ^= mixed >> np.uint32(15)
    return (mixed & np.uint32(0xFFFF)).astype(np.float32) * np.float32(1 / 65535)
