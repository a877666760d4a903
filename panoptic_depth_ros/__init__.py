# SPDX-License-Identifier: Apache-2.0
"""Runtime of panoptic_depth: from a camera image to panoptic segmentation, metric depth and a labelled cloud."""
