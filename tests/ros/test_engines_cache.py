# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from panoptic_depth_ros.engines.cache import (
    MAGIC,
    RefusedError,
    cache_folder,
    digest,
    is_sealed,
    locked,
    read_header,
    read_sealed,
    write_sealed,
)
from panoptic_depth_ros.engines.cuda import Gpu
from panoptic_depth_ros.engines.errors import DeviceLostError, DeviceMemoryError, EngineError
from panoptic_depth_ros.engines.tensorrt import earlier_seconds, file_name, load_or_build, make_fingerprint
from panoptic_depth_ros.engines.tensorrt_build import BuildOptions, Built
from panoptic_depth_ros.manifest import Manifest

GPU = Gpu("Some GPU", "8.6", 28, 12 << 30, "580.1")
PLAN = bytes(range(256)) * 40


def fingerprint(model: bytes = b"model", **changes: Any) -> dict[str, str]:
    gpu = Gpu(**{**vars(GPU), **{key: value for key, value in changes.items() if key in vars(GPU)}})
    builder, cuda = changes.get("builder", "TensorRT 10.3.0"), changes.get("cuda", "12.6")
    return make_fingerprint(model, builder, gpu, cuda, BuildOptions(changes.get("workspace_gib", 0.0)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m-0123-abcd.engine"
    write_sealed(path, {"fingerprint": fingerprint(), "seconds": 12.5}, PLAN)
    return path


def test_what_was_written_is_read_back_by_its_owner_alone(file: Path) -> None:
    header, plan = read_sealed(file, fingerprint())
    assert bytes(plan) == PLAN
    assert header["seconds"] == 12.5
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert is_sealed(file)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "change",
    [
        {"model": b"another model"},
        {"builder": "TensorRT 10.7.0"},
        {"builder": "TensorRT-RTX 10.3.0"},
        {"name": "Another GPU"},
        {"compute_capability": "8.9"},
        {"multiprocessors": 30},
        {"driver": "590.2"},
        {"cuda": "13.0"},
        {"workspace_gib": 0.5},
    ],
)
def test_an_engine_for_something_else_is_refused_with_what_differs(file: Path, change: dict[str, Any]) -> None:
    wanted = fingerprint(**change)
    assert digest(wanted) != digest(fingerprint())
    [(key, value)] = set(wanted.items()) - set(fingerprint().items())
    with pytest.raises(RefusedError, match=f"built for something else: {key} was .* and is {value}"):
        read_sealed(file, wanted)


def test_an_engine_cut_anywhere_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for length in [0, 5, len(MAGIC), len(MAGIC) + 20, len(MAGIC) + 60, len(whole) - len(PLAN), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(RefusedError, match=r"no engine of this program's|cut short|it holds \d+ bytes of 10240"):
            read_sealed(file, fingerprint())


def test_an_engine_with_any_changed_byte_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for at in [0, len(MAGIC) + 1, len(MAGIC) + 9, len(MAGIC) + 50, len(whole) - len(PLAN), len(whole) - 1]:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(RefusedError):
            read_sealed(file, fingerprint())
    file.write_bytes(whole + b"x")
    with pytest.raises(RefusedError, match="it holds 10241 bytes of 10240"):
        read_sealed(file, fingerprint())


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777])
def test_an_engine_that_others_may_write_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(RefusedError, match=f"others may write to it \\(mode {mode:o}"):
        read_sealed(file, fingerprint())


def test_an_engine_of_another_user_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(RefusedError, match=f"it belongs to user {owner}, not to this one"):
        read_sealed(file, fingerprint())


def test_a_link_in_place_of_an_engine_is_refused(file: Path) -> None:
    link = file.with_name("link.engine")
    link.symlink_to(file)
    with pytest.raises(RefusedError, match="cannot be opened as a file of one's own"):
        read_sealed(link, fingerprint())


def test_a_pipe_in_place_of_an_engine_is_refused(file: Path) -> None:
    pipe = file.with_name("pipe.engine")
    os.mkfifo(pipe, 0o600)
    with pytest.raises(RefusedError, match="no regular file"):
        read_sealed(pipe, fingerprint())


def test_a_write_that_fails_leaves_the_old_engine(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match=r"engine cannot be written \(No space left on device\); make room"):
        write_sealed(file, {"fingerprint": fingerprint()}, b"new")
    assert bytes(read_sealed(file, fingerprint())[1]) == PLAN
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_folder_is_made_for_its_owner_and_refused_when_others_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "deep" / "cache"))
    old = os.umask(0)
    try:
        folder = cache_folder("engines")
    finally:
        os.umask(old)
    assert folder == tmp_path / "deep" / "cache" / "panoptic_depth" / "engines"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)] == [0o700, 0o700]
    folder.parent.chmod(0o770)
    with pytest.raises(EngineError, match=r"panoptic_depth: others may write to it \(mode 770 .*chmod 700 it"):
        cache_folder("engines")


def test_a_folder_that_cannot_be_made_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EngineError, match=r"file.*: cannot be used .*; set XDG_CACHE_HOME to a writable folder"):
        cache_folder("engines")


def test_a_relative_cache_home_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "panoptic_depth"


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    file, reports = tmp_path / "m.engine", []
    program = (
        "import sys, pathlib\nfrom panoptic_depth_ros.engines.cache import locked\n"
        f"with locked(pathlib.Path({str(file)!r}), print):\n    print('locked', flush=True); sys.stdin.readline()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == "locked\n"

    def let_go(text: str) -> None:
        reports.append(text)
        assert other.poll() is None
        other.stdin.write("\n")  # type: ignore[union-attr]
        other.stdin.flush()  # type: ignore[union-attr]

    with locked(file, let_go):
        pass
    assert reports == ["another process is preparing m.engine; waiting for it"]
    assert other.wait(10) == 0
    other.stdin.close()
    other.stdout.close()


# ---- building where the cache does not serve ----


class Opened:
    def __init__(self, plan: bytes | memoryview) -> None:
        self.plan, self.is_closed = bytes(plan), False

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def load(file: Path) -> Callable[..., tuple[Opened, list[str], int]]:
    """Runs load_or_build with a builder that makes b"new"; returns what was opened, the reports, the builds."""

    def run(
        open_plan: Callable[[Any], Opened] = Opened, prove: Any = lambda opened: {"parity": "proven"}, **change: Any
    ) -> tuple[Opened, list[str], int]:
        reports: list[str] = []
        builds = []

        def make() -> Built:
            builds.append(1)
            return Built(b"new", 3.0, {"CONVOLUTION float32": 4})

        wanted = fingerprint(**change)
        path = file.with_name(f"m-0123-{digest(wanted)}.engine") if change else file
        return load_or_build(path, wanted, make, open_plan, prove, reports.append), reports, len(builds)

    return run


def test_an_engine_that_fits_is_opened_without_a_build(load: Any, file: Path) -> None:
    opened, reports, builds = load()
    assert opened.plan == PLAN
    assert builds == 0
    assert reports == [f"engine from {file}, built in 12 s"]


def test_a_damaged_engine_is_refused_built_again_and_then_kept(load: Any, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])
    opened, reports, builds = load()
    assert opened.plan == b"new"
    assert builds == 1
    assert f"the engine {file} is refused: it holds 10233 bytes of 10240; building it again" in reports
    assert read_header(file)["parity"] == "proven"
    assert load()[2] == 0


def test_an_update_builds_again_and_says_what_changed(load: Any, file: Path) -> None:
    opened, reports, builds = load(driver="590.2")
    assert (opened.plan, builds) == (b"new", 1)
    assert reports[0].startswith("no engine for this model here yet (driver was 580.1 and is 590.2); building one")
    assert bytes(read_sealed(file, fingerprint())[1]) == PLAN


def test_an_engine_that_tensorrt_does_not_take_is_built_again(load: Any) -> None:
    def open_plan(plan: Any) -> Opened:
        if bytes(plan) == PLAN:
            raise EngineError("serialized with another version")
        return Opened(plan)

    opened, reports, _ = load(open_plan)
    assert opened.plan == b"new"
    assert any("cannot be opened: serialized with another version; building it again" in text for text in reports)


@pytest.mark.parametrize("error", [DeviceMemoryError("full"), DeviceLostError("gone")])
def test_a_device_that_fails_is_no_reason_to_build_again(load: Any, error: EngineError) -> None:
    def open_plan(plan: Any) -> Opened:
        raise error

    with pytest.raises(type(error)):
        load(open_plan)


def test_an_engine_that_computes_something_else_is_neither_kept_nor_used(load: Any, file: Path) -> None:
    seen = []

    def prove(opened: Opened) -> dict[str, Any]:
        seen.append(opened)
        raise EngineError("differs from ONNX Runtime")

    with pytest.raises(EngineError, match="differs from ONNX Runtime"):
        load(prove=prove, builder="TensorRT 11.1.0")
    assert seen[0].is_closed
    assert [path.name for path in file.parent.glob("*.engine")] == [file.name]


def test_an_earlier_build_tells_how_long_the_next_takes(file: Path, manifest: Manifest) -> None:
    assert earlier_seconds(file.with_name("m-0123-ffff.engine")) == 12.5
    assert earlier_seconds(file.with_name("m-4567-ffff.engine")) is None
    name = file_name(manifest, fingerprint())
    assert name == f"made-up-{fingerprint()['model'][:12]}-{digest(fingerprint())}.engine"
