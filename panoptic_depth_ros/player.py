# SPDX-License-Identifier: Apache-2.0
"""Publish a recording's messages, and record topics: for machines without ``ros2 bag``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from panoptic_depth_ros.dds import prepare_for_large_messages
from panoptic_depth_ros.recording import (
    Recorded,
    Recording,
    RecordingError,
    RecordingWriter,
    require_definition,
    write_recording,
)
from panoptic_depth_ros.ros_types import MissingMessageError, message_class

_DISCOVERY_PERIOD_S = 0.2
_DELIVERY_S = 5.0  # how long the last messages may take to reach reliable subscribers


class Player:
    """Publishes the messages of one recording under their own topics, bytes as they were recorded."""

    def __init__(self, recording: Recording, rate: float, topics: Iterable[str] | None = None) -> None:
        """``rate``: 1 is the recorded pace, 2 twice as fast. Topics whose type is not installed are left out."""
        if not rate > 0:
            raise ValueError(f"rate is {rate}; expected a number above 0 (1 is the recorded pace)")
        self._recording = recording
        self._rate = rate
        self._node = Node("panoptic_depth_player")
        self._publishers = self._advertise(recording.topics if topics is None else topics)

    def _advertise(self, topics: Iterable[str]) -> dict[str, Publisher]:
        publishers = {}
        for topic in topics:
            if topic not in self._recording.topics:
                raise RecordingError(
                    f"recording {self._recording.path}: no topic {topic!r}; it has {', '.join(self._recording.topics)}"
                )
            try:
                kind = message_class(self._recording.topics[topic])
            except MissingMessageError as error:
                self._node.get_logger().warning(f"{topic} is left out: {error}")
                continue
            latched = self._recording.is_latched(topic)
            publishers[topic] = self._node.create_publisher(kind, topic, _qos(latched, reliable=True, depth=10))
        return publishers

    def wait_for_subscribers(self, topic: str, timeout_s: float) -> bool:
        """Wait until somebody subscribes to one of the topics that are played; False when nobody did in time."""
        if topic not in self._publishers:
            played = ", ".join(self._publishers) or "none"
            raise RecordingError(
                f"cannot wait for a subscriber of {topic!r}: it is not played; topics played: {played}"
            )
        deadline = time.monotonic() + timeout_s
        while self._publishers[topic].get_subscription_count() == 0:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def play(self) -> dict[str, int]:
        """Publish everything once; returns topic -> number of messages."""
        counts = dict.fromkeys(self._publishers, 0)
        first_ns, start = None, time.monotonic()
        for recorded in self._recording.messages(self._publishers):
            first_ns = recorded.stamp_ns if first_ns is None else first_ns
            _sleep_until(start + (recorded.stamp_ns - first_ns) / 1e9 / self._rate)
            self._send(recorded)
            counts[recorded.topic] += 1
        for publisher in self._publishers.values():
            publisher.wait_for_all_acked(Duration(seconds=_DELIVERY_S))
        return counts

    def _send(self, recorded: Recorded) -> None:
        self._publishers[recorded.topic].publish(recorded.data)

    def close(self) -> None:
        self._node.destroy_node()


def _sleep_until(moment: float) -> None:
    while (left := moment - time.monotonic()) > 0:
        time.sleep(min(left, 0.5))  # short naps: a signal is noticed at once


def _qos(latched: bool, reliable: bool, depth: int) -> QoSProfile:
    return QoSProfile(
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


class Recorder:
    """Records every topic whose name matches, from the moment it appears, with the QoS its publishers offer."""

    def __init__(self, writer: RecordingWriter, pattern: re.Pattern[str]) -> None:
        self._writer = writer
        self._pattern = pattern
        self.node = Node("panoptic_depth_recorder")
        self._known: set[str] = set()
        self.node.create_timer(_DISCOVERY_PERIOD_S, self._discover)
        self._discover()

    def _discover(self) -> None:
        for topic, kinds in self.node.get_topic_names_and_types():
            if topic not in self._known and self._pattern.fullmatch(topic):
                offers = self.node.get_publishers_info_by_topic(topic)
                if offers:
                    self._known.add(topic)
                    self._subscribe(topic, kinds[0], [offer.qos_profile for offer in offers])

    def _subscribe(self, topic: str, type_name: str, offered: list[QoSProfile]) -> None:
        try:
            kind = message_class(type_name)
            require_definition(topic, type_name)
        except (MissingMessageError, RecordingError) as error:
            self.node.get_logger().warning(f"{topic} is left out: {error}")
            return
        latched = all(qos.durability == DurabilityPolicy.TRANSIENT_LOCAL for qos in offered)
        reliable = all(qos.reliability == ReliabilityPolicy.RELIABLE for qos in offered)

        def store(data: bytes) -> None:
            now_ns = self.node.get_clock().now().nanoseconds
            self._writer.write(topic, type_name, now_ns, data, latched=latched)

        self.node.create_subscription(kind, topic, store, _qos(latched, reliable, depth=50), raw=True)


@dataclass(frozen=True)
class Start:
    """When playing begins: as soon as ``topic`` ('' for at once) has a subscriber, and ``delay_s`` later."""

    topic: str = ""
    timeout_s: float = 30.0
    delay_s: float = 0.0


def play(path: Path, rate: float, topics: list[str] | None, start: Start) -> dict[str, int]:
    """Play a recording in a process of its own; returns topic -> number of messages published."""
    prepare_for_large_messages()
    with Recording(path) as recording, _ros():
        player = Player(recording, rate, topics)
        try:
            if start.topic and not player.wait_for_subscribers(start.topic, start.timeout_s):
                raise RecordingError(
                    f"nobody subscribed to {start.topic} within {start.timeout_s:g} s; is the node running?"
                )
            time.sleep(start.delay_s)
            return player.play()
        finally:
            player.close()


def wait_for_takers(topics: Iterable[str], timeout_s: float, check: Callable[[], None]) -> None:
    """Wait until each of these topics has a subscriber; ``check`` is called meanwhile and may raise.

    Raises:
        RecordingError: one of them had none in time.
    """
    topics, deadline = list(topics), time.monotonic() + timeout_s
    with _ros():
        node = Node("panoptic_depth_watch")
        while missing := [topic for topic in topics if node.count_subscribers(topic) == 0]:
            check()
            if time.monotonic() > deadline:
                raise RecordingError(f"nobody subscribed to {', '.join(missing)} within {timeout_s:g} s")
            time.sleep(0.1)
        node.destroy_node()


def record(path: Path, pattern: str) -> dict[str, int]:
    """Record until interrupted; returns topic -> number of messages.

    Raises:
        RecordingError: the recording cannot be written.
        ValueError: the pattern is no regular expression.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"topic pattern {pattern!r} is no regular expression: {error}") from error
    prepare_for_large_messages()
    with write_recording(path) as writer, _ros():
        recorder = Recorder(writer, wanted)
        try:
            rclpy.spin(recorder.node)
        except (KeyboardInterrupt, ExternalShutdownException):
            pass
        finally:
            recorder.node.destroy_node()
    return writer.counts


class _ros:
    """rclpy initialized inside a ``with`` block."""

    def __enter__(self) -> None:
        rclpy.init()

    def __exit__(self, *_: Any) -> None:
        rclpy.try_shutdown()
