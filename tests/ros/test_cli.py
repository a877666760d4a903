# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import signal
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from panoptic_depth_ros import demo
from panoptic_depth_ros.cli import main
from panoptic_depth_ros.engines import Engine
from panoptic_depth_ros.recording import Recording, make_header, make_message

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
    header = make_header(10**9, "camera")
    image = make_message(
        IMAGE, header=header, height=24, width=32, encoding="mono8", step=32, data=array("B", bytes(768))
    )
    return write_bag([("/camera/image", IMAGE, 10**9, image)])


def test_run_writes_the_outputs_and_closes_the_engine(bag: Path, tmp_path: Path, opened: Engine) -> None:
    assert main(["run", str(bag), str(tmp_path / "out"), "--model", "m.onnx"]) == 0
    with Recording(tmp_path / "out") as recording:
        assert recording.counts["/panoptic_depth/output/semantic"] == 1
    assert opened.is_closed  # type: ignore[attr-defined]


def test_an_engine_is_closed_when_a_run_fails(bag: Path, tmp_path: Path, opened: Engine) -> None:
    assert main(["run", str(bag), str(tmp_path / "out"), "--model", "m.onnx", "--image", "/other"]) == 1
    assert opened.is_closed  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "{tmp}/absent", "{tmp}/out"], "recording .*absent: there is no such file or folder"),
        (["run", "{tmp}", "{tmp}/out"], "no metadata.yaml"),
        (["run", "{bag}", "{bag}"], "recording .*bag: exists already"),
        (["run", "{bag}", "{tmp}/out", "--image", "/other"], "no images on '/other'; image topics: /camera/image"),
    ],
)
def test_a_path_that_does_not_fit_is_one_sentence_and_exit_code_1(
    bag: Path, tmp_path: Path, opened: Engine, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
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
