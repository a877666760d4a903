# SPDX-License-Identifier: Apache-2.0
"""A prediction on the pixel grid that is published; every map is computed when first asked for, and once.

Shapes: h, w the prediction's own resolution; H, W the published one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cached_property, lru_cache

import cv2
import numpy as np

from panoptic_depth_ros.prediction import Prediction
from panoptic_depth_ros.visualize import blend_halved, halved, segment_colors

_BAND_PIXELS = 1 << 16


def bands(height: int, width: int) -> Iterator[slice]:
    """The rows of a picture in groups: small, so that a core's own cache holds one from step to step, yet not so small
    that the calls would cost more than the pixels.
    """
    rows = max(1, _BAND_PIXELS // width)
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


class Enlargement:
    """Nearest-pixel enlargement from (h, w) to (H, W): columns by one small resize, rows by copying them."""

    def __init__(self, small: tuple[int, int], height: int, width: int) -> None:
        self.height = height
        self.width = width
        self.source_rows = nearest_source(small[0], height)  # [H]
        self.source_columns = nearest_source(small[1], width)  # [W]

    def __call__(self, small: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """[H, W, ...] from [h, w, ...]."""
        # Whole rows copy three times faster than OpenCV picks pixels.
        return np.take(self.widened(small), self.source_rows, axis=0, out=out, mode="clip")

    def widened(self, small: np.ndarray) -> np.ndarray:
        """[h, W, ...] from [h, w, ...]: row i of the enlarged map is row ``source_rows[i]`` of this."""
        if small.ndim == 3:  # OpenCV picks pixels of three bytes at half the speed of four
            return cv2.cvtColor(self._picked(cv2.cvtColor(small, cv2.COLOR_RGB2RGBA)), cv2.COLOR_RGBA2RGB)
        return self._picked(small)

    def _picked(self, small: np.ndarray) -> np.ndarray:
        # INTER_NEAREST_EXACT, not INTER_NEAREST: only the former samples at pixel centers.
        return cv2.resize(small, (self.width, small.shape[0]), interpolation=cv2.INTER_NEAREST_EXACT)


@lru_cache(maxsize=64)
def nearest_source(size: int, enlarged: int) -> np.ndarray:
    """For each of ``enlarged`` positions the one of ``size`` that is nearest, pixel centers compared; [enlarged]."""
    positions = np.arange(size, dtype=np.float32)[None]
    source = cv2.resize(positions, (enlarged, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0].astype(np.intp)
    source.flags.writeable = False
    return source


class OutputMaps:
    """The images of one prediction at height x width, aligned with the camera image ``rgb``.

    Several threads may ask at once.
    """

    def __init__(self, prediction: Prediction, rgb: np.ndarray, height: int, width: int) -> None:
        self.prediction = prediction
        self.height = height
        self.width = width
        self.enlarge = Enlargement(prediction.segment_ids.shape, height, width)
        self._rgb = rgb
        self._depth: np.ndarray | None = None
        self._depth_lock = threading.Lock()  # who needs depth while another thread computes it waits for that

    @cached_property
    def rgb(self) -> np.ndarray:
        """The camera image [H, W, 3] uint8."""
        if self._rgb.shape[:2] == (self.height, self.width):
            return self._rgb
        return cv2.resize(self._rgb, (self.width, self.height), interpolation=cv2.INTER_AREA)

    @property
    def depth(self) -> np.ndarray | None:
        """[H, W] float32 meters, NaN where unknown; None without a camera.

        Interpolated inside a segment, so that surfaces are smooth; the nearest pixel's along borders, where a mean of
        near and far would be a point in the air.
        """
        with self._depth_lock:
            if self._depth is None and self.prediction.depth is not None:
                self._depth = self._enlarged_depth(self.prediction.depth, None)
            return self._depth

    def depth_into(self, out: np.ndarray) -> np.ndarray:
        """`depth` in ``out`` [H, W] float32. Raises ValueError where there is none."""
        if self.prediction.depth is None:
            raise ValueError("no depth: no camera_info fits the image yet")
        with self._depth_lock:
            if self._depth is None:
                self._depth = self._enlarged_depth(self.prediction.depth, out)
            else:
                np.copyto(out, self._depth)
        return out

    def _enlarged_depth(self, depth: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        smooth = cv2.resize(depth, (self.width, self.height), dst=out, interpolation=cv2.INTER_LINEAR)
        nearest = self.enlarge.widened(depth)
        border = self.enlarge.widened(_border(self.prediction.segment_ids))
        for rows in bands(self.height, self.width):
            source = self.enlarge.source_rows[rows]
            cv2.copyTo(nearest[source], border[source], smooth[rows])
        return smooth

    @cached_property
    def _small_panoptic_color(self) -> np.ndarray:
        return cv2.applyColorMap(self.prediction.segment_ids, segment_colors(self.prediction)[:, None])

    def category_ids(self, out: np.ndarray) -> np.ndarray:
        """Category per pixel into ``out`` [H, W] uint8; VOID_CATEGORY where void."""
        return self.enlarge(cv2.LUT(self.prediction.segment_ids, self.prediction.category_of_segment), out)

    def panoptic_ids(self, out: np.ndarray) -> np.ndarray:
        """Panoptic id per pixel into ``out`` [H, W] uint16; VOID_PANOPTIC_ID where void."""
        return self.enlarge(cv2.LUT(self.prediction.segment_ids, self.prediction.panoptic_id_of_segment), out)

    def panoptic_color(self, out: np.ndarray) -> np.ndarray:
        """The segments' colors into ``out`` [H, W, 3] uint8 RGB."""
        return self.enlarge(self._small_panoptic_color, out)

    def overlay(self, out: np.ndarray) -> np.ndarray:
        """The camera image tinted with the segments' colors into ``out`` [H, W, 3] uint8 RGB."""
        color = halved(outlined(self._small_panoptic_color, self.prediction.segment_ids))
        color = self.enlarge.widened(color)
        for rows in bands(self.height, self.width):
            blend_halved(self.rgb[rows], color[self.enlarge.source_rows[rows]], out[rows])
        return out


def outlined(color: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
    """A copy of colors [h, w, 3] with white lines between segments, so that touching things stay apart."""
    above = np.concatenate([segment_ids[:1], segment_ids[:-1]])
    left = np.concatenate([segment_ids[:, :1], segment_ids[:, :-1]], axis=1)
    differs = [cv2.compare(segment_ids, other, cv2.CMP_NE) for other in (above, left)]
    return cv2.bitwise_or(color, cv2.cvtColor(cv2.bitwise_or(*differs), cv2.COLOR_GRAY2RGB))


def _border(segment_ids: np.ndarray) -> np.ndarray:
    """[h, w] uint8, nonzero where a pixel's 3x3 neighborhood holds another segment."""
    window = np.ones((3, 3), np.uint8)
    return cv2.compare(cv2.dilate(segment_ids, window), cv2.erode(segment_ids, window), cv2.CMP_NE)
