# SPDX-License-Identifier: Apache-2.0
"""Training of panoptic depth networks: data, losses, metrics, evaluation and export."""
