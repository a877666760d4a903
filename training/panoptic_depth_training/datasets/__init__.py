# SPDX-License-Identifier: Apache-2.0
"""Data sets: images with panoptic and depth truth."""
