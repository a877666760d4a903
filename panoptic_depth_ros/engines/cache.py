# SPDX-License-Identifier: Apache-2.0
"""The user's folder of built engines: content-addressed, owner-only, checked before anything in it is loaded.

An engine is executable code. One is loaded only if this user built it, on this machine, from this model, and not a
byte changed since. The file is MAGIC, the header's length (8 bytes, little endian), the header's SHA-256, the header
(JSON: fingerprint, size and SHA-256 of the plan, and notes), the plan.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from panoptic_depth_ros.engines.errors import EngineError

MAGIC = b"panoptic_depth engine 1\n"
_HASH_BYTES = 32
_LENGTH_BYTES = 8
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH

Fingerprint = dict[str, str]  # what an engine was built from, by and for


class RefusedError(Exception):
    """A cached file must not be used; the text is the reason."""


def cache_folder(*parts: str) -> Path:
    """The folder ``panoptic_depth/...`` in the user's cache, made for its owner only.

    Raises:
        EngineError: it cannot be made, or others could write into it.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")  # a relative one is to be ignored, says the XDG specification
    folder = Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("panoptic_depth", *parts):
            folder /= part
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            _check_owner(folder.stat(), folder)
    except OSError as error:
        raise EngineError(
            f"cache folder {folder}: cannot be used ({error.strerror}); set XDG_CACHE_HOME to a writable folder"
        ) from error
    except RefusedError as error:
        raise EngineError(f"cache folder {folder}: {error}; chmod 700 it, or remove it if it is not yours") from error
    return folder


def digest(fingerprint: Fingerprint) -> str:
    """A short name for a fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def differences(cached: Fingerprint, wanted: Fingerprint) -> str:
    """Where two fingerprints differ, in words."""
    keys = [key for key in {**wanted, **cached} if cached.get(key) != wanted.get(key)]
    return ", ".join(f"{key} was {cached.get(key, 'unknown')} and is {wanted.get(key, 'unknown')}" for key in keys)


def write_sealed(path: Path, header: dict[str, Any], payload: bytes | memoryview) -> None:
    """Write a file atomically, readable and writable for its owner only; the header gets the payload's digest.

    Raises:
        EngineError: it cannot be written, as on a full disk.
    """
    try:
        _write_sealed(path, header, payload)
    except OSError as error:
        raise EngineError(
            f"{path} cannot be written ({error.strerror}); make room, or set XDG_CACHE_HOME to another folder"
        ) from error


def _write_sealed(path: Path, header: dict[str, Any], payload: bytes | memoryview) -> None:
    sealed = {**header, "size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    text = json.dumps(sealed).encode()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(MAGIC + len(text).to_bytes(_LENGTH_BYTES, "little") + hashlib.sha256(text).digest() + text)
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def read_sealed(path: Path, fingerprint: Fingerprint) -> tuple[dict[str, Any], memoryview]:
    """Header and payload of a file that this user wrote for this fingerprint.

    Raises:
        FileNotFoundError: there is none.
        RefusedError: it must not be used, and why.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would block
    except FileNotFoundError:
        raise
    except OSError as error:  # a link, or without permission
        raise RefusedError(f"it cannot be opened as a file of one's own ({error.strerror})") from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError("it is no regular file")
        _check_owner(status, path)
        content = memoryview(file.read())
    header, payload = _unseal(content)
    if header.get("fingerprint") != fingerprint:
        changes = differences(header.get("fingerprint", {}), fingerprint)
        raise RefusedError(f"it was built for something else: {changes}")
    if header["size"] != len(payload):
        raise RefusedError(f"it holds {len(payload)} bytes of {header['size']}")
    if hashlib.sha256(payload).hexdigest() != header["sha256"]:
        raise RefusedError("its content changed since it was written (SHA-256 differs)")
    return header, payload


def read_header(path: Path) -> dict[str, Any]:
    """What a sealed file says about itself, whoever wrote it; nothing of the payload is read.

    Raises:
        RefusedError: it is no such file, or its header is damaged.
    """
    with path.open("rb") as file:
        start = file.read(len(MAGIC) + _LENGTH_BYTES + _HASH_BYTES)
        size = int.from_bytes(start[len(MAGIC) : len(MAGIC) + _LENGTH_BYTES], "little")
        rest = file.read(min(size, os.fstat(file.fileno()).st_size))
    return _unseal(memoryview(start + rest))[0]


def is_sealed(path: Path) -> bool:
    """Whether a file begins as a built engine of ours does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@contextmanager
def locked(path: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a cached file, so that two processes do not build the same engine at once."""
    handle = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"another process is preparing {path.name}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which unlocks it


def _unseal(content: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Split a file's content and prove its header."""
    if content[: len(MAGIC)] != MAGIC:
        raise RefusedError("it is no engine of this program's, or of another version of it")
    at = len(MAGIC) + _LENGTH_BYTES
    size = int.from_bytes(content[len(MAGIC) : at], "little")
    text = content[at + _HASH_BYTES : at + _HASH_BYTES + size]
    if len(content) < at + _HASH_BYTES + size:
        raise RefusedError(f"it is cut short ({len(content)} bytes)")
    if hashlib.sha256(text).digest() != content[at : at + _HASH_BYTES]:
        raise RefusedError("its header is damaged (SHA-256 differs)")
    return json.loads(bytes(text)), content[at + _HASH_BYTES + size :]


def _check_owner(status: os.stat_result, path: Path) -> None:
    if status.st_uid != os.geteuid():
        raise RefusedError(f"it belongs to user {status.st_uid}, not to this one ({os.geteuid()})")
    if status.st_mode & _OTHERS_MAY_WRITE:
        raise RefusedError(f"others may write to it (mode {stat.S_IMODE(status.st_mode):o} of {path.name})")
