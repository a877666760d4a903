# SPDX-License-Identifier: Apache-2.0
"""Colors show what must be told apart, on maps of a few pixels."""

from __future__ import annotations

import numpy as np

from panoptic_depth_training.colors import label_colors, widened
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES


def test_instances_and_their_borders_can_be_told_apart():
    ids = np.repeat(np.repeat([[13001, 13002]], 8, axis=1), 8, axis=0).astype(np.uint16)
    colors = label_colors(ids, CITYSCAPES)
    assert (colors[0, 0] != colors[0, 15]).any()
    assert (colors[:, 7] == 255).all()


def test_void_is_black():
    assert (label_colors(np.full((4, 4), 65535, np.uint16), CITYSCAPES) == 0).all()


def test_lidar_points_are_made_visible_and_the_nearest_stays_in_front():
    depth = np.zeros((20, 20), np.float32)
    depth[5, 5], depth[5, 6] = 10.0, 3.0
    wide = widened(depth)
    assert np.count_nonzero(wide) == 3 * 4
    assert wide[5, 5] == 3.0
    assert wide[4, 4] == 10.0
