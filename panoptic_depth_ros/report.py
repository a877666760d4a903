# SPDX-License-Identifier: Apache-2.0
"""What came out of a run, from its two recordings: a table of frames and times, and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.table import Table

from panoptic_depth_ros.cloud import POINT
from panoptic_depth_ros.diagnostics import LATENCY
from panoptic_depth_ros.messages import RGB_DECODERS, rgb_from_image
from panoptic_depth_ros.offline import PREFIX
from panoptic_depth_ros.outputs import DEPTH, OVERLAY, POINTS
from panoptic_depth_ros.recording import Recorded, Recording, RecordingError, header_stamp
from panoptic_depth_ros.visualize import birds_eye, depth_color, mosaic

_STAGES = ("wait", "decode", "preprocess", "engine", "prediction", "messages", "publish", "write")
_PANEL_WIDTH = 640


@dataclass(frozen=True)
class RunReport:
    """The figures of one run."""

    frames_in: int
    frames_out: int
    dropped: int
    failed: int
    seconds: float  # from the first to the last output, by the recording's clock
    engine: str
    times_ms: dict[str, tuple[float, float]]  # stage -> p50, p95

    @property
    def rate_hz(self) -> float:
        return (self.frames_out - 1) / self.seconds if self.frames_out > 1 and self.seconds > 0 else float("nan")


def read_report(bag: Path, out: Path, image_topic: str = "") -> RunReport:
    """The figures of a run, from the recording that went in and the one that came out."""
    with Recording(bag) as recording:
        frames_in = recording.counts[recording.camera_topics(image_topic)[0]]
    with Recording(out) as recording:
        overlay = _output_topic(recording, OVERLAY)
        stamps = [recorded.stamp_ns for recorded in recording.messages([overlay])]
        status = _last_status(recording)
    values = {pair.key: pair.value for pair in status.values}
    return RunReport(
        frames_in=frames_in,
        frames_out=len(stamps),
        dropped=int(values["frames dropped (newer one came)"]),
        failed=int(values["frames failed"]),
        seconds=(stamps[-1] - stamps[0]) / 1e9 if stamps else 0.0,
        engine=status.hardware_id,
        times_ms={
            name: (float(values[f"{name} p50 [ms]"]), float(values[f"{name} p95 [ms]"]))
            for name in (LATENCY, *_STAGES)
            if f"{name} p50 [ms]" in values
        },
    )


def _output_topic(recording: Recording, name: str) -> str:
    for topic in recording.topics:
        if topic.endswith(f"/output/{name}"):
            return topic
    raise RecordingError(f"recording {recording.path}: nothing on .../output/{name}; did the node receive any image?")


def _last_status(recording: Recording) -> Any:
    """The node's last DiagnosticStatus; others may report on the same topic."""
    for recorded in reversed(list(recording.messages(["/diagnostics"]))):
        for status in recording.decode(recorded).status:
            if status.name.endswith(PREFIX):
                return status
    raise RecordingError(f"recording {recording.path}: nothing from {PREFIX} on /diagnostics; did the node run?")


def report_table(report: RunReport, title: str) -> Table:
    """The figures as a table for the terminal."""
    table = Table("", "p50", "p95", title=title, title_justify="left")
    table.add_row("frames in", str(report.frames_in), "")
    table.add_row("frames out", str(report.frames_out), "")
    table.add_row("frames dropped (newer one came)", str(report.dropped), "")
    table.add_row("frames failed", str(report.failed), "")
    table.add_row("frames per second of the recording", f"{report.rate_hz:.1f}", "")
    for name, (p50, p95) in report.times_ms.items():
        label = "latency, arrival to last output (ms)" if name == LATENCY else f"  {name} (ms)"
        table.add_row(label, f"{p50:.1f}", f"{p95:.1f}")
    table.caption = report.engine
    return table


def write_pictures(bag: Path, out: Path, folder: Path, count: int, image_topic: str = "") -> list[Path]:
    """Draw ``count`` frames, spread over the run: input, panoptic overlay, depth, the cloud from above; as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with Recording(bag) as source, Recording(out) as result:
        topic, _ = source.camera_topics(image_topic)
        images = {header_stamp(recorded): recorded for recorded in source.messages([topic])}
        colors = _category_colors(result)
        frames = [(stamp, frame) for stamp, frame in _frames(result).items() if stamp in images]
        for number, index in enumerate(spread(len(frames), count)):
            stamp, frame = frames[index]
            messages = {name: result.decode(recorded) for name, recorded in frame.items()}
            picture = _picture(messages, _rgb(source, images[stamp]), colors)
            paths.append(folder / f"frame_{number}.png")
            cv2.imwrite(str(paths[-1]), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return paths


def spread(total: int, count: int | None) -> list[int]:
    """Up to ``count`` (None: all) of the indices below ``total``, evenly from the first to the last."""
    if count is None or count >= total:
        return list(range(total))
    return [int(index) for index in np.linspace(0, total - 1, count).round()]


def _rgb(recording: Recording, recorded: Recorded) -> np.ndarray:
    return RGB_DECODERS[recorded.type_name](recording.decode(recorded))


def _frames(recording: Recording) -> dict[tuple[int, int], dict[str, Recorded]]:
    """The recorded outputs that a picture shows, together by stamp, for stamps that have an overlay."""
    names = {_output_topic(recording, OVERLAY): OVERLAY}
    names |= {
        topic: name for topic in recording.topics for name in (DEPTH, POINTS) if topic.endswith(f"/output/{name}")
    }
    frames: dict[tuple[int, int], dict[str, Recorded]] = {}
    for recorded in recording.messages(names):
        frames.setdefault(header_stamp(recorded), {})[names[recorded.topic]] = recorded
    return {stamp: frame for stamp, frame in frames.items() if OVERLAY in frame}


def _picture(messages: dict[str, Any], rgb: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Input, overlay, depth and the cloud from above, two by two; metric panels only where there was a camera."""
    panels = [("camera", rgb), ("panoptic overlay", rgb_from_image(messages[OVERLAY]))]
    if DEPTH in messages:
        message = messages[DEPTH]
        depth = np.frombuffer(message.data, np.float32).reshape(message.height, message.width)
        panels.append(("depth, 2 to 80 m", depth_color(depth, 80.0)))
    if POINTS in messages:
        cloud = np.frombuffer(messages[POINTS].data, POINT)
        points = np.stack([cloud["x"], cloud["y"], cloud["z"]], axis=-1)
        height = round(_PANEL_WIDTH * rgb.shape[0] / rgb.shape[1])
        panels.append(("cloud from above", birds_eye(points, colors[cloud["label"]], height, _PANEL_WIDTH)))
    return mosaic(panels, _PANEL_WIDTH)


def _category_colors(recording: Recording) -> np.ndarray:
    """RGB per category id [256, 3] uint8 from the latched PanopticInfo; gray for void."""
    colors = np.full((256, 3), 90, np.uint8)
    for recorded in recording.messages([_output_topic(recording, "panoptic_info")]):
        info = recording.decode(recorded)
        colors[info.category] = np.reshape(info.color, (-1, 3))
    return colors
