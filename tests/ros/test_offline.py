# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from panoptic_depth_ros.diagnostics import diagnostic_array
from panoptic_depth_ros.engines import Engine
from panoptic_depth_ros.offline import run
from panoptic_depth_ros.outputs import NEEDS_CAMERA, TYPES
from panoptic_depth_ros.recording import (
    Recording,
    RecordingError,
    header_stamp,
    make_header,
    make_message,
    make_stamp,
    typestore,
    write_recording,
)
from panoptic_depth_ros.report import read_report, spread, write_pictures

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
INFO = "sensor_msgs/msg/CameraInfo"
ALL_TOPICS = {f"/panoptic_depth/output/{name}" for name in TYPES}
METRIC_TOPICS = {f"/panoptic_depth/output/{name}" for name in NEEDS_CAMERA}
HEIGHT, WIDTH = 24, 32  # twice the made-up network's
SECOND = 10**9
Message = tuple[str, str, int, Any]


def image(number: int) -> Message:
    """Frame ``number``, taken at that second and recorded a tenth later."""
    data = np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8)
    message = make_message(
        IMAGE,
        header=make_header(number * SECOND, "camera_optical_frame"),
        height=HEIGHT,
        width=WIDTH,
        encoding="rgb8",
        step=3 * WIDTH,
        data=array("B", data.tobytes()),
    )
    return "/camera/image_raw", IMAGE, number * SECOND + SECOND // 10, message


def jpeg(number: int, cut: int = 0) -> Message:
    """The same as a JPEG, of which the last ``cut`` bytes are lost."""
    data = cv2.imencode(".jpg", np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8))[1].tobytes()
    header = make_header(number * SECOND, "camera_optical_frame")
    message = make_message(COMPRESSED, header=header, format="jpeg", data=array("B", data[: len(data) - cut]))
    return "/camera/image_raw/compressed", COMPRESSED, number * SECOND + SECOND // 10, message


def camera_info(second: float, fx: float, height: int = HEIGHT, width: int = WIDTH) -> Message:
    k = np.array([fx, 0, width / 2, 0, fx, height / 2, 0, 0, 1])
    p = np.hstack([k.reshape(3, 3), np.zeros((3, 1))]).ravel()
    message = make_message(INFO, height=height, width=width, distortion_model="plumb_bob", k=k, p=p)
    return "/camera/camera_info", INFO, int(second * SECOND), message


def outputs(out: Path) -> dict[str, list[Any]]:
    """Topic -> its messages in a recording."""
    with Recording(out) as recording:
        decoded: dict[str, list[Any]] = {topic: [] for topic in recording.topics}
        for recorded in recording.messages():
            decoded[recorded.topic].append(recording.decode(recorded))
    return decoded


@pytest.mark.parametrize("sqlite", [True, False])
@pytest.mark.parametrize("picture", [image, jpeg])
def test_every_frame_gets_every_output_under_its_own_stamp(
    write_bag: Callable[..., Path],
    tmp_path: Path,
    engine: Engine,
    sqlite: bool,
    picture: Callable[[int], Message],
) -> None:
    bag = write_bag([camera_info(0.5, 16.0), picture(1), picture(2), picture(3)], sqlite=sqlite)
    progress: list[tuple[int, int]] = []
    warnings: list[str] = []
    run(bag, tmp_path / "out", engine, on_frame=lambda *counts: progress.append(counts), warn=warnings.append)
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert warnings == []
    with Recording(tmp_path / "out") as recording:
        assert set(recording.topics) == ALL_TOPICS | {"/panoptic_depth/output/panoptic_info", "/diagnostics"}
        assert recording.is_latched("/panoptic_depth/output/panoptic_info")
        for topic in ALL_TOPICS:
            recorded = list(recording.messages([topic]))
            assert [header_stamp(message) for message in recorded] == [(1, 0), (2, 0), (3, 0)]
            assert [message.stamp_ns for message in recorded] == [n * SECOND + SECOND // 10 for n in (1, 2, 3)]
            assert recording.decode(recorded[0]).header.frame_id == "camera_optical_frame"


def test_the_outputs_are_those_of_the_engine_at_the_images_size(
    write_bag: Callable[..., Path], tmp_path: Path, engine: Engine
) -> None:
    run(write_bag([camera_info(0, 32.0), image(1)]), tmp_path / "out", engine)
    result = outputs(tmp_path / "out")
    [semantic], [depth] = result["/panoptic_depth/output/semantic"], result["/panoptic_depth/output/depth/image"]
    labels = np.reshape(semantic.data, (HEIGHT, WIDTH))
    assert (labels[:8, 2:] == 1).all()  # the network's four rows of sky
    assert (labels[12:18, 4:10] == 2).all()  # and the left car
    assert (labels[:, :2] == 255).all()
    metres = np.frombuffer(depth.data, np.float32).reshape(HEIGHT, WIDTH)
    assert np.isnan(metres[:8, 2:]).all()
    # fx 32 px is 16 px at network size, twice the 8 px that it learned; its last row says 2 m.
    np.testing.assert_allclose(metres[-1, 4:], 4.0, rtol=1e-5)
    [segments] = result["/panoptic_depth/output/segments"]
    assert list(segments.id) == [1000, 0, 2002, 2001]
    np.testing.assert_allclose(segments.mean_depth, [np.nan, 20, 30, 30])


@pytest.mark.parametrize("second", [0.0, 1.9])
def test_the_first_camera_info_counts_from_the_start_and_a_later_one_from_then_on(
    write_bag: Callable[..., Path], tmp_path: Path, engine: Engine, second: float
) -> None:
    bag = write_bag([image(1), image(2), image(3), camera_info(second, 16.0), camera_info(2.5, 48.0)])
    run(bag, tmp_path / "out", engine)
    infos = outputs(tmp_path / "out")["/panoptic_depth/output/depth/camera_info"]
    assert [info.k[0] for info in infos] == [16.0, 16.0, 48.0]


@pytest.mark.parametrize(
    ("name", "focal_length"), [("image_raw", 16.0), ("image_rect", 20.0), ("image_rect_color", 20.0)]
)
def test_images_that_their_topic_calls_rectified_have_the_camera_of_p(
    write_bag: Callable[..., Path], tmp_path: Path, engine: Engine, name: str, focal_length: float
) -> None:
    info = camera_info(0, 16.0)
    info[3].p[[0, 5]] = 20.0
    _, kind, stamp_ns, message = image(1)
    run(write_bag([info, (f"/camera/{name}", kind, stamp_ns, message)]), tmp_path / "out", engine)
    [depth_info] = outputs(tmp_path / "out")["/panoptic_depth/output/depth/camera_info"]
    assert depth_info.k[0] == focal_length


def test_a_report_reads_the_nodes_own_diagnostics_among_others(
    write_bag: Callable[..., Path], tmp_path: Path, engine: Engine
) -> None:
    bag = write_bag([camera_info(0, 16.0), image(1)])
    run(bag, tmp_path / "out", engine)
    other = diagnostic_array(make_message, make_stamp(0), "camera driver", "usb", b"\0", "fine", {"temperature": "40"})
    with Recording(tmp_path / "out") as ours, write_recording(tmp_path / "mixed") as mixed:
        for recorded in ours.messages():
            mixed.write(recorded.topic, recorded.type_name, recorded.stamp_ns, recorded.data)
        mixed.write("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", 9 * SECOND, other)
    assert read_report(bag, tmp_path / "mixed") == read_report(bag, tmp_path / "out")


def test_a_corrupt_frame_is_left_out_and_the_others_go_on(
    write_bag: Callable[..., Path], tmp_path: Path, engine: Engine
) -> None:
    topic, kind, stamp_ns, message = jpeg(4)
    half = bytes(typestore().serialize_cdr(message, kind))[:100]
    bag = write_bag([camera_info(0.5, 16.0), jpeg(1), jpeg(2, cut=200), jpeg(3), (topic, kind, stamp_ns, half)])
    warnings: list[str] = []
    progress: list[tuple[int, int]] = []
    run(bag, tmp_path / "out", engine, on_frame=lambda *counts: progress.append(counts), warn=warnings.append)
    assert progress[-1] == (4, 4)
    cut, undecodable = warnings
    assert cut.startswith("frame at 2100000000 ns left out: compressed image of format 'jpeg'")
    assert undecodable.startswith("frame at 4100000000 ns left out: recording ")
    with Recording(tmp_path / "out") as recording:
        for topic in ALL_TOPICS:
            assert [header_stamp(message)[0] for message in recording.messages([topic])] == [1, 3]
    report = read_report(bag, tmp_path / "out")
    assert (report.frames_in, report.frames_out, report.failed, report.dropped) == (4, 2, 2, 0)
    assert report.engine == "made-up engine"


@pytest.mark.parametrize(
    ("infos", "words"),
    [
        ([], "no camera_info in the recording"),
        ([camera_info(0.5, 0.0)], "the camera is not calibrated"),
        ([camera_info(0.5, 16.0, height=32)], "has 32x24: another shape"),
    ],
)
def test_without_a_usable_camera_info_only_metric_outputs_are_missing(
    write_bag: Callable[..., Path], tmp_path: Path, engine: Engine, infos: list[Message], words: str
) -> None:
    bag, warnings = write_bag([*infos, image(1), image(2)]), list[str]()
    run(bag, tmp_path / "out", engine, warn=warnings.append)
    result = outputs(tmp_path / "out")
    assert set(result) & ALL_TOPICS == ALL_TOPICS - METRIC_TOPICS
    assert all(len(result[topic]) == 2 for topic in ALL_TOPICS - METRIC_TOPICS)
    assert np.isnan(result["/panoptic_depth/output/segments"][0].mean_depth).all()
    assert len(warnings) == 1  # once, not for every frame
    assert words in warnings[0]


def test_a_camera_that_cannot_be_found_leaves_nothing_behind(
    write_bag: Callable[..., Path], tmp_path: Path, engine: Engine
) -> None:
    bag = write_bag([image(1)])
    with pytest.raises(RecordingError, match="no images on '/other'"):
        run(bag, tmp_path / "out", engine, image_topic="/other")
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]


def test_pictures_of_a_run_show_its_frames(write_bag: Callable[..., Path], tmp_path: Path, engine: Engine) -> None:
    bag = write_bag([camera_info(0.5, 16.0), *(image(n) for n in (1, 2, 3, 4))])
    run(bag, tmp_path / "out", engine)
    paths = write_pictures(bag, tmp_path / "out", tmp_path / "pictures", count=2)
    first, last = (np.asarray(cv2.imread(str(path))) for path in paths)
    camera_panel = np.s_[200:300, 200:400]
    assert np.unique(first[camera_panel]).tolist() == [10]
    assert np.unique(last[camera_panel]).tolist() == [40]
    assert first.shape == last.shape


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (5, None, [0, 1, 2, 3, 4]),
        (5, 9, [0, 1, 2, 3, 4]),
        (5, 3, [0, 2, 4]),
        (100, 4, [0, 33, 66, 99]),
        (5, 1, [0]),
        (0, 5, []),
    ],
)
def test_pictures_are_spread_evenly(total: int, count: int | None, expected: list[int]) -> None:
    assert spread(total, count) == expected
