# SPDX-License-Identifier: Apache-2.0
"""python -m panoptic_depth_training.export"""

from __future__ import annotations

import sys

from panoptic_depth_training.export.command import main

if __name__ == "__main__":
    sys.exit(main())
