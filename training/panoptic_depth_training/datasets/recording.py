# SPDX-License-Identifier: Apache-2.0
"""Images of a rosbag2 with the depth that a lidar measured, or with the truth that a rendered drive holds."""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.highlevel import AnyReader

from panoptic_depth_ros.camera import Calibration, CalibrationError, PinholeCamera, is_rectified_topic
from panoptic_depth_ros.messages import POINT_CLOUD, RGB_DECODERS, MessageError, calibration_from_info
from panoptic_depth_ros.recording import Recorded, Recording, RecordingError, header_stamp, typestore
from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.files import own_ids_table, panoptic_from
from panoptic_depth_training.datasets.labeled import EXACT, DataError, LabeledImage, Supervision
from panoptic_depth_training.datasets.lidar import FrameTree, depth_from_points, points_from_cloud

TRUTH_TOPICS = ("/truth/panoptic/compressed", "/truth/depth/compressed")  # 16-bit PNGs: panoptic ids, millimeters
OWN_OUTPUTS = "/panoptic_depth/"  # clouds below it are a network's, not a lidar's
MAX_LAG_NS = 60_000_000  # between image and scan: a lidar of 10 Hz has one within 50 ms

_REMEDY = "record the drive again"
LEAVE_OUT = "leave the others out of the recording with ros2 bag convert"


@dataclass(frozen=True)
class MessageTime:
    """Which message of a topic: when it was recorded, and the stamp in its header, both in ns."""

    recorded_ns: int
    stamp_ns: int


@dataclass(frozen=True)
class RecordedFrame:
    """An image, its calibration, and where its truth is: (panoptic ids, depth), or (scan,)."""

    image: MessageTime
    calibration: Calibration
    truth: tuple[MessageTime, ...]


@dataclass
class _Contents:
    """When messages came, by topic, and what is decoded on the first pass."""

    times: dict[str, list[MessageTime]] = field(default_factory=dict)
    calibrations: list[tuple[int, Calibration]] = field(default_factory=list)  # with the stamp from which each holds
    tree: FrameTree = field(default_factory=FrameTree)


class RecordedDrive:
    """The images of a recording's camera that have truth: rendered truth if there is any, else a lidar scan nearby.

    With a lidar only depth is known (sparse, nothing of segments). Images are read when they are asked for; opening
    reads the recording once to learn when its messages came.
    """

    taxonomy = CITYSCAPES

    def __init__(self, path: Path) -> None:
        """Raises DataError where the recording has no images with calibration and truth."""
        self.path = path.resolve()
        self._reader: AnyReader | None = None
        self._reader_pid = 0
        try:
            with Recording(self.path) as recording:
                self._image_topic, info_topic = recording.camera_topics(remedy=f"expected one camera: {LEAVE_OUT}")
                self._truth_topics, has_segments = _truth_topics(recording)
                topics = [self._image_topic, *self._truth_topics]
                self._kinds = {topic: recording.topics[topic] for topic in topics}
                contents = _contents(recording, topics, info_topic)
        except RecordingError as error:
            raise DataError(str(error)) from error
        self.supervision = EXACT if has_segments else Supervision(has_segments=False)
        self._tree = contents.tree
        self._table = own_ids_table(self.taxonomy)
        if not contents.calibrations:
            raise DataError(f"{path}: no camera_info for {self._image_topic}; depth needs one: {_REMEDY} with it")
        max_lag_ns = 0 if has_segments else MAX_LAG_NS
        self.frames = _frames(contents, self._image_topic, self._truth_topics, max_lag_ns)
        if not self.frames:
            raise DataError(
                f"{path}: no image of {self._image_topic} has a message of {' and '.join(self._truth_topics)} within "
                f"{max_lag_ns / 1e6:.0f} ms; set the clocks of the sensors by each other (PTP) and {_REMEDY}"
            )

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> LabeledImage:
        frame = self.frames[index]
        try:
            image = self._message(self._image_topic, frame.image)
            rgb = RGB_DECODERS[self._kinds[self._image_topic]](image)
            height, width = rgb.shape[:2]
            camera = frame.calibration.camera(height, width, is_rectified_topic(self._image_topic))
            truth = [self._message(*entry) for entry in zip(self._truth_topics, frame.truth, strict=True)]
            if self.supervision.has_segments:
                ids, depth = self._rendered_truth((height, width), truth)
            else:
                ids = np.full((height, width), VOID_PANOPTIC_ID, np.uint16)
                depth = self._measured_depth(camera, image.header.frame_id, truth[0])
        except (MessageError, CalibrationError, RecordingError, DataError) as error:
            stamp_s = frame.image.stamp_ns / 1e9
            raise DataError(f"{self.path}: image {index} (stamp {stamp_s:.3f} s): {error}") from error
        return LabeledImage(rgb, ids, depth, camera, name=self.name_of(index))

    def _rendered_truth(self, shape: tuple[int, int], truth: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        ids, millimeters = (_decoded(message, shape) for message in truth)
        known = panoptic_from(ids, self._table, Path(self._truth_topics[0]), _REMEDY)
        return known, millimeters * np.float32(1e-3)

    def _measured_depth(self, camera: PinholeCamera, camera_frame: str, cloud: Any) -> np.ndarray:
        camera_from_lidar = self._tree.transform(camera_frame, cloud.header.frame_id)
        points = points_from_cloud(cloud) @ camera_from_lidar[:3, :3].T + camera_from_lidar[:3, 3]
        return depth_from_points(points, camera)

    def name_of(self, index: int) -> str:
        return f"{self.path.name}/{index:04d}"

    def sequence_of(self, index: int) -> str:
        return self.path.name

    def files_of(self, index: int) -> tuple[Path, ...]:
        return (self.path,)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, so that loader processes can be started with a copy."""
        return self.__dict__ | {"_reader": None}

    def _message(self, topic: str, time: MessageTime) -> Any:
        reader = self._opened()
        connections = [c for c in reader.connections if c.topic == topic]
        try:
            for connection, recorded_ns, data in reader.messages(
                connections, start=time.recorded_ns, stop=time.recorded_ns + 1
            ):
                recorded = Recorded(topic, connection.msgtype, recorded_ns, bytes(data))
                if _stamp_ns(recorded) == time.stamp_ns:
                    return reader.deserialize(data, connection.msgtype)
        except Exception as error:  # rosbags' readers and decoders raise whatever the file makes them
            raise DataError(f"a message of {topic} cannot be read ({error}); {_REMEDY}") from error
        raise DataError(f"a message of {topic} is gone; the recording changed while it was read")

    def _opened(self) -> AnyReader:
        """This process's own reader: a file position is shared by a process and its forks."""
        if self._reader is None or self._reader_pid != os.getpid():
            folder = self.path if self.path.is_dir() else self.path.parent
            self._reader, self._reader_pid = AnyReader([folder], default_typestore=typestore()), os.getpid()
            self._reader.open()
        return self._reader


def _truth_topics(recording: Recording) -> tuple[tuple[str, ...], bool]:
    """The topics that hold the truth, and whether segments are part of it."""
    if set(TRUTH_TOPICS) <= set(recording.topics):
        return TRUTH_TOPICS, True
    clouds = [t for t, kind in recording.topics.items() if kind == POINT_CLOUD and not t.startswith(OWN_OUTPUTS)]
    if len(clouds) != 1:
        raise DataError(
            f"{recording.path}: {len(clouds)} topics with clouds ({', '.join(clouds) or 'none'}); expected one lidar: "
            f"{LEAVE_OUT}"
        )
    return (clouds[0],), False


def _contents(recording: Recording, topics: Sequence[str], info_topic: str) -> _Contents:
    """One pass over the recording."""
    contents = _Contents(times={topic: [] for topic in topics})
    for recorded in recording.messages([*topics, info_topic, "/tf_static"]):
        if recorded.topic == "/tf_static":
            contents.tree.add(recording.decode(recorded))
        elif recorded.topic == info_topic:
            calibration = calibration_from_info(recording.decode(recorded))
            if not contents.calibrations or contents.calibrations[-1][1] != calibration:
                contents.calibrations.append((_stamp_ns(recorded), calibration))
        else:
            contents.times[recorded.topic].append(MessageTime(recorded.stamp_ns, _stamp_ns(recorded)))
    return contents


def _frames(contents: _Contents, image_topic: str, truth_topics: Sequence[str], max_lag_ns: int) -> list[RecordedFrame]:
    """Every image that has a truth message of each topic near its time, in the order of their stamps."""
    calibration_starts = [stamp_ns for stamp_ns, _ in contents.calibrations]
    truths = [sorted(contents.times[topic], key=lambda time: time.stamp_ns) for topic in truth_topics]
    frames = []
    for image in sorted(contents.times[image_topic], key=lambda time: time.stamp_ns):
        found = [_nearest(times, image.stamp_ns, max_lag_ns) for times in truths]
        holds = max(bisect.bisect_right(calibration_starts, image.stamp_ns) - 1, 0)
        truth = tuple(time for time in found if time is not None)
        if len(truth) == len(found):
            frames.append(RecordedFrame(image, contents.calibrations[holds][1], truth))
    return frames


def _nearest(times: Sequence[MessageTime], stamp_ns: int, max_lag_ns: int) -> MessageTime | None:
    """The message whose stamp is nearest, if it is near enough; times are sorted by stamp."""
    at = bisect.bisect_left(times, stamp_ns, key=lambda time: time.stamp_ns)
    around = times[max(at - 1, 0) : at + 1]
    nearest = min(around, key=lambda time: abs(time.stamp_ns - stamp_ns), default=None)
    return nearest if nearest and abs(nearest.stamp_ns - stamp_ns) <= max_lag_ns else None


def _stamp_ns(recorded: Recorded) -> int:
    """The header's stamp, or the time of recording where nobody set one."""
    seconds, nanoseconds = header_stamp(recorded)
    return seconds * 10**9 + nanoseconds or recorded.stamp_ns


def _decoded(message: Any, shape: tuple[int, int]) -> np.ndarray:
    """The 16-bit map [H, W] in a sensor_msgs/CompressedImage."""
    image = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16 or image.shape != shape:
        found = "unreadable" if image is None else f"{image.dtype} {image.shape}"
        raise DataError(f"a truth image ({message.format}) is {found}; expected uint16 {shape}: {_REMEDY}")
    return image
