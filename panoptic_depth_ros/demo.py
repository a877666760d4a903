# SPDX-License-Identifier: Apache-2.0
"""The main job from end to end: a recording is played on topics, the node runs, a recorder keeps what comes out.

Player, node and recorder are three processes that meet only through ROS 2. Where there is no ROS 2, the same recording
runs offline.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from panoptic_depth_ros import huge_pages
from panoptic_depth_ros.engines import open_engine
from panoptic_depth_ros.manifest import read_manifest
from panoptic_depth_ros.messages import PANOPTIC_INFO
from panoptic_depth_ros.offline import PREFIX, check, run
from panoptic_depth_ros.outputs import SEGMENTS, TYPES
from panoptic_depth_ros.recording import Recording, RecordingError
from panoptic_depth_ros.report import read_report, report_table, write_pictures
from panoptic_depth_ros.ros_types import message_class

_READY_S = 60.0
_QUIET_S = 2.0
_PICTURES = 5
_DIAGNOSTICS = "/diagnostics"


def demo(bag: Path, out: Path, model: Path, rate: float, image_topic: str, console: Console) -> None:
    """Run the demo; leaves ``out``/recording (a rosbag2) and ``out``/frame_N.png, in place of those of another demo.

    Until the new results are complete, those of the other demo stay where they are.

    Raises:
        RecordingError: the recording cannot be used, ``out`` holds what no demo wrote, or one of the processes failed.
        ModelError: the model cannot be used.
        MissingMessageError: there is ROS 2, but not this package's messages.
    """
    with Recording(bag) as source:
        source.camera_topics(image_topic)
    recording = out / "recording"
    if recording.resolve() in (bag.resolve(), *bag.resolve().parents):
        raise RecordingError(f"recording {bag}: the demo would replace it with its results; give another --out")
    read_manifest(model)
    _require_replaceable(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unfinished_", dir=out) as folder:
        fresh = Path(folder) / "recording"
        try:
            if importlib.util.find_spec("rclpy") is None:
                console.print("no ROS 2 here (rclpy cannot be imported): the recording runs offline, without topics")
                run_offline(bag, fresh, model, image_topic, console)
            else:
                _run_on_topics(bag, fresh, model, rate, image_topic, console)
            report = read_report(bag, fresh, image_topic)
            pictures = write_pictures(bag, fresh, fresh.parent, _PICTURES, image_topic)
        except RecordingError as error:
            told = str(error).rstrip(".")
            raise RecordingError(f"{told}. What this demo recorded is removed; {out} is left as it was") from error
        _replace(out, fresh, pictures)
    console.print(report_table(report, title=f"{bag.name} through panoptic_depth"))
    for picture in pictures:
        console.print(f"picture   {out / picture.name}")
    console.print(f"recording {recording}")


def _require_replaceable(out: Path) -> None:
    """RecordingError where ``out`` holds files under the names of the results that are not a demo's."""
    recording = out / "recording"
    if recording.exists():
        foreign = [] if _is_result(recording) else [recording]
    else:
        foreign = [picture for picture in _pictures(out) if picture.exists()]
    if foreign:
        raise RecordingError(f"{', '.join(map(str, foreign))}: not a demo's result; give another --out")


def _is_result(folder: Path) -> bool:
    """Whether a folder is a recording that a demo made, and nothing else."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} != {"metadata.yaml", "recording.mcap"}:
        return False
    try:
        with Recording(folder) as recording:
            topics = list(recording.topics)
    except RecordingError:
        return False
    ours = [topic for topic in topics if topic.startswith(f"{PREFIX}/")]
    return bool(ours) and set(topics) <= {*ours, _DIAGNOSTICS}


def _pictures(out: Path) -> list[Path]:
    """Where a demo writes its pictures."""
    return [out / f"frame_{number}.png" for number in range(_PICTURES)]


def _replace(out: Path, recording: Path, pictures: list[Path]) -> None:
    """Put new results into the place of old ones, which move to where the new ones come from."""
    for old in _pictures(out):
        old.unlink(missing_ok=True)
    if (old := out / "recording").exists():
        old.rename(recording.with_name("replaced"))
    recording.rename(old)
    for picture in pictures:
        picture.rename(out / picture.name)


def run_offline(bag: Path, out: Path, model: Path, image_topic: str, console: Console) -> None:
    """Run a recording through a model with a progress bar."""
    check(bag, out, image_topic)
    engine = open_engine(model, report=console.print)
    try:
        with Progress(console=console) as progress:
            task = progress.add_task("frames", total=None)
            run(
                bag,
                out,
                engine,
                image_topic,
                on_frame=lambda done, total: progress.update(task, completed=done, total=total),
                warn=progress.console.print,
            )
    finally:
        engine.close()


def _run_on_topics(bag: Path, out: Path, model: Path, rate: float, image_topic: str, console: Console) -> None:
    message_class(PANOPTIC_INFO)  # whose colors the pictures have: without it the whole run would be for nothing
    with Recording(bag) as recording:
        image_topic, info_topic = recording.camera_topics(image_topic)
    raw_topic = image_topic.removesuffix("/compressed")
    with _Processes(console) as processes:
        console.print("starting the node and the recorder")
        node = [sys.executable, "-m", "panoptic_depth_ros.node", "--ros-args", "-p", f"model:={model}"]
        node += [
            "-r",
            f"~/input/image:={raw_topic}",
            "-r",
            f"~/input/image/compressed:={raw_topic}/compressed",
        ]
        node += ["-r", f"~/input/camera_info:={info_topic}"] if info_topic else []
        processes.start("node", node)
        command = [sys.executable, "-m", "panoptic_depth_ros.cli"]
        recorder = processes.start(
            "recorder", [*command, "record", str(out), "--topics", f"{PREFIX}/.*|{_DIAGNOSTICS}"]
        )
        _wait_until_recorded(processes)
        console.print(f"playing {bag}")
        player = [*command, "play", str(bag), "--rate", str(rate)]
        # The best-effort subscriber may know the player a little later than the player knows it: hence the delay.
        player += ["--wait-for", image_topic, "--wait", str(_READY_S), "--delay", "1"]
        processes.wait_for(processes.start("player", player))
        time.sleep(_QUIET_S)  # the last frame, and one more diagnostics message that counts it
        processes.stop(recorder)


def _wait_until_recorded(processes: _Processes) -> None:
    from panoptic_depth_ros.player import wait_for_takers

    topics = [f"{PREFIX}/output/{name}" for name in TYPES if name != SEGMENTS]  # whose type may not be built
    wait_for_takers(topics, _READY_S, processes.check)


class _Processes:
    """The demo's processes; they all end with the ``with`` block."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._processes:
            self.stop(name)

    def start(self, name: str, command: list[str]) -> str:
        self._processes[name] = subprocess.Popen(command, env=os.environ | huge_pages.environment())
        return name

    def wait_for(self, name: str) -> None:
        """Wait until a process ends by itself; RecordingError if it, or one of the others meanwhile, fails."""
        process = self._processes[name]
        while process.poll() is None:
            self.check(but=name)
            time.sleep(0.1)
        if process.returncode != 0:
            raise RecordingError(f"the {name} failed with exit code {process.returncode}; see its lines above")

    def check(self, but: str = "") -> None:
        """RecordingError if a process other than ``but`` has ended."""
        for name, process in self._processes.items():
            if name != but and process.poll() is not None:
                raise RecordingError(
                    f"the {name} ended early, with exit code {process.returncode}; see its lines above"
                )

    def stop(self, name: str) -> None:
        """Interrupt a process as Ctrl-C does and wait until it has put its things in order."""
        process = self._processes[name]
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            self._console.print(f"the {name} did not end within 20 s and was killed")
