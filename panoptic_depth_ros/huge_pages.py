# SPDX-License-Identifier: Apache-2.0
"""Memory in pages of 2 MB: ONNX Runtime on the CPU goes through many megabytes a frame, and is faster in them.

glibc (2.35 and later) takes this choice from the environment when a process starts; others ignore it.
"""

from __future__ import annotations

import os

VARIABLE = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"


def environment() -> dict[str, str]:
    """What to add to the environment of a process; nothing where the user has chosen already."""
    chosen = os.environ.get(VARIABLE, "")
    if _TUNABLE in chosen:
        return {}
    return {VARIABLE: ":".join(filter(None, [chosen, f"{_TUNABLE}=1"]))}
