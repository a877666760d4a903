# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import signal
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from panoptic_depth_ros import demo
from panoptic_depth_ros.cli import main
from panoptic_depth_ros.engines import Engine
from panoptic_depth_ros.manifest import METADATA_KEY, Manifest
from panoptic_depth_ros.recording import Recording, RecordingError, make_header, make_message, write_recording

IMAGE, STRING = "sensor_msgs/msg/Image", "std_msgs/msg/String"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Engine:
    """The engine that every model path opens."""
    monkeypatch.setattr(demo, "open_engine", lambda *_, **__: engine)
    return engine


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def bag(write_bag: Callable[..., Path]) -> Path:
    return write_bag([image(1)])


def image(second: int, encoding: str = "mono8") -> tuple[str, str, int, Any]:
    header = make_header(second * 10**9, "camera")
    message = make_message(
        IMAGE, header=header, height=24, width=32, encoding=encoding, step=32, data=array("B", bytes(768))
    )
    return "/camera/image", IMAGE, second * 10**9, message


def tree(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, with the content of its files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def test_run_writes_the_outputs_and_closes_the_engine(bag: Path, tmp_path: Path, opened: Engine) -> None:
    assert main(["run", str(bag), str(tmp_path / "out"), "--model", "m.onnx"]) == 0
    with Recording(tmp_path / "out") as recording:
        assert recording.counts["/panoptic_depth/output/semantic"] == 1
    assert opened.is_closed  # type: ignore[attr-defined]


def test_a_run_that_can_read_no_image_says_why_leaves_nothing_and_closes_the_engine(
    write_bag: Callable[..., Path], tmp_path: Path, opened: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = write_bag([image(1, "8UC7"), image(2, "8UC9")])
    assert main(["run", str(bag), str(tmp_path / "out"), "--model", "m.onnx"]) == 1
    assert re.search(
        r"recording .*bag: none of 2 images on /camera/image could be read: .*8UC7", capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]
    assert opened.is_closed  # type: ignore[attr-defined]


def test_a_run_that_left_frames_out_is_complete_and_has_exit_code_1(
    write_bag: Callable[..., Path], tmp_path: Path, opened: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = write_bag([image(1, "8UC7"), image(2), image(3)])
    assert main(["run", str(bag), str(tmp_path / "out"), "--model", "m.onnx"]) == 1
    printed = capsys.readouterr()
    assert "complete but for 1 of 3 frames" in printed.err
    assert re.search(r"frames failed\W+1\b", printed.out)
    with Recording(tmp_path / "out") as recording:
        assert recording.counts["/panoptic_depth/output/semantic"] == 2
        assert recording.counts["/diagnostics"] == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "{tmp}/absent", "{tmp}/out"], "recording .*absent: there is no such file or folder"),
        (["run", "{tmp}", "{tmp}/out"], "no metadata.yaml"),
        (["run", "{bag}", "{bag}"], "recording .*bag: exists already"),
        (["run", "{bag}", "{tmp}/again"], r"recording .*again\.unfinished: exists already"),
        (["run", "{bag}", "{tmp}/file/out"], "recording .*out: its folder cannot be made"),
        (["run", "{bag}", "{tmp}/out", "--image", "/other"], "no images on '/other'; image topics: /camera/image"),
    ],
)
def test_a_path_that_does_not_fit_is_one_sentence_and_exit_code_1_before_the_engine_is_loaded(
    bag: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    (tmp_path / "again.unfinished").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(demo, "open_engine", lambda *_, **__: pytest.fail("the engine was loaded first"))
    arguments = [argument.format(tmp=tmp_path, bag=bag) for argument in arguments]
    assert main([*arguments, "--model", "m.onnx"]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(f"panoptic-depth: .*{sentence}.*\n", error)


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_a_model_that_cannot_be_opened_is_named(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    model = tmp_path / "m.onnx"
    if content is not None:
        model.write_bytes(content)
    assert main(["run", str(bag), str(tmp_path / "out"), "--model", str(model)]) == 1
    assert re.fullmatch(r"panoptic-depth: model .*m\.onnx: .*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: command"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "required: bag, out"),
        (["run", "bag"], "required: out"),
        (["play", "bag", "--rate", "0"], "--rate: .*0"),
        (["play", "bag", "--rate", "-1"], "--rate: .*-1"),
        (["play", "bag", "--rate", "nan"], "--rate: .*nan"),
        (["play", "bag", "--rate", "inf"], "--rate: .*inf"),
        (["play", "bag", "--wait", "0"], "--wait: .*0"),
        (["play", "bag", "--rate", "fast"], "--rate: fast is not a number above 0"),
        (["play", "bag", "--delay", "soon"], "--delay: .*soon"),
        (["play", "bag", "--delay", "-1"], "--delay: .*-1"),
        (["play", "bag", "--delay", "nan"], "--delay: .*nan"),
        (["run", "bag", "out", "--speed", "2"], "unrecognized arguments: --speed 2"),
        (["inspect"], "required: file"),
        (["build-engine", "--workspace-gib", "-1"], "--workspace-gib: .*-1"),
        (["build-engine", "--target"], "--target: expected at least one argument"),
    ],
)
def test_arguments_that_cannot_be_are_named_with_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert re.search(words, capsys.readouterr().err)


def test_interruption_is_exit_code_130(bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "open_engine", interrupt)
    assert main(["run", str(bag), str(tmp_path / "out"), "--model", "m.onnx"]) == 130


def test_a_demo_removes_old_results_only_for_a_recording_that_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "recording" / "metadata.yaml"
    old.parent.mkdir()
    old.write_text("of another run")
    assert main(["demo", str(tmp_path / "absent"), "--out", str(tmp_path), "--model", "m.onnx"]) == 1
    assert "absent: there is no such file or folder" in capsys.readouterr().err
    assert old.read_text() == "of another run"


@pytest.mark.parametrize("part", ["", "bag.db3"])
def test_a_demo_does_not_replace_its_own_input(
    write_bag: Callable[..., Path], bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    source = bag.rename(tmp_path / "recording")
    assert main(["demo", str(source / part), "--out", str(tmp_path), "--model", "m.onnx"]) == 1
    assert "the demo would replace it with its results; give another --out" in capsys.readouterr().err
    with Recording(source) as recording:
        assert recording.counts == {"/camera/image": 1}


def test_a_pattern_that_is_none_leaves_no_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rclpy")
    assert main(["record", str(tmp_path / "out"), "--topics", "["]) == 1
    assert "topic pattern '[' is no regular expression" in capsys.readouterr().err
    assert tree(tmp_path) == {}


def test_the_processes_of_a_demo_have_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    answer = tmp_path / "answer"
    program = f"import os, pathlib; pathlib.Path({str(answer)!r}).write_text(os.environ['GLIBC_TUNABLES'])"
    with demo._Processes(Console()) as processes:
        processes.wait_for(processes.start("node", [sys.executable, "-c", program]))
    assert answer.read_text() == "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"


# ---- the demo's results ---------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path, manifest: Manifest) -> Path:
    """An ONNX file's fields 7, the graph, and 14, the metadata; the made-up engine stands for what it computes."""

    def field(number: int, content: bytes) -> bytes:
        size = len(content)
        return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7]) + content

    entry = field(1, METADATA_KEY.encode()) + field(2, manifest.to_json().encode())
    path = tmp_path / "m.onnx"
    path.write_bytes(field(7, b"") + field(14, entry))
    return path


@pytest.fixture
def without_topics(monkeypatch: pytest.MonkeyPatch, opened: Engine) -> None:
    """The demo's frames take the short way, whether ROS 2 is there or not."""

    def run(bag: Path, out: Path, model: Path, rate: float, image_topic: str, console: Any) -> None:
        demo.run_offline(bag, out, model, image_topic, console)

    monkeypatch.setattr(demo, "_run_on_topics", run)


def run_demo(bag: Path, out: Path, model: Path) -> int:
    return main(["demo", str(bag), "--out", str(out), "--model", str(model)])


def test_a_demo_without_the_packages_messages_says_so_before_it_starts_anything(
    bag: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: object())  # as where there is ROS 2
    monkeypatch.setitem(sys.modules, "panoptic_depth.msg", ModuleType("panoptic_depth.msg"))
    monkeypatch.setattr(demo, "_Processes", None)
    assert run_demo(bag, tmp_path / "out", model) == 1
    printed = capsys.readouterr().err
    assert "panoptic_depth/msg/PanopticInfo is not installed: build this package with colcon" in printed
    assert tree(tmp_path / "out") == {}


@pytest.mark.usefixtures("without_topics")
def test_a_demo_replaces_the_results_of_another_and_nothing_else(
    write_bag: Callable[..., Path], tmp_path: Path, model: Path
) -> None:
    out = tmp_path / "out"
    assert run_demo(write_bag([image(n) for n in range(1, 8)], name="long"), out, model) == 0
    assert sorted(tree(out)) == [*(f"frame_{n}.png" for n in range(5)), *RECORDING]
    for name in ("frame_best.png", "frame_0001.png", "notes.txt"):
        (out / name).write_text("mine")
    assert run_demo(write_bag([image(1), image(2)], name="short"), out, model) == 0
    assert sorted(tree(out)) == [
        "frame_0.png",
        "frame_0001.png",
        "frame_1.png",
        "frame_best.png",
        "notes.txt",
        *RECORDING,
    ]
    with Recording(out / "recording") as recording:
        assert recording.counts["/panoptic_depth/output/overlay"] == 2


RECORDING = ["recording", "recording/metadata.yaml", "recording/recording.mcap"]


def own_recording(out: Path, result: Path) -> None:
    result.parent.joinpath("bag").rename(out / "recording")


def own_words_under_the_same_names(out: Path, result: Path) -> None:
    with write_recording(out / "recording") as writer:
        writer.write("/panoptic_depth/output/words", STRING, 1, make_message(STRING, data="x"))
        writer.write("/words", STRING, 1, make_message(STRING, data="mine"))


def notes_in_a_result(out: Path, result: Path) -> None:
    result.rename(out / "recording")
    (out / "recording" / "notes.txt").write_text("mine")


def a_file(out: Path, result: Path) -> None:
    (out / "recording").write_text("mine")


def pictures_alone(out: Path, result: Path) -> None:
    (out / "frame_3.png").write_text("mine")


@pytest.mark.usefixtures("without_topics")
@pytest.mark.parametrize(
    "put", [own_recording, own_words_under_the_same_names, notes_in_a_result, a_file, pictures_alone]
)
def test_a_demo_does_not_touch_what_no_demo_wrote(
    bag: Path,
    write_bag: Callable[..., Path],
    tmp_path: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    put: Callable[[Path, Path], None],
) -> None:
    source, out = write_bag([image(1)], name="source"), tmp_path / "out"
    assert run_demo(source, tmp_path / "first", model) == 0
    (tmp_path / "first" / "recording").rename(tmp_path / "result")
    out.mkdir()
    put(out, tmp_path / "result")
    before = tree(out)
    assert run_demo(source, out, model) == 1
    assert re.search(r"(recording|frame_3\.png): not a demo's result; give another --out", capsys.readouterr().err)
    assert tree(out) == before


@pytest.mark.usefixtures("without_topics")
def test_a_demo_that_fails_keeps_the_results_of_the_last(
    bag: Path,
    write_bag: Callable[..., Path],
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run_demo(bag, out, model) == 0
    before = tree(out)
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"PK\x03\x04 an archive")
    assert run_demo(bag, out, weights) == 1
    assert tree(out) == before
    assert run_demo(write_bag([image(1, "8UC7")], name="unreadable"), out, model) == 1
    assert tree(out) == before

    def fail(*_: object) -> None:
        raise RecordingError("a full disk")

    monkeypatch.setattr(demo, "write_pictures", fail)
    assert run_demo(bag, out, model) == 1
    assert tree(out) == before
    said = capsys.readouterr().err
    assert re.search(r"a full disk\. What this demo recorded is removed; \S+ is left as it was", said)
