# SPDX-License-Identifier: Apache-2.0
"""PanopticDepthNode: newest image in; segmentation, depth and cloud out.

The executor's thread only stores the newest image in a one-slot mailbox. One worker thread takes it from there, runs
the pipeline and publishes what somebody listens to, under the image's own header. A helper thread takes half of the
work of building the messages.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from panoptic_depth_ros.camera import Calibration, CalibrationError, PinholeCamera, is_rectified_topic
from panoptic_depth_ros.dds import prepare_for_large_messages
from panoptic_depth_ros.diagnostics import OK, WARN, Health, LogThrottle, diagnostic_array
from panoptic_depth_ros.engines import Engine, open_engine
from panoptic_depth_ros.engines.errors import DeviceLostError
from panoptic_depth_ros.interrupt import interrupt_once, was_interrupted
from panoptic_depth_ros.mailbox import Mailbox
from panoptic_depth_ros.manifest import ModelError
from panoptic_depth_ros.maps import OutputMaps
from panoptic_depth_ros.messages import (
    LABEL_INFO,
    PANOPTIC_INFO,
    MessageError,
    calibration_from_info,
    label_info_message,
    panoptic_info_message,
    rgb_from_compressed,
    rgb_from_image,
)
from panoptic_depth_ros.outputs import (
    TYPES,
    OutputMessages,
    computable,
    do_on_two_threads,
)
from panoptic_depth_ros.parameters import NodeParameters, declare
from panoptic_depth_ros.pipeline import Pipeline
from panoptic_depth_ros.ros_types import MissingMessageError, make_message, message_class
from panoptic_depth_ros.share import share_path
from panoptic_depth_ros.timing import Stopwatch

RAW, COMPRESSED = "~/input/image", "~/input/image/compressed"
CAMERA_INFO = "~/input/camera_info"
PANOPTIC_INFO_TOPIC, LABEL_INFO_TOPIC = "~/output/panoptic_info", "~/output/label_info"

# Inputs take what any sensor offers; outputs are reliable, so that every subscriber, RViz too, can connect.
# rclpy writes a topic's overrides into the profile that it is given: give it a copy.
INPUT_QOS = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT)
OUTPUT_QOS = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE)
LATCHED_QOS = QoSProfile(
    depth=1,
    history=HistoryPolicy.KEEP_LAST,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)

_HEALTH_PERIOD_S = 1.0
_QUIET_S = 5.0  # without an input for this long somebody should be told


@dataclass(frozen=True)
class Arrival:
    """An image message as it came in, and how to read it."""

    message: Any
    decode: Callable[[Any], np.ndarray]
    at_ns: int


class PanopticDepthNode(Node):
    """Publishes panoptic segmentation, depth and a labelled cloud for the images of one camera."""

    def __init__(self, engine: Engine | None = None, **node_options: Any) -> None:
        """``engine`` replaces the one that the parameters describe; the rest goes to rclpy's Node.

        Raises:
            ModelError: the model cannot be used.
            ValueError: a parameter is out of range.
        """
        super().__init__("panoptic_depth", **node_options)
        self._mailbox: Mailbox[Arrival] = Mailbox()
        self._worker = threading.Thread(target=self._work, name="worker", daemon=True)
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="messages")
        self._throttle = LogThrottle()
        self.health = Health()
        self._lost: DeviceLostError | None = None
        self._working = False  # from the worker's start to the node's end
        self._calibration: Calibration | None = None
        self._camera_cache: tuple[Any, PinholeCamera | None] = (None, None)
        self._last_stamp: tuple[int, int] | None = None

        self.params: NodeParameters = declare(self)
        self._pipeline = self._open_pipeline(engine)
        self._messages = OutputMessages(make_message, self.params.cloud)
        self._outputs = self._advertise()
        self._inputs = self._subscribe()
        topics = [subscription.topic_name for subscription in self._inputs.values()]
        self._rectified = self.params.image_is_rectified or any(map(is_rectified_topic, topics))
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Steady: with use_sim_time and a paused bag a ROS timer would never fire.
        self.create_timer(_HEALTH_PERIOD_S, self._check_health, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._last_input = time.monotonic()  # loading the model is no silence
        self._working = True
        self._worker.start()

    def destroy_node(self) -> None:
        """Stop the worker, then the node."""
        if self._working:
            self._working = False
            self._mailbox.close()
            self._worker.join()
            self._pipeline.engine.close()
        self._helper.shutdown()
        super().destroy_node()

    # ---- set-up ----

    def _open_pipeline(self, engine: Engine | None) -> Pipeline:
        p = self.params
        engine = engine or open_engine(
            p.model or share_path("model", "compact.onnx"),
            "tensorrt" if p.build_only else p.device,
            p.engine_threads,
            p.engine_precision,
            p.tensorrt_workspace_gib,
            self.get_logger().info,
        )
        pipeline = Pipeline(engine)
        pipeline.warm_up()
        m = engine.manifest
        self.get_logger().info(
            f"model {m.name} {m.version} ({m.width}x{m.height}, {len(m.taxonomy)} categories), {engine.description}"
        )
        return pipeline

    def _advertise(self) -> dict[str, Publisher]:
        publishers = {}
        for name, type_name in TYPES.items():
            if publisher := self._publisher(type_name, f"~/output/{name}", OUTPUT_QOS):
                publishers[name] = publisher
        header = make_message("std_msgs/msg/Header", stamp=self.get_clock().now().to_msg())
        for type_name, topic, build in (
            (PANOPTIC_INFO, PANOPTIC_INFO_TOPIC, panoptic_info_message),
            (LABEL_INFO, LABEL_INFO_TOPIC, label_info_message),
        ):
            if publisher := self._publisher(type_name, topic, LATCHED_QOS):
                publisher.publish(build(make_message, header, self._pipeline.manifest))
        return publishers

    def _publisher(self, type_name: str, topic: str, qos: QoSProfile) -> Publisher | None:
        """A publisher, or None with a line in the log where the message type is not installed."""
        try:
            message_type = message_class(type_name)
        except MissingMessageError as error:
            self.get_logger().warning(f"{topic} is off: {error}")
            return None
        overriding = QoSOverridingOptions.with_default_policies()
        return self.create_publisher(message_type, topic, copy(qos), qos_overriding_options=overriding)

    def _subscribe(self) -> dict[str, Subscription]:
        self._listen(CameraInfo, CAMERA_INFO, self._on_camera_info)
        transport = self.params.image_transport
        subscriptions = {}
        if transport in ("auto", "raw"):
            subscriptions[RAW] = self._listen(Image, RAW, self._on_image)
        if transport in ("auto", "compressed"):
            subscriptions[COMPRESSED] = self._listen(CompressedImage, COMPRESSED, self._on_compressed)
        return subscriptions

    def _listen(self, message_type: Any, topic: str, callback: Callable[[Any], None]) -> Subscription:
        overriding = QoSOverridingOptions.with_default_policies()
        qos = copy(INPUT_QOS)
        return self.create_subscription(message_type, topic, callback, qos, qos_overriding_options=overriding)

    # ---- the executor's thread ----

    def _on_image(self, message: Image) -> None:
        self._accept(Arrival(message, rgb_from_image, time.monotonic_ns()))

    def _on_compressed(self, message: CompressedImage) -> None:
        self._accept(Arrival(message, rgb_from_compressed, time.monotonic_ns()))

    def _accept(self, arrival: Arrival) -> None:
        self._last_input = time.monotonic()
        stamp = arrival.message.header.stamp
        key = (stamp.sec, stamp.nanosec)
        if len(self._inputs) > 1 and key == self._last_stamp and key != (0, 0):
            return  # the same image over the other transport
        self._last_stamp = key
        self._mailbox.put(arrival)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._calibration = calibration_from_info(message)

    def _check_health(self) -> None:
        if self._lost:
            raise self._lost
        self._prefer_raw()
        problem = self.health.problem or self._missing_input()
        if problem:
            self._warn(problem)
        status = diagnostic_array(
            make_message,
            self.get_clock().now().to_msg(),
            name=self.get_fully_qualified_name(),
            hardware_id=self._pipeline.engine.description,
            level=WARN if problem else OK,
            text=problem or "running",
            values=self.health.values(self._mailbox.received, self._mailbox.dropped),
        )
        self._diagnostics.publish(status)

    def _prefer_raw(self) -> None:
        """Where both transports are published, stop paying for the compressed one; take it back when raw ends."""
        if self.params.image_transport != "auto":
            return
        has_raw = self.count_publishers(self._inputs[RAW].topic_name) > 0
        if has_raw and COMPRESSED in self._inputs:
            self.destroy_subscription(self._inputs.pop(COMPRESSED))
        elif not has_raw and COMPRESSED not in self._inputs:
            self._inputs[COMPRESSED] = self._listen(CompressedImage, COMPRESSED, self._on_compressed)

    def _missing_input(self) -> str:
        """What should arrive and does not, with what is known about its publishers."""
        if time.monotonic() - self._last_input < _QUIET_S:
            return ""
        topics = [s.topic_name for s in self._inputs.values()]
        seen = ", ".join(f"{topic}: {self.count_publishers(topic)} publishers" for topic in topics)
        return (
            f"no image for {_QUIET_S:.0f} s ({seen}); check the topic's name, its publisher's QoS and the DDS profile"
        )

    def _warn(self, text: str) -> None:
        if self._throttle.allows(text):
            self.get_logger().warning(text)

    # ---- the worker's thread ----

    def _work(self) -> None:
        while (arrival := self._mailbox.take()) is not None:
            try:
                self._process(arrival)
            except MessageError as error:
                self.health.failed += 1
                self._warn(f"image dropped: {error}")
            except DeviceLostError as error:  # no later frame can do better: let whoever launched the node restart it
                self._lost = error
                return
            except Exception as error:  # a vehicle keeps driving: the frame is lost, the node is not
                if not self.context.ok():
                    continue  # interrupted in the middle of a frame: nothing can be published any more
                self.health.failed += 1
                if self._throttle.allows(repr(error)):
                    self.get_logger().error(f"image dropped by an unexpected error:\n{traceback.format_exc()}")

    def _process(self, arrival: Arrival) -> None:
        wanted = [name for name, publisher in self._outputs.items() if publisher.get_subscription_count() > 0]
        if not wanted:
            self.health.idle += 1
            return
        stopwatch = Stopwatch()
        stopwatch.laps_ms["wait"] = (time.monotonic_ns() - arrival.at_ns) / 1e6
        with stopwatch.lap("decode"):
            rgb = arrival.decode(arrival.message)
        camera = self._camera_of(rgb.shape[0], rgb.shape[1])
        names = computable(wanted, camera)
        if names:
            prediction = self._pipeline(rgb, camera, stopwatch)
            height, width = self._published_size(rgb, prediction.segment_ids)
            maps = OutputMaps(prediction, rgb, height, width)
            published_camera = camera.resized(height, width) if camera else None
            self._publish(names, arrival.message.header, maps, published_camera, stopwatch)
        self.health.frame_done(stopwatch.laps_ms, (time.monotonic_ns() - arrival.at_ns) / 1e6, names)

    def _camera_of(self, height: int, width: int) -> PinholeCamera | None:
        """The camera of images of this size; None, with a reason in the diagnostics, where it is not known."""
        if self._calibration is None:
            self.health.problem = "no camera_info yet: depth and points are withheld, the other outputs run"
            return None
        key = (self._calibration, height, width)
        if self._camera_cache[0] != key:
            self._camera_cache = (key, self._fit_calibration(*key))
        return self._camera_cache[1]

    def _fit_calibration(self, calibration: Calibration, height: int, width: int) -> PinholeCamera | None:
        try:
            camera = calibration.camera(height, width, self._rectified)
        except CalibrationError as error:
            self.health.problem = f"depth and points are withheld: {error}"
            self._warn(self.health.problem)
            return None
        self.health.problem = ""
        return camera

    def _published_size(self, rgb: np.ndarray, segment_ids: np.ndarray) -> tuple[int, int]:
        height, width = (rgb if self.params.output_size == "image" else segment_ids).shape[:2]
        return height, width

    def _publish(
        self,
        names: list[str],
        header: Any,
        maps: OutputMaps,
        camera: PinholeCamera | None,
        stopwatch: Stopwatch,
    ) -> None:
        """Build the named messages on two threads, then publish them in order.

        Publishing what is ready beside the building would take longer: it holds the interpreter lock, and the threads
        of the middleware need the cores for what was published.
        """
        with stopwatch.lap("messages"):
            run = partial(do_on_two_threads, helper=self._helper)
            messages = self._messages.build_all(names, header, maps, camera, run)
        with stopwatch.lap("publish"):
            for name in names:
                self._outputs[name].publish(messages[name])


def main(args: list[str] | None = None) -> int:
    """Run the node until it is interrupted; returns the process's exit code."""
    prepare_for_large_messages()
    try:
        interrupt_once()
        rclpy.init(args=args)
        return _run()
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    finally:
        rclpy.try_shutdown()


def _run() -> int:
    try:
        return _start_and_spin()
    except RuntimeError:
        # What rclpy makes of an interrupt that hits it while it converts a message, and of every call after one: the
        # interrupt has ended its context, even where a library in between kept it to itself.
        if not was_interrupted():
            raise
        return 0


def _start_and_spin() -> int:
    try:
        node = PanopticDepthNode()
    except (ModelError, ValueError, FileNotFoundError) as error:
        print(f"panoptic_depth: {error}", file=sys.stderr)
        return 1
    try:
        if node.params.build_only:
            node.get_logger().info("the engine is ready; the node ends, for build_only is set")
        else:
            rclpy.spin(node)
    except DeviceLostError as error:
        node.get_logger().fatal(f"{error}; the node ends, start it again")
        return 1
    finally:
        node.destroy_node()
    return 0


if __name__ == "__main__":
    sys.exit(main())
