# SPDX-License-Identifier: Apache-2.0
"""Fast DDS for large messages: out of the box it loses nearly every image that exceeds its 512 KB shared memory."""

from __future__ import annotations

import os
import shutil

from panoptic_depth_ros.share import share_path

_NEEDED_BYTES = 512 << 20  # three processes with a segment of 128 MB each, and others beside them
_CHOICES_OF_THE_USER = (
    "FASTDDS_BUILTIN_TRANSPORTS",
    "FASTRTPS_DEFAULT_PROFILES_FILE",
    "FASTDDS_DEFAULT_PROFILES_FILE",
)


def profile_variable() -> str:
    """The environment variable that names Fast DDS's profile: it was renamed with Fast DDS 3, in Kilted."""
    before_fast_dds_3 = os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy")
    return "FASTRTPS_DEFAULT_PROFILES_FILE" if before_fast_dds_3 else "FASTDDS_DEFAULT_PROFILES_FILE"


def prepare_for_large_messages() -> None:
    """Set what Fast DDS reads from the environment, where the user did not; before rclpy.init.

    It concerns what this process publishes: a camera driver in another process needs the same profile.
    """
    # publish() holds the interpreter lock: let a thread of Fast DDS, not ours, copy into the shared memory.
    os.environ.setdefault("RMW_FASTRTPS_PUBLICATION_MODE", "ASYNCHRONOUS")
    if not any(name in os.environ for name in _CHOICES_OF_THE_USER) and _has_room():
        os.environ[profile_variable()] = str(share_path("config", "fastdds.xml"))


def _has_room() -> bool:
    """Whether /dev/shm holds the profile's segments; in a container with Docker's 64 MB Fast DDS would not start."""
    try:
        return shutil.disk_usage("/dev/shm").free >= _NEEDED_BYTES
    except OSError:
        return False
