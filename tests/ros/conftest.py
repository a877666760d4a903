# SPDX-License-Identifier: Apache-2.0
"""A small world for the runtime's tests: four categories, a made-up engine, recordings of a few frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from panoptic_depth_ros import recording, ros_types
from panoptic_depth_ros.manifest import Manifest
from panoptic_depth_ros.messages import MakeMessage
from panoptic_depth_ros.prediction import Prediction, SegmentTable, number_instances
from panoptic_depth_ros.preprocess import Placement
from panoptic_depth_ros.taxonomy import Category, Taxonomy

ROAD, SKY, CAR, PERSON = range(4)
HEIGHT, WIDTH = 12, 16  # of the made-up network
STAMP_NS = 1_700_000_000_123_456_789
FRAME_ID = "camera_optical_frame"


@pytest.fixture(scope="session")
def taxonomy() -> Taxonomy:
    """0 road and 1 sky are stuff, and sky has no depth; 2 car and 3 person are things."""
    return Taxonomy(
        (
            Category("road", False, (128, 64, 128)),
            Category("sky", False, (70, 130, 180), has_depth=False),
            Category("car", True, (0, 0, 142)),
            Category("person", True, (220, 20, 60)),
        )
    )


@pytest.fixture(scope="session")
def manifest(taxonomy: Taxonomy) -> Manifest:
    """A network of 12 x 16 px that learned depth at a focal length of 8 px."""
    return Manifest(
        name="made-up",
        version="1.2.3",
        preset="compact",
        height=HEIGHT,
        width=WIDTH,
        focal_length_px=8.0,
        min_depth_m=0.5,
        max_depth_m=80.0,
        taxonomy=taxonomy,
        opset=17,
        digest="0123abcd",
        scores={"pq on nothing": 0.25},
    )


@pytest.fixture(scope="session")
def predict_segments(taxonomy: Taxonomy) -> Callable[..., Prediction]:
    """Makes a prediction of segment ids [h, w] and depth [h, w] or None; segment k has categories[k - 1]."""

    def make(
        segment_ids: np.ndarray,
        depth: np.ndarray | None,
        categories: Sequence[int],
        scores: Sequence[float] | None = None,
    ) -> Prediction:
        segment_ids = np.asarray(segment_ids, np.uint8)
        category_id = np.array(categories, np.int32)
        score = np.full(len(category_id), 0.5, np.float32) if scores is None else np.array(scores, np.float32)
        mean_depth = np.full(len(category_id), np.nan, np.float32)
        if depth is not None:
            depth = np.asarray(depth, np.float32)
            for row in range(len(category_id)):
                if (segment_ids == row + 1).any():
                    mean_depth[row] = depth[segment_ids == row + 1].mean()
        table = SegmentTable(
            category_id=category_id,
            instance=number_instances(category_id, score, taxonomy),
            score=score,
            area=np.array([(segment_ids == row + 1).sum() for row in range(len(category_id))], np.int32),
            mean_depth=mean_depth,
        )
        height, width = segment_ids.shape
        placement = Placement(height, width, 0, 0, height, width)
        return Prediction(taxonomy, placement, segment_ids, depth, table)

    return make


class MadeUpEngine:
    """Sees the same on every image: sky above, road below, and on it two cars of which the right one is surer."""

    description = "made-up engine"

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.images: list[np.ndarray] = []
        self.is_closed = False

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        assert images.shape == (1, HEIGHT, WIDTH, 3)
        assert images.dtype == np.uint8
        self.images.append(images)
        ids = np.full((1, HEIGHT, WIDTH), 2, np.uint8)
        ids[:, :4] = 1
        ids[:, 6:9, 2:5], ids[:, 6:9, 10:14] = 3, 4
        ids[:, :, 0] = 0  # a column of void
        depth = np.broadcast_to(np.linspace(40, 2, HEIGHT, dtype=np.float32)[:, None], (HEIGHT, WIDTH))
        areas = [int((ids == k).sum()) for k in range(1, 6)]
        return {
            "segment_ids": ids,
            "depth": depth[None].copy(),
            "segment_category": np.array([[SKY, ROAD, CAR, CAR, 0]], np.int32),
            "segment_score": np.array([[0.9, 0.8, 0.6, 0.7, 0.0]], np.float32),
            "segment_area": np.array([areas], np.int32),
            "segment_depth": np.array([[30.0, 10.0, 15.0, 15.0, 0.0]], np.float32),
        }

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def engine(manifest: Manifest) -> MadeUpEngine:
    return MadeUpEngine(manifest)


@pytest.fixture(params=["rosbags", "rclpy"])
def make(request: pytest.FixtureRequest) -> MakeMessage:
    """Makes messages of rosbags' classes, then of rclpy's."""
    if request.param == "rosbags":
        return recording.make_message
    pytest.importorskip("rclpy")
    pytest.importorskip("panoptic_depth.msg", reason="needs the built messages; see scripts/build.sh")
    return ros_types.make_message


@pytest.fixture
def header(make: MakeMessage) -> Any:
    stamp = make("builtin_interfaces/msg/Time", sec=STAMP_NS // 10**9, nanosec=STAMP_NS % 10**9)
    return make("std_msgs/msg/Header", stamp=stamp, frame_id=FRAME_ID)


@pytest.fixture
def over_the_wire(make: MakeMessage) -> Callable[[Any, str], Any]:
    """Serializes a message as its maker does and reads it back with the other library, if both are there."""

    def send(message: Any, type_name: str) -> Any:
        if make is ros_types.make_message:
            from rclpy.serialization import serialize_message

            return recording.typestore().deserialize_cdr(serialize_message(message), type_name)
        data = bytes(recording.typestore().serialize_cdr(message, type_name))
        try:
            kind = ros_types.message_class(type_name)
        except ros_types.MissingMessageError:
            return recording.typestore().deserialize_cdr(data, type_name)
        from rclpy.serialization import deserialize_message

        return deserialize_message(data, kind)

    return send


@pytest.fixture
def write_bag(tmp_path: Path) -> Callable[..., Path]:
    """Writes a bag of (topic, type name, stamp in ns, message or its bytes) with rosbags itself, sqlite3 or MCAP."""

    def write(
        messages: Sequence[tuple[str, str, int, Any]], *, sqlite: bool = True, compress: bool = False, name: str = "bag"
    ) -> Path:
        store, path, connections = recording.typestore(), tmp_path / name, {}
        storage = StoragePlugin.SQLITE3 if sqlite else StoragePlugin.MCAP
        writer = Writer(path, version=8, storage_plugin=storage)
        if compress:
            mode = CompressionMode.MESSAGE if sqlite else CompressionMode.STORAGE
            writer.set_compression(mode, CompressionFormat.ZSTD)
        with writer:
            for topic, type_name, stamp_ns, message in messages:
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, type_name, typestore=store)
                data = message if isinstance(message, bytes) else store.serialize_cdr(message, type_name)
                writer.write(connections[topic], stamp_ns, data)
        return path

    return write
