# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from panoptic_depth_ros.manifest import Manifest
from panoptic_depth_ros.messages import PANOPTIC_INFO, PANOPTIC_SEGMENTS, panoptic_info_message, segments_message
from panoptic_depth_ros.recording import (
    Recorded,
    Recording,
    RecordingError,
    header_stamp,
    make_header,
    make_message,
    typestore,
    write_recording,
)
from panoptic_depth_ros.segments import SegmentSummary

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
INFO, STRING = "sensor_msgs/msg/CameraInfo", "std_msgs/msg/String"

Message = tuple[str, str, int, Any]


def text(topic: str, stamp_ns: int, words: str) -> Message:
    return topic, STRING, stamp_ns, make_message(STRING, data=words)


def empty(topic: str, type_name: str) -> Message:
    return topic, type_name, 1, make_message(type_name)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("sqlite", [True, False])
def test_a_bag_is_read_in_the_order_of_recording(write_bag: Callable[..., Path], sqlite: bool, compress: bool) -> None:
    messages = [text("/b", 30, "third"), text("/a", 10, "first"), text("/b", 20, "second"), text("/c", 25, "other")]
    path = write_bag(messages, sqlite=sqlite, compress=compress)
    with Recording(path) as recording:
        assert recording.topics == {"/a": STRING, "/b": STRING, "/c": STRING}
        assert recording.counts == {"/a": 1, "/b": 2, "/c": 1}
        read = list(recording.messages(["/a", "/b"]))
        assert [(m.topic, m.stamp_ns, recording.decode(m).data) for m in read] == [
            ("/a", 10, "first"),
            ("/b", 20, "second"),
            ("/b", 30, "third"),
        ]
        assert len(list(recording.messages())) == 4
        assert list(recording.messages(["/absent"])) == []
        assert list(recording.messages([])) == []


@pytest.mark.parametrize(("sqlite", "suffix"), [(True, "*.db3"), (False, "*.mcap")])
def test_a_bag_may_be_named_by_its_file(write_bag: Callable[..., Path], sqlite: bool, suffix: str) -> None:
    [file] = write_bag([text("/a", 1, "x")], sqlite=sqlite).glob(suffix)
    with Recording(file) as recording:
        assert recording.counts == {"/a": 1}


def test_a_path_without_a_bag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="absent: there is no such file or folder"):
        Recording(tmp_path / "absent")
    with pytest.raises(RecordingError, match=r"no metadata.yaml; restore it with 'ros2 bag reindex'"):
        Recording(tmp_path)


@pytest.mark.parametrize("damage", ["metadata.yaml", "*.mcap", "*.db3"])
def test_a_damaged_bag_is_refused(write_bag: Callable[..., Path], damage: str) -> None:
    path = write_bag([text("/a", 1, "x")], sqlite=damage == "*.db3")
    [file] = path.glob(damage)
    for content in (file.read_bytes()[: file.stat().st_size // 2], b"", b"something else entirely" * 9):
        file.write_bytes(content)
        with pytest.raises(RecordingError, match="bag: cannot be opened"):
            Recording(path)


def test_a_bag_whose_file_is_gone_is_refused(write_bag: Callable[..., Path]) -> None:
    path = write_bag([text("/a", 1, "x")], sqlite=False)
    next(path.glob("*.mcap")).unlink()
    with pytest.raises(RecordingError, match="bag: cannot be opened"):
        Recording(path)


def test_bytes_that_do_not_fit_their_type_are_refused_one_by_one(write_bag: Callable[..., Path]) -> None:
    whole = bytes(typestore().serialize_cdr(make_message(IMAGE, data=array("B", bytes(100))), IMAGE))
    path = write_bag([("/image", IMAGE, 1, whole[:50]), ("/image", IMAGE, 2, whole)])
    with Recording(path) as recording:
        cut, good = recording.messages()
        with pytest.raises(RecordingError, match="a sensor_msgs/msg/Image on /image cannot be decoded"):
            recording.decode(cut)
        assert len(recording.decode(good).data) == 100


@pytest.mark.parametrize("stamp_ns", [0, 1, 1_700_000_000_987_654_321])
def test_a_stamp_is_read_without_decoding_the_message(write_bag: Callable[..., Path], stamp_ns: int) -> None:
    image = make_message(IMAGE, header=make_header(stamp_ns, "a long frame name"), data=array("B", bytes(9)))
    with Recording(write_bag([("/image", IMAGE, 5, image)])) as recording:
        [recorded] = recording.messages()
    assert header_stamp(recorded) == divmod(stamp_ns, 10**9)
    # The same in big endian CDR, which the second byte announces.
    turned = b"\x00\x00\x00\x00" + recorded.data[4:8][::-1] + recorded.data[8:12][::-1]
    assert header_stamp(replace(recorded, data=turned)) == divmod(stamp_ns, 10**9)


@pytest.mark.parametrize(("length", "expected"), [(0, (0, 0)), (4, (0, 0)), (8, (9, 0)), (12, (9, 5))])
def test_a_stamp_that_was_cut_off_reads_as_zero(length: int, expected: tuple[int, int]) -> None:
    whole = bytes(typestore().serialize_cdr(make_message(IMAGE, header=make_header(9 * 10**9 + 5, "")), IMAGE))
    assert header_stamp(Recorded("/image", IMAGE, 1, whole[:length])) == expected


def test_a_bag_that_is_damaged_in_the_middle_is_named_when_it_gets_there(tmp_path: Path) -> None:
    with write_recording(tmp_path / "run", compress=True) as writer:
        for number in range(3):
            data = np.random.default_rng(number).integers(0, 4, 1 << 20, np.uint8)  # compressible, so damage shows
            message = make_message(IMAGE, data=data)
            writer.write("/image", IMAGE, number + 1, message)
    file = tmp_path / "run" / "run.mcap"
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 1000] = bytes(1000)
    file.write_bytes(content)
    with Recording(tmp_path / "run") as recording, pytest.raises(RecordingError, match=r"run: damaged .*mcap recover"):
        list(recording.messages())


# ---- which camera ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topics", "asked", "expected"),
    [
        ({"/cam/image_raw": IMAGE, "/cam/camera_info": INFO}, "", ("/cam/image_raw", "/cam/camera_info")),
        (
            {"/cam/image/compressed": COMPRESSED, "/cam/camera_info": INFO},
            "",
            ("/cam/image/compressed", "/cam/camera_info"),
        ),
        ({"/cam/image": IMAGE}, "", ("/cam/image", "")),
        ({"/cam/image": IMAGE, "/elsewhere/info": INFO}, "", ("/cam/image", "/elsewhere/info")),
        ({"/cam/image": IMAGE, "/a/info": INFO, "/b/info": INFO}, "", ("/cam/image", "")),
        # of two images the one beside a camera_info
        ({"/map": IMAGE, "/cam/image": IMAGE, "/cam/camera_info": INFO}, "", ("/cam/image", "/cam/camera_info")),
        # one camera, recorded raw and compressed
        (
            {"/cam/image": IMAGE, "/cam/image/compressed": COMPRESSED, "/cam/camera_info": INFO},
            "",
            ("/cam/image", "/cam/camera_info"),
        ),
        # what was rendered, or computed from the images, comes from no camera
        (
            {"/cam/image/compressed": COMPRESSED, "/cam/camera_info": INFO, "/truth/depth/compressed": COMPRESSED},
            "",
            ("/cam/image/compressed", "/cam/camera_info"),
        ),
        ({"/cam/image": IMAGE, "/truth/panoptic/compressed": COMPRESSED}, "", ("/cam/image", "")),
        (
            {
                "/cam/image": IMAGE,
                "/elsewhere/info": INFO,
                "/panoptic_depth/output/depth/image": IMAGE,
                "/panoptic_depth/output/depth/camera_info": INFO,
            },
            "",
            ("/cam/image", "/elsewhere/info"),
        ),
        # unless they are asked for
        (
            {
                "/cam/image": IMAGE,
                "/panoptic_depth/output/depth/image": IMAGE,
                "/panoptic_depth/output/depth/camera_info": INFO,
            },
            "/panoptic_depth/output/depth/image",
            ("/panoptic_depth/output/depth/image", "/panoptic_depth/output/depth/camera_info"),
        ),
        (
            {"/cam/image": IMAGE, "/elsewhere/info": INFO, "/panoptic_depth/output/overlay": IMAGE},
            "/panoptic_depth/output/overlay",
            ("/panoptic_depth/output/overlay", ""),
        ),
        # one camera, recorded raw and compressed, and its calibration elsewhere
        (
            {"/cam/image": IMAGE, "/cam/image/compressed": COMPRESSED, "/elsewhere/info": INFO},
            "",
            ("/cam/image", "/elsewhere/info"),
        ),
        # another camera's calibration is none
        ({"/l/image": IMAGE, "/l/camera_info": INFO, "/r/image": IMAGE}, "/r/image", ("/r/image", "")),
        # of two cameras the one that was asked for
        (
            {"/l/image": IMAGE, "/l/camera_info": INFO, "/r/image": IMAGE, "/r/camera_info": INFO},
            "/r/image",
            ("/r/image", "/r/camera_info"),
        ),
    ],
)
def test_an_image_topic_and_its_camera_info_are_found(
    write_bag: Callable[..., Path], topics: dict[str, str], asked: str, expected: tuple[str, str]
) -> None:
    with Recording(write_bag([empty(topic, kind) for topic, kind in topics.items()])) as recording:
        assert recording.camera_topics(asked) == expected


@pytest.mark.parametrize(
    ("topics", "asked", "words"),
    [
        ({"/a/image": IMAGE, "/b/image": IMAGE}, "", r"2 image topics \(/a/image, /b/image\); name one with --image"),
        (
            {"/a/image": IMAGE, "/b/image": IMAGE, "/truth/depth": IMAGE, "/b/image/compressed": COMPRESSED},
            "",
            r"2 image topics \(/a/image, /b/image\); name one",
        ),
        ({"/words": STRING}, "", "no image topics of a camera; expected one of sensor_msgs/msg/Image"),
        ({"/truth/depth": IMAGE}, "", "no image topics of a camera"),
        ({"/a/image": IMAGE}, "/b/image", "no images on '/b/image'; image topics: /a/image"),
        ({"/words": STRING}, "/words", "no images on '/words'; image topics: none"),
    ],
)
def test_a_camera_that_is_not_clear_is_asked_for(
    write_bag: Callable[..., Path], topics: dict[str, str], asked: str, words: str
) -> None:
    with (
        Recording(write_bag([empty(topic, kind) for topic, kind in topics.items()])) as recording,
        pytest.raises(RecordingError, match=words),
    ):
        recording.camera_topics(asked)


# ---- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["run", "run [1] of *", "a.b"])
def test_what_is_written_is_read(tmp_path: Path, name: str, compress: bool) -> None:
    path = tmp_path / "new" / "folders" / name
    with write_recording(path, compress=compress) as writer:
        writer.write("/status", STRING, 5, make_message(STRING, data="latched"), latched=True)
        writer.write("/words", STRING, 6, make_message(STRING, data="object"))
        writer.write("/words", STRING, 7, bytes(typestore().serialize_cdr(make_message(STRING, data="bytes"), STRING)))
        assert writer.counts == {"/status": 1, "/words": 2}
    assert [entry.name for entry in path.parent.iterdir()] == [name]
    assert sorted(entry.name for entry in path.iterdir()) == sorted(["metadata.yaml", f"{name}.mcap"])
    with Recording(path) as recording:
        assert [recording.decode(m).data for m in recording.messages()] == ["latched", "object", "bytes"]
        assert recording.is_latched("/status")
        assert not recording.is_latched("/words")


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    with pytest.raises(RecordingError, match="mine: exists already"), write_recording(tmp_path / "mine"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingError, match=r"file/run: its folder cannot be made"):
        write_recording(tmp_path / "file" / "run").__enter__()


def test_the_current_folder_is_an_existing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecordingError, match=f"{tmp_path.name}: exists already"):
        write_recording(".").__enter__()


def test_an_unfinished_bag_never_has_the_asked_name(tmp_path: Path) -> None:
    path = tmp_path / "run"

    def write_and_fail() -> None:
        with write_recording(path) as writer:
            writer.write("/words", STRING, 6, make_message(STRING, data="x"))
            assert not path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert not path.exists()
    with Recording(tmp_path / "run.unfinished") as recording:
        assert [recording.decode(m).data for m in recording.messages()] == ["x"]
    with pytest.raises(RecordingError, match=r"run\.unfinished: exists already"):
        write_and_fail()


def test_an_error_before_the_first_message_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), write_recording(tmp_path / "run"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("messages", [0, 1])
def test_an_error_names_what_was_written_where_there_is_any(tmp_path: Path, messages: int) -> None:
    def write_and_fail() -> None:
        with write_recording(tmp_path / "run") as writer:
            for number in range(messages):
                writer.write("/words", STRING, number, make_message(STRING, data="x"))
            raise OSError("disk full")

    with pytest.raises(RecordingError, match=r"run: cannot be written \(disk full\)") as error:
        write_and_fail()
    unfinished = tmp_path / "run.unfinished"
    assert (f"what was written lies in {unfinished}" in str(error.value)) is unfinished.exists() is bool(messages)


def test_a_type_without_a_definition_is_refused_by_topic(tmp_path: Path) -> None:
    with (
        pytest.raises(RecordingError, match="topic /x: the definition of acme_msgs/msg/Anvil is not known"),
        write_recording(tmp_path / "run") as writer,
    ):
        writer.write("/x", "acme_msgs/msg/Anvil", 1, b"")


def test_a_bag_explains_our_messages_to_readers_that_never_heard_of_them(tmp_path: Path, manifest: Manifest) -> None:
    header = make_header(5, "camera")
    summary = SegmentSummary(
        panoptic_id=np.array([3002]),
        category_id=np.array([3]),
        is_thing=np.array([True]),
        score=np.array([0.5]),
        area=np.array([9]),
        box=np.array([[1, 2, 3, 4]]),
        mean_depth=np.array([7.5]),
        centroid=np.array([[1.0, 2.0, 3.0]]),
    )
    with write_recording(tmp_path / "run") as writer:
        writer.write("/info", PANOPTIC_INFO, 5, panoptic_info_message(make_message, header, manifest))
        writer.write("/segments", PANOPTIC_SEGMENTS, 6, segments_message(make_message, header, summary))
    with AnyReader([tmp_path / "run"]) as reader:  # no typestore of ours: what the bag says must do
        decoded: list[Any] = [reader.deserialize(data, c.msgtype) for c, _, data in reader.messages()]
    info, segments = decoded
    assert info.name == ["road", "sky", "car", "person"]
    assert info.label_divisor == 1000
    assert (list(segments.id), list(segments.score), list(segments.area)) == ([3002], [0.5], [9])


@pytest.mark.parametrize(
    ("distro", "has_variance"),
    [("", False), ("humble", False), ("jazzy", True), ("kilted", True), ("rolling", True), ("a_later_one", True)],
)
def test_messages_are_written_as_the_sourced_release_defines_them(
    monkeypatch: pytest.MonkeyPatch, distro: str, has_variance: bool
) -> None:
    monkeypatch.setenv("ROS_DISTRO", distro)
    store = typestore.__wrapped__()
    names = [name for name, _ in store.fielddefs["sensor_msgs/msg/Range"][1]]  # variance came with Iron
    assert ("variance" in names) == has_variance
    assert {PANOPTIC_INFO, PANOPTIC_SEGMENTS, "vision_msgs/msg/LabelInfo"} <= store.types.keys()
