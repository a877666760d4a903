# SPDX-License-Identifier: Apache-2.0
"""Read and write rosbag2 recordings (sqlite3 and MCAP) without a ROS installation."""

from __future__ import annotations

import os
import shutil
import struct
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.interfaces import (
    Connection,
    Nodetype,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.errors import WriterError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from panoptic_depth_ros.share import share_path

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
_NO_CAMERAS = ("/truth/", "/panoptic_depth/")  # below these are images that were rendered or computed

_VISION_MSGS = {
    "vision_msgs/msg/VisionClass": "uint16 class_id\nstring class_name\n",
    "vision_msgs/msg/LabelInfo": "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n",
}


class RecordingError(ValueError):
    """A recording cannot be read or written; the text names the file, what was expected and the remedy."""


_RESTORE = "restore what is whole with 'mcap recover' or 'ros2 bag reindex', or record it again"


def _common_messages() -> Stores:
    """Those of the ROS release that is sourced, Humble's where none is: sensor_msgs/Range, say, got a field since."""
    distro = os.environ.get("ROS_DISTRO") or "humble"
    # Rolling, and releases that rosbags does not know yet, are nearest to its latest.
    return Stores.__members__.get(f"ROS2_{distro.upper()}", Stores.LATEST)


@cache
def typestore() -> Typestore:
    """ROS 2's common messages, ours, and those of vision_msgs that we publish."""
    store = get_typestore(_common_messages())
    definitions = dict(_VISION_MSGS)
    for name in ("PanopticInfo", "PanopticSegments"):
        definitions[f"panoptic_depth/msg/{name}"] = share_path("msg", f"{name}.msg").read_text()
    types: dict[str, Any] = {}
    for name, text in definitions.items():
        types |= get_types_from_msg(text, name)
    store.register(types)
    return store


# ---- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """A message as it lies in a recording."""

    topic: str
    type_name: str
    stamp_ns: int  # when it was recorded
    data: bytes  # CDR


def header_stamp(recorded: Recorded) -> tuple[int, int]:
    """(seconds, nanoseconds) of the std_msgs/Header that a message starts with, without decoding the rest.

    What a message was cut short of reads as 0, as if nobody had set it.
    """
    # CDR: four bytes of encapsulation, the second of which is 1 for little endian, then the stamp's two integers.
    data = recorded.data[:12].ljust(12, b"\0")
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return seconds, nanoseconds


class Recording:
    """A rosbag2 opened for reading; use it in a ``with`` block."""

    def __init__(self, path: str | Path) -> None:
        """Open a bag: its folder, or one .mcap or .db3 file in it. Raises RecordingError where there is none."""
        self.path = Path(path)
        if not self.path.exists():
            raise RecordingError(f"recording {self.path}: there is no such file or folder")
        folder = self.path if self.path.is_dir() else self.path.parent
        if not (folder / "metadata.yaml").is_file():
            raise RecordingError(
                f"recording {folder}: no metadata.yaml; restore it with 'ros2 bag reindex' or give the bag's folder"
            )
        try:
            self._reader = AnyReader([folder], default_typestore=typestore())
            self._reader.open()
        except Exception as error:  # rosbags' readers raise whatever the files make YAML, SQLite, struct and zstd do
            raise RecordingError(f"recording {folder}: cannot be opened ({error}); {_RESTORE}") from error

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    @property
    def topics(self) -> dict[str, str]:
        """Topic -> type name."""
        return {c.topic: c.msgtype for c in self._reader.connections}

    @property
    def counts(self) -> dict[str, int]:
        """Topic -> number of messages."""
        return {c.topic: c.msgcount for c in self._reader.connections}

    def is_latched(self, topic: str) -> bool:
        """Whether late subscribers of the topic were promised its last message."""
        profiles = [qos for c in self._reader.connections if c.topic == topic for qos in _offered_qos(c)]
        return any(qos.durability == QosDurability.TRANSIENT_LOCAL for qos in profiles)

    def messages(self, topics: Iterable[str] | None = None) -> Iterator[Recorded]:
        """The messages of these topics (None: all) in the order of recording.

        Raises:
            RecordingError: the file is damaged from here on.
        """
        chosen = None if topics is None else set(topics)
        connections = [c for c in self._reader.connections if chosen is None or c.topic in chosen]
        if not connections:
            return
        try:
            for connection, stamp_ns, data in self._reader.messages(connections):
                yield Recorded(connection.topic, connection.msgtype, stamp_ns, bytes(data))
        except Exception as error:  # see __init__
            raise RecordingError(f"recording {self.path}: damaged ({error}); {_RESTORE}") from error

    def decode(self, recorded: Recorded) -> Any:
        """The message, with the fields of its ROS type. Raises RecordingError where its bytes do not fit the type."""
        try:
            return self._reader.deserialize(recorded.data, recorded.type_name)
        except Exception as error:  # rosbags' decoders raise whatever NumPy and struct do
            raise RecordingError(
                f"recording {self.path}: a {recorded.type_name} on {recorded.topic} cannot be decoded ({error})"
            ) from error

    def camera_topics(self, image_topic: str = "", remedy: str = "name one with --image") -> tuple[str, str]:
        """The topics of an image and of its camera_info ('' where there is none).

        Without ``image_topic`` the only camera's beside a camera_info is taken, or else the only camera's. ``remedy``
        is what an error says to do where there are several.
        """
        images = [topic for topic, kind in self.topics.items() if kind in IMAGE_TYPES]
        if image_topic and image_topic not in images:
            raise RecordingError(
                f"recording {self.path}: no images on {image_topic!r}; image topics: {', '.join(images) or 'none'}"
            )
        # An image recorded raw and compressed is one camera's.
        cameras = [t for t in images if not t.endswith("/compressed") or t.removesuffix("/compressed") not in images]
        cameras = _of_cameras(cameras)
        image_topic = image_topic or self._only_camera(cameras, remedy)
        infos = [topic for topic, kind in self.topics.items() if kind == CAMERA_INFO_TYPE]
        if (beside := _info_beside(image_topic)) in infos:
            return image_topic, beside
        # A calibration elsewhere can only be meant for this camera where there is no other.
        infos = _of_cameras(infos)
        return image_topic, infos[0] if len(infos) == len(cameras) == len(_of_cameras([image_topic])) == 1 else ""

    def _only_camera(self, cameras: list[str], remedy: str) -> str:
        calibrated = [topic for topic in cameras if _info_beside(topic) in self.topics]
        if not cameras:
            raise RecordingError(
                f"recording {self.path}: no image topics of a camera; expected one of {', '.join(IMAGE_TYPES)}"
            )
        candidates = calibrated if len(calibrated) == 1 else cameras
        if len(candidates) != 1:
            raise RecordingError(f"recording {self.path}: {len(cameras)} image topics ({', '.join(cameras)}); {remedy}")
        return candidates[0]


def _of_cameras(topics: list[str]) -> list[str]:
    return [topic for topic in topics if not topic.startswith(_NO_CAMERAS)]


def _info_beside(image_topic: str) -> str:
    """Where image_transport looks for an image's calibration: the last part of the name replaced."""
    return f"{image_topic.removesuffix('/compressed').rsplit('/', 1)[0]}/camera_info"


def _offered_qos(connection: Connection) -> list[Qos]:
    return list(getattr(connection.ext, "offered_qos_profiles", []))


# ---- writing --------------------------------------------------------------------------------------------------------

_FOREVER = QosTime(0, 0)


def _qos(latched: bool) -> Qos:
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=1,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        deadline=_FOREVER,
        lifespan=_FOREVER,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=_FOREVER,
        avoid_ros_namespace_conventions=False,
    )


def require_definition(topic: str, type_name: str) -> None:
    """Raise RecordingError where messages of this type cannot be written."""
    if type_name not in typestore().types:
        raise RecordingError(f"topic {topic}: the definition of {type_name} is not known here; leave the topic out")


class RecordingWriter:
    """Writes an MCAP rosbag2 that ``ros2 bag`` reads, with the message definitions inside."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._connections: dict[str, Connection] = {}
        self.counts: dict[str, int] = {}

    def write(self, topic: str, type_name: str, stamp_ns: int, message: Any, *, latched: bool = False) -> None:
        """Add a message: CDR bytes, or an object with the fields of the type. The topic is opened when first used."""
        if topic not in self._connections:
            self._connections[topic] = self._open(topic, type_name, latched)
        is_bytes = isinstance(message, bytes | memoryview)
        data = message if is_bytes else typestore().serialize_cdr(message, type_name)
        self._writer.write(self._connections[topic], stamp_ns, data)
        self.counts[topic] = self.counts.get(topic, 0) + 1

    def _open(self, topic: str, type_name: str, latched: bool) -> Connection:
        require_definition(topic, type_name)
        return self._writer.add_connection(
            topic, type_name, typestore=typestore(), offered_qos_profiles=[_qos(latched)]
        )


def require_new(path: str | Path) -> None:
    """Raise RecordingError where `write_recording` could not begin; nothing is made."""
    path = Path(path).resolve()
    for folder in (path, _unfinished(path)):
        if folder.exists():
            raise RecordingError(f"recording {folder}: exists already; choose another name or remove it")
    above = next(folder for folder in path.parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise RecordingError(
            f"recording {path}: its folder cannot be made ({above} is no folder that can be written to); choose another"
        )


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.unfinished")


@contextmanager
def write_recording(path: str | Path, *, compress: bool = False) -> Iterator[RecordingWriter]:
    """A writer for a new bag folder, complete when the block ends.

    The bag grows as ``path``.unfinished and takes its own name at the end, so a folder with the asked name is always
    whole. After an error or an interruption the messages that were written, if any, stay there, readable.

    Raises:
        RecordingError: the folder exists already, or cannot be written.
    """
    require_new(path)
    path = Path(path).resolve()  # "." has a name, too
    unfinished = _unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordingError(f"recording {path}: its folder cannot be made ({error}); choose another") from error
    writer = Writer(unfinished, version=8, storage_plugin=StoragePlugin.MCAP)
    if compress:
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    try:
        with _opened(writer, unfinished) as opened:
            yield opened
    except (WriterError, OSError) as error:
        kept = f"; what was written lies in {unfinished}" if unfinished.exists() else ""
        raise RecordingError(f"recording {path}: cannot be written ({error}){kept}") from error
    _take_name(unfinished, path)


@contextmanager
def _opened(writer: Writer, folder: Path) -> Iterator[RecordingWriter]:
    """The bag, open and then closed; after an error its folder stays only for the sake of messages."""
    recording = RecordingWriter(writer)
    writer.open()
    try:
        try:
            yield recording
        finally:
            writer.close()  # as a context manager it would leave a bag without metadata after an interruption
    except BaseException:
        if not recording.counts:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _take_name(unfinished: Path, path: Path) -> None:
    """Rename a finished bag: the files inside carry the folder's name, and metadata.yaml names them."""
    for file in unfinished.iterdir():
        file.rename(unfinished / file.name.replace(unfinished.name, path.name))
    metadata = unfinished / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace(unfinished.name, path.name))
    unfinished.rename(path)


# ---- messages without rclpy -----------------------------------------------------------------------------------------

_NUMPY_NAMES = {"byte": "uint8", "char": "uint8"}  # every other number of ROS has NumPy's name


def make_message(type_name: str, **values: Any) -> Any:
    """A message of rosbags' classes (see `panoptic_depth_ros.messages.MakeMessage`)."""
    fields = {name: _default(*kind) for name, kind in typestore().fielddefs[type_name][1] if name not in values}
    fields |= {name: _rosbags_value(value) for name, value in values.items()}
    return typestore().types[type_name](**fields)


def _rosbags_value(value: Any) -> Any:
    """What rosbags wants where rclpy takes an array.array, or bytes for a field of type byte."""
    if isinstance(value, array):
        return np.frombuffer(value, value.typecode)
    return value[0] if isinstance(value, bytes) else value


def _default(kind: Nodetype, description: Any) -> Any:
    """What ROS puts into a field that nobody set; rosbags' classes know no defaults."""
    if kind == Nodetype.NAME:
        return make_message(description)
    if kind == Nodetype.BASE:
        name = description[0]
        return "" if name == "string" else np.zeros(1, _NUMPY_NAMES.get(name, name)).item()
    (element_kind, element), length = description  # of a sequence the length is its upper bound
    count = length if kind == Nodetype.ARRAY else 0
    if element_kind == Nodetype.NAME or element[0] == "string":
        return [_default(element_kind, element) for _ in range(count)]
    return np.zeros(count, _NUMPY_NAMES.get(element[0], element[0]))


def make_stamp(stamp_ns: int) -> Any:
    """A builtin_interfaces/Time."""
    return make_message("builtin_interfaces/msg/Time", sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)


def make_header(stamp_ns: int, frame_id: str) -> Any:
    """A std_msgs/Header."""
    return make_message("std_msgs/msg/Header", stamp=make_stamp(stamp_ns), frame_id=frame_id)
