# SPDX-License-Identifier: Apache-2.0
"""Networks that see panoptic segments with metric depth. PyTorch only; start at panoptic_depth.py."""
