# SPDX-License-Identifier: Apache-2.0
"""The node as a process of its own, met through Fast DDS only: what it publishes, withholds, refuses and survives."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from panoptic_depth_ros.cloud import POINT
from panoptic_depth_ros.dds import prepare_for_large_messages
from panoptic_depth_ros.recording import Recording, header_stamp, make_message, typestore, write_recording
from panoptic_depth_ros.share import share_path
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("panoptic_depth.msg", reason="needs this package's messages: run scripts/build.sh")

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2  # noqa: E402

from panoptic_depth_ros.player import Recorder  # noqa: E402

TOPICS = ("semantic", "panoptic", "panoptic_color", "overlay", "depth/image", "depth/camera_info", "points", "segments")
OUTPUT = "/panoptic_depth/output"
FRAMES = 6
HEIGHT, WIDTH = 480, 960  # raw, 1.4 MB: more than Fast DDS's default segment of 512 KB holds
START_S, FRAME_S = 60.0, 20.0


@pytest.fixture(scope="module", autouse=True)
def _own_domain() -> Iterator[None]:
    """A DDS domain that other tests and other users of the machine do not share."""
    before = dict(os.environ)
    os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    prepare_for_large_messages()
    rclpy.init()
    yield
    rclpy.shutdown()
    os.environ.clear()
    os.environ.update(before)


class Process:
    """A program of this package, or of the folder, with its output in a file there, ended as Ctrl-C would."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.log = folder / f"{name}.log"
        environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", *arguments]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def wait(self, timeout: float) -> int:
        return self._process.wait(timeout)

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def stop(self) -> int:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(30)
        finally:
            self._process.kill()


def changed_node(folder: Path, program: str, *arguments: str) -> Process:
    """The node, started by a program that has replaced something in it."""
    (folder / "changed_node.py").write_text(program)
    return Process(folder, "node", "changed_node", *arguments)


class Peer:
    """A ROS node of the test's: publishes to the node, keeps what it sends."""

    def __init__(self) -> None:
        self.node = rclpy.create_node("peer")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self.received: dict[str, list[Any]] = {}
        self._stamp = 0

    def listen(self, kind: Any, topic: str, durability: DurabilityPolicy = DurabilityPolicy.VOLATILE) -> None:
        self.received[topic] = []
        qos = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE, durability=durability)
        self.node.create_subscription(kind, topic, self.received[topic].append, qos)

    def until(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
            self._executor.spin_once(timeout_sec=0.05)

    def ask(self, publisher: Any, message: Any, condition: Callable[[], bool], what: str) -> None:
        """Publish a message until it had its effect: best effort may lose one, and discovery takes its time."""
        deadline = time.monotonic() + START_S
        while not condition():
            assert time.monotonic() < deadline, f"waited {START_S} s for {what}"
            self._stamp += 1
            message.header.stamp.sec = self._stamp
            publisher.publish(message)
            patience = time.monotonic() + 2
            while time.monotonic() < patience and not condition():
                self._executor.spin_once(timeout_sec=0.05)

    def advertise(self, kind: Any, topic: str) -> Any:
        publisher = self.node.create_publisher(kind, topic, 10)
        self.until(lambda: publisher.get_subscription_count() > 0, f"a subscriber on {topic}", START_S)
        time.sleep(1)  # the best-effort subscriber may know the publisher later than the publisher knows it
        return publisher

    def latest(self, key: str) -> int:
        """A count in the latest diagnostics; 0 before the first."""
        messages = self.received["/diagnostics"]
        values = {pair.key: pair.value for pair in messages[-1].status[0].values} if messages else {}
        return int(values.get(key, 0))

    def status(self) -> dict[str, str]:
        """The next diagnostics from now."""
        messages = self.received["/diagnostics"]
        seen = len(messages)
        self.until(lambda: len(messages) > seen + 1, "diagnostics", FRAME_S)
        return {pair.key: pair.value for pair in messages[-1].status[0].values}


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    peer.listen(DiagnosticArray, "/diagnostics")
    yield peer
    peer.node.destroy_node()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path, "node", "panoptic_depth_ros.node", "--ros-args", "-p", "cloud_stride:=3")
    yield process
    assert process.stop() == 0, process.log.read_text()


def drive_images() -> list[np.ndarray]:
    """The first images of the drive that comes along, RGB [HEIGHT, WIDTH, 3]."""
    with Recording(share_path("samples", "street_drive")) as drive:
        topic, _ = drive.camera_topics()
        jpegs = [np.asarray(drive.decode(m).data) for _, m in zip(range(FRAMES), drive.messages([topic]), strict=False)]
    images = [cv2.cvtColor(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) for jpeg in jpegs]
    return [cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for image in images]


def header(number: int) -> Any:
    stamp = make_message("builtin_interfaces/msg/Time", sec=1_700_000_000 + number, nanosec=7 * number + 1)
    return make_message("std_msgs/msg/Header", stamp=stamp, frame_id="left_camera_optical")


def camera_info(message: Any, fx: float = 820.0) -> Any:
    """Fill a CameraInfo (of rclpy or rosbags) for HEIGHT x WIDTH."""
    message.height, message.width, message.distortion_model = HEIGHT, WIDTH, "plumb_bob"
    message.k = np.array([fx, 0, 470.25, 0, fx, 236.5, 0, 0, 1])
    message.p = np.array([fx, 0, 470.25, 0, 0, fx, 236.5, 0, 0, 0, 1, 0])
    return message


def write_drive(path: Path, images: list[np.ndarray], encoding: str) -> None:
    """A recording of these images, raw or as PNG (which loses nothing), with camera_info."""
    empty_roi = make_message(
        "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
    )
    with write_recording(path) as bag:
        for number, rgb in enumerate(images):
            stamp_ns = number * 10**9
            info = make_message(
                "sensor_msgs/msg/CameraInfo", header=header(number), height=0, width=0, distortion_model="",
                d=np.zeros(5), k=np.zeros(9), r=np.eye(3).ravel(), p=np.zeros(12), binning_x=0, binning_y=0,
                roi=empty_roi,
            )  # fmt: skip
            bag.write("/front/camera_info", "sensor_msgs/msg/CameraInfo", stamp_ns, camera_info(info))
            bgr = np.ascontiguousarray(rgb[..., ::-1])
            if encoding == "png":
                png = cv2.imencode(".png", bgr)[1].ravel()
                kind = "sensor_msgs/msg/CompressedImage"
                image = make_message(kind, header=header(number), format="png", data=png)
                bag.write("/front/image_raw/compressed", kind, stamp_ns + 10**8, image)
            else:
                image = make_message(
                    "sensor_msgs/msg/Image", header=header(number), height=HEIGHT, width=WIDTH, encoding=encoding,
                    is_bigendian=0, step=3 * WIDTH, data=bgr.ravel(),
                )  # fmt: skip
                bag.write("/front/image_raw", "sensor_msgs/msg/Image", stamp_ns + 10**8, image)


@pytest.mark.parametrize("encoding", ["bgr8", "png"])
def test_a_drive_through_player_node_and_recorder_comes_out_whole(tmp_path: Path, peer: Peer, encoding: str) -> None:
    images = drive_images()
    write_drive(tmp_path / "drive", images, encoding)
    image_topic = "/front/image_raw" + ("/compressed" if encoding == "png" else "")
    remappings = ["-r", "~/input/image:=/front/image_raw", "-r", "~/input/camera_info:=/front/camera_info"]
    remappings += ["-r", "~/input/image/compressed:=/front/image_raw/compressed", "-p", "cloud_stride:=3"]
    node = Process(tmp_path, "node", "panoptic_depth_ros.node", "--ros-args", *remappings)
    cli = "panoptic_depth_ros.cli"
    recorder = Process(tmp_path, "recorder", cli, "record", str(tmp_path / "out"), "--topics", "/panoptic_depth/.*")
    try:
        topics = [f"{OUTPUT}/{name}" for name in TOPICS]
        peer.until(lambda: all(peer.node.count_subscribers(topic) == 1 for topic in topics), "the recorder", START_S)
        # The node and the recorder find each other while the player still starts; otherwise its first frame is lost.
        peer.until(lambda: all(peer.node.count_publishers(topic) == 1 for topic in topics), "the node", START_S)
        waiting = ["--wait-for", image_topic, "--wait", "60", "--delay", "1"]
        player = Process(tmp_path, "player", cli, "play", str(tmp_path / "drive"), "--rate", "0.6", *waiting)
        assert player.wait(120) == 0, player.log.read_text()
        time.sleep(2)
    finally:
        codes = recorder.stop(), node.stop()
    assert codes == (0, 0), recorder.log.read_text() + node.log.read_text()

    stamps = [(1_700_000_000 + n, 7 * n + 1) for n in range(FRAMES)]
    with Recording(tmp_path / "out") as out:
        assert out.is_latched(f"{OUTPUT}/panoptic_info")
        recorded = {name: list(out.messages([f"{OUTPUT}/{name}"])) for name in TOPICS}
        for name in TOPICS:
            assert [header_stamp(message) for message in recorded[name]] == stamps, name
            assert not out.is_latched(f"{OUTPUT}/{name}")
        for number, rgb in enumerate(images):
            check_frame({name: out.decode(recorded[name][number]) for name in TOPICS}, rgb)


def check_frame(messages: dict[str, Any], rgb: np.ndarray) -> None:
    """One frame's outputs agree with the input, with each other and with their encodings."""
    encodings = {"semantic": "mono8", "panoptic": "mono16", "depth/image": "32FC1", "overlay": "rgb8"}
    for name in TOPICS:
        assert messages[name].header.frame_id == "left_camera_optical", name
    for name, encoding in encodings.items():
        message = messages[name]
        assert (message.encoding, message.height, message.width) == (encoding, HEIGHT, WIDTH)
        assert len(message.data) == HEIGHT * message.step

    semantic = messages["semantic"].data.reshape(HEIGHT, WIDTH)
    panoptic = messages["panoptic"].data.view(np.uint16).reshape(HEIGHT, WIDTH)
    depth = messages["depth/image"].data.view(np.float32).reshape(HEIGHT, WIDTH)
    labelled = semantic != 255
    assert (panoptic[labelled] // LABEL_DIVISOR == semantic[labelled]).all()
    assert (panoptic[~labelled] == 65535).all()

    info, segments = messages["depth/camera_info"], messages["segments"]
    assert (info.height, info.width) == (HEIGHT, WIDTH)
    np.testing.assert_allclose(info.k, [820, 0, 470.25, 0, 820, 236.5, 0, 0, 1])
    assert set(segments.id) == set(np.unique(panoptic[labelled]))
    assert [int((panoptic == i).sum()) for i in segments.id] == segments.area.tolist()

    cloud = messages["points"]
    points = cloud.data.view(POINT).reshape(cloud.height, cloud.width)
    assert (cloud.height, cloud.width, cloud.point_step) == (HEIGHT // 3, WIDTH // 3, 24)
    near = np.isfinite(points["z"])
    with np.errstate(invalid="ignore"):
        assert (near == (depth[::3, ::3] <= 80)).all()
    assert near.any()
    v, u = np.nonzero(near)
    x, y, z = (points[axis][near].astype(np.float64) for axis in "xyz")
    fx, cx, fy, cy = info.p[0], info.p[2], info.p[5], info.p[6]
    np.testing.assert_allclose(fx * x / z + cx, 3 * u, atol=1e-3)
    np.testing.assert_allclose(fy * y / z + cy, 3 * v, atol=1e-3)
    assert (z == depth[3 * v, 3 * u]).all()
    assert (points["label"][near] == semantic[3 * v, 3 * u]).all()
    assert (points["instance"][near] == np.where(labelled, panoptic % LABEL_DIVISOR, 0)[3 * v, 3 * u]).all()
    r, g, b = rgb[3 * v, 3 * u].astype(np.uint32).T
    assert (points["rgb"][near] == (r << 16 | g << 8 | b)).all()


def image_message(number: int, rgb: np.ndarray) -> Image:
    message = Image(height=rgb.shape[0], width=rgb.shape[1], encoding="rgb8", step=3 * rgb.shape[1])
    message.header.stamp.sec, message.header.frame_id = number, "camera"
    message.data = array("B", rgb.tobytes())
    return message


def test_nothing_is_computed_for_topics_that_nobody_listens_to(node: Process, peer: Peer) -> None:
    rgb = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    images = peer.advertise(Image, "/panoptic_depth/input/image")
    infos = peer.advertise(CameraInfo, "/panoptic_depth/input/camera_info")
    infos.publish(camera_info(CameraInfo()))
    message = image_message(1, rgb)
    peer.ask(images, message, lambda: peer.latest("frames received") >= 3, "three frames' arrival")
    status = peer.status()
    assert status["frames skipped (nobody listens)"] == status["frames received"]
    assert status["frames processed"] == "0"
    assert not any(key.startswith(("engine", "messages")) for key in status)

    peer.listen(Image, f"{OUTPUT}/semantic")
    peer.ask(images, message, lambda: bool(peer.received[f"{OUTPUT}/semantic"]), "the semantic image")
    published = [key for key in peer.status() if key.startswith("published")]
    assert published == ["published semantic"]


def test_outputs_are_reliable_the_info_is_latched_and_inputs_take_any_sensor(node: Process, peer: Peer) -> None:
    from panoptic_depth.msg import PanopticInfo

    topics = [f"{OUTPUT}/{name}" for name in TOPICS]
    peer.until(lambda: all(peer.node.count_publishers(topic) == 1 for topic in topics), "all outputs", START_S)
    # Nobody publishes images here: where raw ones are offered, the node leaves the compressed ones.
    inputs = [f"/panoptic_depth/input/{name}" for name in ("image", "image/compressed", "camera_info")]
    peer.until(lambda: all(peer.node.count_subscribers(topic) == 1 for topic in inputs), "all inputs", START_S)
    for name in TOPICS:
        (offer,) = peer.node.get_publishers_info_by_topic(f"{OUTPUT}/{name}")
        assert offer.qos_profile.reliability == ReliabilityPolicy.RELIABLE, name
        assert offer.qos_profile.durability == DurabilityPolicy.VOLATILE, name
    for topic in inputs:
        (taker,) = peer.node.get_subscriptions_info_by_topic(topic)
        assert taker.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT, topic
    peer.listen(PanopticInfo, f"{OUTPUT}/panoptic_info", DurabilityPolicy.TRANSIENT_LOCAL)
    peer.until(lambda: len(peer.received[f"{OUTPUT}/panoptic_info"]) == 1, "the latched info", FRAME_S)
    info = peer.received[f"{OUTPUT}/panoptic_info"][0]
    assert (info.label_divisor, info.void_id) == (1000, 65535)
    assert len(info.name) == len(info.is_thing) == len(info.category) == len(info.color) // 3 > 0


def test_a_topics_qos_override_holds_for_that_topic_only(engine: Any) -> None:
    from rclpy.parameter import Parameter

    from panoptic_depth_ros.node import PanopticDepthNode

    depth_of = "qos_overrides.{}.{}.depth".format
    segments, image = f"{OUTPUT}/segments", "/panoptic_depth/input/image"  # the first of their kind in the node
    overrides = [Parameter(depth_of(segments, "publisher"), value=7)]
    overrides += [Parameter(depth_of(image, "subscription"), value=3)]
    node = PanopticDepthNode(engine, parameter_overrides=overrides)
    try:
        outputs = {name: node.get_parameter(depth_of(f"{OUTPUT}/{name}", "publisher")).value for name in TOPICS}
        inputs = [node.get_parameter(depth_of(topic, "subscription")).value for topic in (image, f"{image}/compressed")]
    finally:
        node.destroy_node()
    assert outputs == {**dict.fromkeys(TOPICS, 1), "segments": 7}
    assert inputs == [3, 1]


def test_every_bad_input_is_named_without_flooding_and_the_node_goes_on(node: Process, peer: Peer) -> None:
    rgb = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    peer.listen(Image, f"{OUTPUT}/semantic")
    peer.listen(PointCloud2, f"{OUTPUT}/points")

    def bad(**changes: Any) -> Image:
        message = image_message(1, rgb)
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    jpeg = cv2.imencode(".jpg", rgb)[1].tobytes()
    wrong = {
        "compressed image of format 'jpeg'": CompressedImage(format="jpeg", data=array("B", jpeg[: len(jpeg) // 2])),
        "image step is 17 bytes": bad(step=17),
        "image encoding 'gray42'": bad(encoding="gray42"),
        "image is 960x0 px": bad(height=0),
    }
    # Compressed first: once raw images are offered too, the node leaves the compressed ones.
    publisher = peer.advertise(CompressedImage, "/panoptic_depth/input/image/compressed")
    started = time.monotonic()
    for message in wrong.values():
        if isinstance(message, Image) and publisher.msg_type is CompressedImage:
            publisher = images = peer.advertise(Image, "/panoptic_depth/input/image")
        enough = peer.latest("frames failed") + 2
        peer.ask(publisher, message, lambda n=enough: peer.latest("frames failed") >= n, "the failures' count")
    infos = peer.advertise(CameraInfo, "/panoptic_depth/input/camera_info")
    infos.publish(camera_info(CameraInfo(), fx=0.0))
    time.sleep(0.5)
    good = image_message(50, rgb)
    peer.ask(images, good, lambda: bool(peer.received[f"{OUTPUT}/semantic"]), "labels without a calibration")
    peer.status()
    assert not peer.received[f"{OUTPUT}/points"]

    infos.publish(camera_info(CameraInfo()))
    time.sleep(0.5)
    peer.ask(images, good, lambda: bool(peer.received[f"{OUTPUT}/points"]), "points with a calibration")

    log = node.log.read_text()
    repeats = 1 + int(time.monotonic() - started) // 5  # a line comes back after five seconds, not before
    for text in (*wrong, "fx=0, fy=0: the camera is not calibrated"):
        assert 1 <= log.count(text) <= repeats, f"{text!r} in\n{log}"
    assert "Traceback" not in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_that_is_ended_amid_frames_says_nothing_of_it(tmp_path: Path, peer: Peer, number: int) -> None:
    process = Process(tmp_path, "node", "panoptic_depth_ros.node")
    try:
        peer.listen(Image, f"{OUTPUT}/overlay")
        images = peer.advertise(Image, "/panoptic_depth/input/image")
        rgb = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        peer.ask(images, image_message(1, rgb), lambda: bool(peer.received[f"{OUTPUT}/overlay"]), "the first overlay")
        for frame in range(100, 140):
            images.publish(image_message(frame, rgb))
        process.send(number)
        process.send(number)  # as from the terminal and from a parent
        assert process.wait(30) == 0, process.log.read_text()
    finally:
        process.stop()
    log = process.log.read_text()
    assert "Traceback" not in log
    assert "image dropped" not in log


GPU_THAT_GOES = """
import sys
from panoptic_depth_ros import node
from panoptic_depth_ros.engines import onnxruntime
from panoptic_depth_ros.engines.errors import DeviceLostError
from panoptic_depth_ros.share import share_path

class Engine(onnxruntime.OnnxRuntimeEngine):
    warm = False

    def infer(self, images):
        if self.warm:
            raise DeviceLostError("the GPU fell off the bus")
        self.warm = True
        return super().infer(images)

node.open_engine = lambda *_: Engine(share_path("model", "compact.onnx"), "cpu", 1)
sys.exit(node.main())
"""


def test_a_node_whose_gpu_is_lost_ends_with_the_reason_so_that_it_is_started_again(tmp_path: Path, peer: Peer) -> None:
    process = changed_node(tmp_path, GPU_THAT_GOES)
    try:
        peer.listen(Image, f"{OUTPUT}/overlay")
        images = peer.advertise(Image, "/panoptic_depth/input/image")
        rgb = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        peer.ask(images, image_message(1, rgb), lambda: "[FATAL]" in process.log.read_text(), "the node's last words")
        assert process.wait(30) == 1
    finally:
        process.stop()
    assert "the GPU fell off the bus; the node ends, start it again" in process.log.read_text()


@pytest.fixture
def humbles_messages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Recordings are written as by the oldest release, whatever is sourced."""
    monkeypatch.setenv("ROS_DISTRO", "humble")
    typestore.cache_clear()
    yield
    typestore.cache_clear()


@pytest.mark.usefixtures("humbles_messages")
def test_a_recorder_leaves_out_what_it_cannot_define(tmp_path: Path, peer: Peer) -> None:
    from std_msgs.msg import String

    newer = pytest.importorskip("service_msgs.msg", reason="needs a type that recordings have no definition of")
    strange = peer.node.create_publisher(newer.ServiceEventInfo, "/test/strange", 10)
    words = peer.node.create_publisher(String, "/test/words", 10)
    with write_recording(tmp_path / "out") as writer:
        recorder = Recorder(writer, re.compile("/test/.*"))
        try:
            spinner = SingleThreadedExecutor()
            spinner.add_node(recorder.node)
            peer.until(lambda: words.get_subscription_count() > 0 or spinner.spin_once(0.05), "the recorder", START_S)
            strange.publish(newer.ServiceEventInfo())
            words.publish(String(data="x"))
            peer.until(lambda: bool(writer.counts) or spinner.spin_once(0.05), "a recorded message", FRAME_S)
        finally:
            recorder.node.destroy_node()
    assert writer.counts == {"/test/words": 1}


INTERRUPTED_AT_ITS_START = """
import signal
import sys
import time
from panoptic_depth_ros import node
from panoptic_depth_ros.engines.onnxruntime import OnnxRuntimeEngine
from panoptic_depth_ros.share import share_path

def open_engine(*_):
    engine = OnnxRuntimeEngine(share_path("model", "compact.onnx"), "cpu", 1)
    try:
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)
    except KeyboardInterrupt:  # as a library may whose callback it hits
        pass
    deadline = time.monotonic() + 20
    while node.rclpy.ok() and time.monotonic() < deadline:
        time.sleep(0.01)  # until the middleware has taken note
    return engine

node.open_engine = open_engine
sys.exit(node.main())
"""


def test_a_node_that_is_interrupted_at_its_start_ends_as_usual(tmp_path: Path) -> None:
    process = changed_node(tmp_path, INTERRUPTED_AT_ITS_START)
    assert process.wait(60) == 0, process.log.read_text()
    log = process.log.read_text()
    assert "Traceback" not in log
    assert "Error" not in log


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ("model:=/nowhere/model.onnx", "/nowhere/model.onnx: cannot be read"),
        ("cloud_stride:=0", "parameter cloud_stride: expected int from 1 to 64"),
        ("output_size:=huge", "parameter output_size is 'huge'; expected one of image, network"),
        ("cloud_max_depth:=near", "parameter cloud_max_depth: expected float"),
    ],
)
def test_a_wrong_parameter_ends_the_node_with_a_sentence(tmp_path: Path, parameter: str, expected: str) -> None:
    process = Process(tmp_path, "node", "panoptic_depth_ros.node", "--ros-args", "-p", parameter)
    assert process.wait(60) == 1
    log = process.log.read_text()
    assert expected in log
    assert "Traceback" not in log


TENSORRT_ALONE = """
import sys
from panoptic_depth_ros import node
from panoptic_depth_ros.engines import onnxruntime

def open_engine(model, device, *_):
    assert device == "tensorrt", device
    return onnxruntime.OnnxRuntimeEngine(model, "cpu", 1)

node.open_engine = open_engine
sys.exit(node.main())
"""


def test_a_node_that_is_to_build_only_ends_when_the_engine_is_ready(tmp_path: Path) -> None:
    process = changed_node(tmp_path, TENSORRT_ALONE, "--ros-args", "-p", "build_only:=true")
    assert process.wait(60) == 0, process.log.read_text()
    assert "the engine is ready; the node ends, for build_only is set" in process.log.read_text()


def test_build_only_fails_where_no_engine_can_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    process = Process(tmp_path, "node", "panoptic_depth_ros.node", "--ros-args", "-p", "build_only:=true")
    assert process.wait(60) == 1, process.log.read_text()
    assert re.search("panoptic_depth: .*(TensorRT is not installed|no NVIDIA driver|no GPU)", process.log.read_text())
