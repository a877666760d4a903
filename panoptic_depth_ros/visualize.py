# SPDX-License-Identifier: Apache-2.0
"""Pictures for people: segment colors, overlays, colored depth, bird's-eye views and mosaics of them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from panoptic_depth_ros.prediction import Prediction

_SHADE = 45  # how far an instance's color may move from its category's, of 255
_INK = (235, 235, 235)


def segment_colors(prediction: Prediction) -> np.ndarray:
    """RGB per segment id [256, 3] uint8: the category's color, shaded per instance; void is black."""
    colors = np.zeros((256, 3), np.uint8)
    used = prediction.category_of_segment < len(prediction.taxonomy)
    palette = np.array([category.color for category in prediction.taxonomy])
    base = palette[prediction.category_of_segment[used]]
    colors[used] = np.clip(base + _shades(prediction.instance_of_segment[used]), 0, 255)
    return colors


def _shades(instance: np.ndarray) -> np.ndarray:
    """Offsets [N, 3] for instance numbers [N]: none for stuff and the first one, then far from the previous ones."""
    # Multiples of irrational steps never come close to each other: neighbors in number differ plainly.
    turns = np.modf((instance[:, None] - 1.0) * (0.618, 0.324, 0.775))[0]
    return np.where(instance[:, None] > 1, np.round((2 * turns - 1) * _SHADE), 0)


def halved(color: np.ndarray) -> np.ndarray:
    """Half of each uint8, rounded up."""
    return color - (color >> 1)


def blend_halved(rgb: np.ndarray, half_color: np.ndarray, out: np.ndarray) -> None:
    """The mean of an image and its segments' colors into ``out``, all [H, W, 3] uint8, the colors `halved` before.

    The image's half is rounded down, so that the sum is off by half a level at most and never overflows.
    """
    np.right_shift(rgb, 1, out=out)
    np.add(out, half_color, out=out)


def depth_color(depth: np.ndarray, max_depth: float) -> np.ndarray:
    """Depth [H, W] in meters as RGB [H, W, 3] uint8: near is bright, unknown is black; logarithmic."""
    near = 2.0
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.log(np.maximum(depth, near) / near) / np.log(max_depth / near)
    known = np.isfinite(share)
    scaled = np.where(known, 255 * (1 - np.clip(np.nan_to_num(share), 0, 1)), 0).astype(np.uint8)
    color = cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO)[..., ::-1].copy()
    color[~known] = 0
    return color


def birds_eye(
    points: np.ndarray, colors: np.ndarray, height: int, width: int, ahead: float = 40.0, roof: float = 2.5
) -> np.ndarray:
    """A cloud seen from above as RGB [height, width, 3] uint8, the camera at the middle of the lower edge.

    points [N, 3] in the optical frame (meters), colors [N, 3] uint8; ``ahead`` meters reach the upper edge. Points
    more than ``roof`` meters above the camera (branches, facades) would hide the street and are left out.
    """
    pixels_per_meter = height / ahead
    picture = np.full((height, width, 3), 18, np.uint8)
    keep = np.isfinite(points).all(1) & (points[:, 1] > -roof)
    points, colors = points[keep], colors[keep]
    highest_last = np.argsort(-points[:, 1], kind="stable")  # y points down: what lies on top is drawn last
    points, colors = points[highest_last], colors[highest_last]
    u = np.round(width / 2 + points[:, 0] * pixels_per_meter).astype(int)
    v = np.round(height - 1 - points[:, 2] * pixels_per_meter).astype(int)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    picture[v[inside], u[inside]] = colors[inside]
    for distance in range(10, int(ahead) + 1, 10):
        row = round(height - 1 - distance * pixels_per_meter)
        if row > 12:
            cv2.line(picture, (0, row), (6, row), _INK, 1)
            _write(picture, f"{distance} m", (10, row + 4))
    return picture


def mosaic(panels: Sequence[tuple[str, np.ndarray]], width: int) -> np.ndarray:
    """Pictures [h, w, 3] uint8 of one shape with their titles, two in a row, each ``width`` pixels wide."""
    height = round(panels[0][1].shape[0] * width / panels[0][1].shape[1])
    tiles = []
    for title, picture in panels:
        tile = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        _write(tile, title, (8, 18), 0.5)
        tiles.append(np.pad(tile, ((2, 2), (2, 2), (0, 0)), constant_values=255))
    if len(tiles) % 2:
        tiles.append(np.full_like(tiles[0], 255))
    return np.vstack([np.hstack(tiles[i : i + 2]) for i in range(0, len(tiles), 2)])


def _write(picture: np.ndarray, text: str, at: tuple[int, int], size: float = 0.4) -> None:
    """Text on a dark plate; ``at`` is the left end of its baseline."""
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    (x, y), margin = at, 3
    cv2.rectangle(picture, (x - margin, y - height - margin), (x + width + margin, y + below), (18, 18, 18), cv2.FILLED)
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, _INK, 1, cv2.LINE_AA)
