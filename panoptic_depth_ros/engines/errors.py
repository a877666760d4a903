# SPDX-License-Identifier: Apache-2.0
"""Why an engine cannot be opened, or stopped."""

from __future__ import annotations

from panoptic_depth_ros.manifest import ModelError


class EngineError(ModelError):
    """An engine cannot be opened here, or failed; the message says what happened and the remedy."""


class DeviceMemoryError(EngineError):
    """The GPU has not enough free memory. Nothing is lost: it works again when another program frees some."""


class DeviceLostError(EngineError):
    """The GPU stopped working for this process. Only a new process can use it again."""
