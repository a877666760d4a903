# SPDX-License-Identifier: Apache-2.0
"""What ROS messages cost: reading images, writing outputs, and the whole node around an engine that takes no time.

    python benchmarks/messages.py            # needs rclpy and this package's messages (source scripts/env.sh)

"plain" is the obvious way: a list assigned to a data field, a cloud packed point by point.
"""

from __future__ import annotations

import multiprocessing
import os
import struct
import time
from array import array
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.dds import prepare_for_large_messages
from panoptic_depth_ros.manifest import Manifest
from panoptic_depth_ros.maps import OutputMaps
from panoptic_depth_ros.messages import camera_info_message, rgb_from_compressed, rgb_from_image
from panoptic_depth_ros.outputs import DEPTH_CAMERA_INFO, POINTS, SEGMENTS, TYPES, CloudOptions, OutputMessages
from panoptic_depth_ros.pipeline import Pipeline
from panoptic_depth_ros.ros_types import make_message, message_class
from panoptic_depth_ros.taxonomy import Category, Taxonomy
from panoptic_depth_ros.timing import Stopwatch

T = TypeVar("T")

SIZES = ((375, 1242), (1200, 1920))
NETWORK = (256, 512)
ROUNDS = 25
NODE_FRAMES = 40


class InstantEngine:
    """Answers every image with the same forty segments, at once: what remains is the node."""

    description = "no engine"

    def __init__(self) -> None:
        height, width = NETWORK
        categories = tuple(Category(f"category {i}", i >= 11, (10 * i, 255 - 10 * i, 128)) for i in range(19))
        self.manifest = Manifest(
            "instant", "1", "none", height, width, 400.0, 0.5, 80.0, Taxonomy(categories), 18, "none"
        )
        rng = np.random.default_rng(0)
        blocks = rng.integers(1, 41, (height // 32, width // 32), dtype=np.uint8)
        category = np.arange(40, dtype=np.int32) % 19
        self._outputs = {
            "segment_ids": blocks.repeat(32, 0).repeat(32, 1)[None],
            "depth": rng.uniform(2, 70, (1, height, width)).astype(np.float32),
            "segment_category": category[None],
            "segment_score": np.full((1, 40), 0.9, np.float32),
            "segment_area": np.full((1, 40), 1024, np.int32),
            "segment_depth": np.full((1, 40), 20.0, np.float32),
        }

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return self._outputs

    def close(self) -> None:
        pass


def median_ms(function: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The median time of a call, after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:])) * 1e3


def copy_speed() -> float:
    """GB/s of copying 16 MB: what the machine's memory allows any of the figures below."""
    source = np.ones(1 << 24, np.uint8)
    target = source.copy()
    return 2 * source.nbytes / 1e6 / median_ms(lambda: np.copyto(target, source))


def scene(height: int, width: int) -> np.ndarray:
    """An image [H, W, 3] with structure and noise, so that JPEG has work to do."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


def image(encoding: str, pixels: np.ndarray) -> object:
    data = array("B", pixels.tobytes())
    height, width = pixels.shape[:2]
    return make_message(
        "sensor_msgs/msg/Image", height=height, width=width, encoding=encoding, step=pixels.nbytes // height, data=data
    )


def inputs(rgb: np.ndarray) -> dict[str, float]:
    """Milliseconds from a message to an RGB array."""
    jpeg = make_message("sensor_msgs/msg/CompressedImage", format="jpeg")
    jpeg.data = array("B", cv2.imencode(".jpg", rgb)[1].tobytes())
    messages = {
        "rgb8": image("rgb8", rgb),
        "bgr8": image("bgr8", rgb),
        "yuv422_yuy2": image("yuv422_yuy2", rgb[..., :2].copy()),
        "bayer_rggb8": image("bayer_rggb8", rgb[..., 0].copy()),
    }
    times = {name: median_ms(lambda m=message: rgb_from_image(m)) for name, message in messages.items()}
    return {**times, f"JPEG, {len(jpeg.data) // 1000} kB": median_ms(lambda: rgb_from_compressed(jpeg))}


def outputs(rgb: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """Per output: megabytes, milliseconds for ours (maps included) and for the plain way."""
    engine = InstantEngine()
    height, width = rgb.shape[:2]
    camera = PinholeCamera(height, width, 0.8 * width, 0.8 * width, width / 2, height / 2)
    prediction = Pipeline(engine)(rgb, camera, Stopwatch())
    header = make_message("std_msgs/msg/Header")
    builder = OutputMessages(make_message, CloudOptions())
    times = {}
    for name in TYPES:

        def ours(name: str = name) -> object:
            return builder.build(name, header, OutputMaps(prediction, rgb, height, width), camera)

        message = ours()
        size = len(message.data) / 1e6 if hasattr(message, "data") else 0.0
        times[name] = (size, median_ms(ours), plain_ms(name, message))
    return times


def plain_ms(name: str, message: object) -> float:
    """The obvious way to fill a message of the same content; NaN where there is nothing to compare."""
    if name in (SEGMENTS, DEPTH_CAMERA_INFO):
        return float("nan")
    values = np.frombuffer(message.data, np.uint8)  # type: ignore[attr-defined]
    target = message_class(TYPES[name])()
    if name == POINTS:
        points = np.frombuffer(message.data, np.dtype("<f4, <f4, <f4, <f4, <u4, <u4")).tolist()  # type: ignore[attr-defined]

        def assign() -> None:
            packed = b"".join(struct.pack("<ffffII", *point) for point in points)
            target.data = array("B", packed)
    else:

        def assign() -> None:
            target.data = values.tolist()

    return median_ms(assign, rounds=1)


def listen(stop: multiprocessing.Event) -> None:  # type: ignore[valid-type]
    """Another process that takes all outputs, as RViz or a recorder does."""
    import rclpy

    rclpy.init()
    node = rclpy.create_node("listener")
    for name, kind in TYPES.items():
        node.create_subscription(message_class(kind), f"/panoptic_depth/output/{name}", lambda _: None, 1, raw=True)
    while not stop.is_set():  # type: ignore[attr-defined]
        rclpy.spin_once(node, timeout_sec=0.1)


def node_overhead(rgb: np.ndarray) -> dict[str, tuple[float, float]]:
    """p50 and p95 per stage of the real node: images come in over DDS, all outputs go out."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    from panoptic_depth_ros.node import PanopticDepthNode

    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    listener = context.Process(target=listen, args=(stop,), daemon=True)
    listener.start()
    rclpy.init()
    node = PanopticDepthNode(engine=InstantEngine())
    source = rclpy.create_node("camera")
    images = source.create_publisher(message_class("sensor_msgs/msg/Image"), "/panoptic_depth/input/image", 1)
    infos = source.create_publisher(message_class("sensor_msgs/msg/CameraInfo"), "/panoptic_depth/input/camera_info", 1)
    height, width = rgb.shape[:2]
    camera = PinholeCamera(height, width, 0.8 * width, 0.8 * width, width / 2, height / 2)
    message = image("rgb8", rgb)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while node.health.processed < NODE_FRAMES:
        message.header.stamp = source.get_clock().now().to_msg()  # type: ignore[attr-defined]
        infos.publish(camera_info_message(make_message, message.header, camera))  # type: ignore[attr-defined]
        images.publish(message)
        deadline = time.monotonic() + 0.15
        while time.monotonic() < deadline:
            executor.spin_once(timeout_sec=0.02)
    stop.set()
    times = {name: tuple(node.health.times.of(name, 50, 95)) for name in node.health.times.names}
    node.destroy_node()
    source.destroy_node()
    rclpy.shutdown()
    listener.join()
    return times  # type: ignore[return-value]


def in_fresh_process(function: Callable[[np.ndarray], T], rgb: np.ndarray) -> T:
    """Call a function where no earlier measurement has left its mark on the allocator."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, rgb).result()


def main() -> None:
    prepare_for_large_messages()
    console = Console()
    table = Table(
        "",
        *(f"{width}x{height}" for height, width in SIZES),
        title=f"ms; {os.cpu_count()} cores, {copy_speed():.0f} GB/s",
    )
    images = [scene(*size) for size in SIZES]
    for row in zip(*(inputs(rgb).items() for rgb in images), strict=True):
        table.add_row(f"in  {row[0][0]}", *(f"{ms:.2f}" for _, ms in row))
    table.add_section()
    for row in zip(*(outputs(rgb).items() for rgb in images), strict=True):
        cells = [
            f"{ms:.2f} ({size:.1f} MB)" + ("" if plain != plain else f"; plain {plain:.0f}, {plain / ms:.0f} times")
            for _, (size, ms, plain) in row
        ]
        table.add_row(f"out {row[0][0]}", *cells)
    table.add_section()
    stages = [in_fresh_process(node_overhead, rgb) for rgb in images]
    for name in ("decode", "preprocess", "prediction", "messages", "publish"):
        table.add_row(f"node {name}, p50 (p95)", *(f"{s[name][0]:.2f} ({s[name][1]:.2f})" for s in stages))
    own = ("decode", "preprocess", "prediction", "messages")
    table.add_row("node without publish, sum of p50", *(f"{sum(s[n][0] for n in own):.2f}" for s in stages))
    table.add_row("node with publish, sum of p50", *(f"{sum(s[n][0] for n in (*own, 'publish')):.2f}" for s in stages))
    console.print(table)


if __name__ == "__main__":
    main()
