# SPDX-License-Identifier: Apache-2.0
"""The main job from end to end: a recording is played on topics, the node runs, a recorder keeps what comes out.

Player, node and recorder are three processes that meet only through ROS 2. Where there is no ROS 2, the same recording
runs offline.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from panoptic_depth_ros.engines import open_engine
from panoptic_depth_ros.offline import PREFIX, run
from panoptic_depth_ros.outputs import SEGMENTS, TYPES
from panoptic_depth_ros.recording import Recording, RecordingError
from panoptic_depth_ros.report import read_report, report_table, write_pictures

_READY_S = 60.0
_QUIET_S = 2.0


def demo(bag: Path, out: Path, model: Path, rate: float, image_topic: str, console: Console) -> None:
    """Run the demo; leaves ``out``/recording (a rosbag2) and ``out``/frame_*.png, in place of those of another run.

    Raises:
        RecordingError: the recording cannot be used, or one of the processes failed.
    """
    recording = out / "recording"
    with Recording(bag) as source:  # before anything is removed
        source.camera_topics(image_topic)
    if recording.resolve() in (bag.resolve(), *bag.resolve().parents):
        raise RecordingError(f"recording {bag}: the demo would replace it with its results; give another --out")
    for old in (recording, recording.with_name("recording.unfinished")):
        shutil.rmtree(old, ignore_errors=True)
    for picture in out.glob("frame_*.png"):
        picture.unlink()
    if importlib.util.find_spec("rclpy") is None:
        console.print("no ROS 2 here (rclpy cannot be imported): the recording runs offline, without topics")
        run_offline(bag, recording, model, image_topic, console)
    else:
        _run_on_topics(bag, recording, model, rate, image_topic, console)
    console.print(report_table(read_report(bag, recording, image_topic), title=f"{bag.name} through panoptic_depth"))
    for path in write_pictures(bag, recording, out, count=5, image_topic=image_topic):
        console.print(f"picture   {path}")
    console.print(f"recording {recording}")


def run_offline(bag: Path, out: Path, model: Path, image_topic: str, console: Console) -> None:
    """Run a recording through a model with a progress bar."""
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
            "recorder", [*command, "record", str(out), "--topics", r"/panoptic_depth/.*|/diagnostics"]
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
        self._processes[name] = subprocess.Popen(command)
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
