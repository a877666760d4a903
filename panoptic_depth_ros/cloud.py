# SPDX-License-Identifier: Apache-2.0
"""Depth, colors and labels to point records, written once into the memory that is published."""

from __future__ import annotations

import cv2
import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.maps import OutputMaps, bands

# 24 bytes. rgb is one float32's bits (0x00RRGGBB), as PCL and RViz read it.
POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4"), ("label", "<u4"), ("instance", "<u4")])
_PAIR = np.float64  # eight bytes of any two fields; never looked at as a number
_PAIRS = POINT.itemsize // 8


class CloudGrid:
    """Which pixels of a camera become points, and their rays: pixel (row * stride, column * stride) for all that
    whole strides hold, and at least the first.
    """

    def __init__(self, camera: PinholeCamera, stride: int, max_depth: float) -> None:
        """``max_depth`` in meters: what is farther becomes NaN."""
        self.camera = camera
        self.stride = stride
        self.max_depth = max_depth
        self.height, self.width = max(1, camera.height // stride), max(1, camera.width // stride)
        rays = camera.rays(stride)[: self.height, : self.width]
        self._rays = np.ascontiguousarray(np.moveaxis(rays, -1, 0))  # [2, height, width]

    def fill(self, maps: OutputMaps, out: np.ndarray) -> np.ndarray:
        """Write the organized cloud of ``maps`` into ``out`` [height, width] of POINT; points without depth are NaN.

        Raises ValueError where there is no depth.
        """
        for rows in self.bands():
            self.fill_rows(maps, out, rows)
        return out

    def bands(self) -> list[slice]:
        """The cloud's rows in groups that threads may fill at the same time."""
        return list(bands(self.height, self.width))

    def fill_rows(self, maps: OutputMaps, out: np.ndarray, rows: slice) -> None:
        """Write some of the rows that `fill` writes."""
        if maps.depth is None:
            raise ValueError("a cloud needs depth, and depth a camera: no camera_info fits the image yet")
        z = self._sampled(maps.depth, rows)[:, :: self.stride].copy()
        np.copyto(z, np.nan, where=z > self.max_depth)
        x, y = self._rays[:, rows] * z
        color = self._color(self._sampled(maps.rgb, rows))
        # OpenCV interleaves two planes of 32 bits or three of 64 as fast as it copies them, but not six: so by pairs.
        pairs = [_pairs(x, y), _pairs(z, color.view(np.float32)), self._labels(maps, rows)]
        cv2.merge(pairs, out[rows].view(_PAIR).reshape(*z.shape, _PAIRS))

    def _labels(self, maps: OutputMaps, rows: slice) -> np.ndarray:
        """Label and instance of the points in some rows: [n, width] of pairs."""
        prediction = maps.prediction
        table = np.stack([prediction.category_of_segment, prediction.instance_of_segment], axis=-1).astype(np.uint32)
        source_rows = maps.enlarge.source_rows[:: self.stride][rows]
        source_columns = maps.enlarge.source_columns[:: self.stride][: self.width]
        first = source_rows[0]
        pairs = cv2.LUT(prediction.segment_ids[first : source_rows[-1] + 1], table.view(_PAIR))
        return np.take(pairs, source_columns, axis=1)[source_rows - first]

    def _color(self, rgb: np.ndarray) -> np.ndarray:
        """0x00RRGGBB [n, width] uint32 of every stride-th pixel in rows [n, W, 3]."""
        bits = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA).view(np.uint32)[:, :: self.stride, 0].copy()
        # With an opaque alpha half of all colors would read as NaN, and tools that skip NaN would drop the points.
        bits &= 0x00FFFFFF
        return bits

    def _sampled(self, image: np.ndarray, rows: slice) -> np.ndarray:
        """The published image's rows below some of the cloud's, in all columns that whole strides hold."""
        return image[rows.start * self.stride : rows.stop * self.stride : self.stride, : self.width * self.stride]


def _pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two planes [n, width] of 32 bits interleaved: [n, width] of pairs."""
    # Four bytes off: to where its vectors are aligned OpenCV writes past the cache, and reading it again would wait.
    memory = np.empty(2 * first.size + 1, np.float32)[1:].reshape(*first.shape, 2)
    return cv2.merge([first, second], memory).view(_PAIR)[..., 0]


def compact(cloud: np.ndarray) -> np.ndarray:
    """The points [N] of an organized cloud that have a position."""
    return cloud[np.isfinite(cloud["z"])]
