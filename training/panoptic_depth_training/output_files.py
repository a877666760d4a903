# SPDX-License-Identifier: Apache-2.0
"""Files that long jobs write: whole or not at all, and refused early where they could not be written."""

from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL_LIVES_S = 600.0  # a file is written within; what is older was left by a process that was killed


def write_whole(path: Path, data: bytes) -> None:
    """All of the file or nothing, also where several processes write the same one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def is_written(path: Path) -> bool:
    """Whether the file is there and not empty, as a machine that lost its power may leave it."""
    return path.is_file() and path.stat().st_size > 0


def sweep_partials(folder: Path) -> None:
    """Remove what killed processes left of `write_whole`; the files of those that still write are younger."""
    for partial in folder.glob(".*.partial"):
        try:
            if time.time() - partial.stat().st_mtime > PARTIAL_LIVES_S:
                partial.unlink()
        except FileNotFoundError:
            pass  # another process was faster


def make_writable(folder: Path) -> None:
    """Make a folder for what will be known in the end; raises OSError now where it could not be written then."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for it out of a folder; raises ValueError where one is in there."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process writes here; wait for it, or give another folder") from None
        except OSError:
            pass  # a file system without locks
        yield
