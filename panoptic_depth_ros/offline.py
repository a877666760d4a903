# SPDX-License-Identifier: Apache-2.0
"""Run a recording's images through a model without topics: every frame, no drops, the same messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from panoptic_depth_ros.camera import Calibration, CalibrationError, PinholeCamera, is_rectified_topic
from panoptic_depth_ros.diagnostics import OK, Health, diagnostic_array
from panoptic_depth_ros.engines import Engine
from panoptic_depth_ros.maps import OutputMaps
from panoptic_depth_ros.messages import (
    PANOPTIC_INFO,
    RGB_DECODERS,
    MessageError,
    calibration_from_info,
    panoptic_info_message,
)
from panoptic_depth_ros.outputs import TYPES, CloudOptions, OutputMessages, computable
from panoptic_depth_ros.pipeline import Pipeline
from panoptic_depth_ros.recording import (
    Recorded,
    Recording,
    RecordingError,
    RecordingWriter,
    make_header,
    make_message,
    make_stamp,
    require_new,
    write_recording,
)
from panoptic_depth_ros.timing import Stopwatch

PREFIX = "/panoptic_depth"


def check(bag: Path, out: Path, image_topic: str = "") -> None:
    """Raise RecordingError where `run` could not begin, for callers whose engine takes its time to load."""
    with Recording(bag) as recording:
        topic, _ = recording.camera_topics(image_topic)
        if not recording.counts[topic]:
            raise RecordingError(f"recording {bag}: no images on {topic}; it is empty")
    require_new(out)


def run(
    bag: Path,
    out: Path,
    engine: Engine,
    image_topic: str = "",
    on_frame: Callable[[int, int], None] = lambda done, total: None,
    warn: Callable[[str], None] = print,
) -> None:
    """Write the outputs for every image of a recording into a new one, under the node's topic names.

    ``on_frame`` is told how many of how many frames are done; ``warn`` what went wrong with single frames.

    Raises:
        RecordingError: the recording cannot be used, or none of its images can be read; or nothing can be written.
    """
    check(bag, out, image_topic)
    with Recording(bag) as recording:
        image_topic, info_topic = recording.camera_topics(image_topic)
        pipeline = Pipeline(engine)
        pipeline.warm_up()
        with write_recording(out) as writer:
            messages = OutputMessages(make_message, CloudOptions())
            frames = _Frames(pipeline, messages, writer, is_rectified_topic(image_topic), warn)
            total, done = recording.counts[image_topic], 0
            for recorded, calibration in _images(recording, image_topic, info_topic):
                frames.process(recording, recorded, calibration)
                done += 1
                on_frame(done, total)
            if not writer.counts:
                raise RecordingError(
                    f"recording {bag}: none of {done} images on {image_topic} could be read: {frames.first_fault}"
                )
            frames.write_health(done)


def _images(recording: Recording, image_topic: str, info_topic: str) -> Iterator[tuple[Recorded, Calibration | None]]:
    """The images, each with the latest calibration; the first info counts from the start, wherever it lies."""
    infos = recording.messages([info_topic]) if info_topic else iter(())
    calibration = next((calibration_from_info(recording.decode(info)) for info in infos), None)
    for recorded in recording.messages([image_topic, info_topic]):
        if recorded.topic == info_topic:
            calibration = calibration_from_info(recording.decode(recorded))
        else:
            yield recorded, calibration


class _Frames:
    """Turns images into output messages in a recording and keeps count.

    Nothing is written before the first image that can be read.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        messages: OutputMessages,
        writer: RecordingWriter,
        rectified: bool,
        warn: Callable[[str], None],
    ) -> None:
        self._pipeline = pipeline
        self._messages = messages
        self._writer = writer
        self._rectified = rectified
        self._warn = warn
        self._health = Health()
        self._last_ns = 0
        self._problem = ""
        self.first_fault = ""

    def _write_info(self, stamp_ns: int) -> None:
        info = panoptic_info_message(make_message, make_header(stamp_ns, ""), self._pipeline.manifest)
        self._writer.write(f"{PREFIX}/output/panoptic_info", PANOPTIC_INFO, stamp_ns, info, latched=True)

    def process(self, recording: Recording, recorded: Recorded, calibration: Calibration | None) -> None:
        started, stopwatch = time.monotonic_ns(), Stopwatch()
        self._last_ns = recorded.stamp_ns
        try:
            with stopwatch.lap("decode"):
                message = recording.decode(recorded)
                rgb = RGB_DECODERS[recorded.type_name](message)
        except (MessageError, RecordingError) as error:
            self._health.failed += 1
            self.first_fault = self.first_fault or str(error)
            self._warn(f"frame at {recorded.stamp_ns} ns left out: {error}")
            return
        if not self._writer.counts:
            self._write_info(recorded.stamp_ns)
        camera = self._camera(calibration, rgb.shape[0], rgb.shape[1])
        maps = OutputMaps(self._pipeline(rgb, camera, stopwatch), rgb, rgb.shape[0], rgb.shape[1])
        names = computable(TYPES, camera)
        for name in names:
            with stopwatch.lap("messages"):
                built = self._messages.build(name, message.header, maps, camera)
            with stopwatch.lap("write"):
                self._write(name, recorded.stamp_ns, built)
        self._health.frame_done(stopwatch.laps_ms, (time.monotonic_ns() - started) / 1e6, names)

    def _write(self, name: str, stamp_ns: int, message: Any) -> None:
        self._writer.write(f"{PREFIX}/output/{name}", TYPES[name], stamp_ns, message)

    def _camera(self, calibration: Calibration | None, height: int, width: int) -> PinholeCamera | None:
        try:
            problem = "no camera_info in the recording" if calibration is None else ""
            camera = calibration.camera(height, width, self._rectified) if calibration else None
        except CalibrationError as error:
            problem, camera = str(error), None
        if problem and problem != self._problem:
            self._warn(f"depth and points are left out: {problem}")
        self._problem = problem
        return camera

    def write_health(self, received: int) -> None:
        """The frames' times, as the node reports them, at the end of the recording."""
        values = self._health.values(received, dropped=0)
        engine = self._pipeline.engine.description
        status = diagnostic_array(make_message, make_stamp(self._last_ns), PREFIX, engine, OK, "offline run", values)
        self._writer.write("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", self._last_ns, status)
