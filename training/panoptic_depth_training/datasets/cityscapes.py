# SPDX-License-Identifier: Apache-2.0
"""The Cityscapes taxonomy: 19 evaluated categories, in the order of their training ids."""

from __future__ import annotations

from panoptic_depth_ros.taxonomy import Category, Taxonomy

CITYSCAPES = Taxonomy(
    (
        Category("road", False, (128, 64, 128)),
        Category("sidewalk", False, (244, 35, 232)),
        Category("building", False, (70, 70, 70)),
        Category("wall", False, (102, 102, 156)),
        Category("fence", False, (190, 153, 153)),
        Category("pole", False, (153, 153, 153)),
        Category("traffic light", False, (250, 170, 30)),
        Category("traffic sign", False, (220, 220, 0)),
        Category("vegetation", False, (107, 142, 35)),
        Category("terrain", False, (152, 251, 152)),
        Category("sky", False, (70, 130, 180), has_depth=False),
        Category("person", True, (220, 20, 60)),
        Category("rider", True, (255, 0, 0)),
        Category("car", True, (0, 0, 142)),
        Category("truck", True, (0, 0, 70)),
        Category("bus", True, (0, 60, 100)),
        Category("train", True, (0, 80, 100)),
        Category("motorcycle", True, (0, 0, 230)),
        Category("bicycle", True, (119, 11, 32)),
    )
)
