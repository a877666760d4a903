# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import struct
import threading
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.maps import OutputMaps
from panoptic_depth_ros.messages import MakeMessage
from panoptic_depth_ros.outputs import TYPES, CloudOptions, Job, OutputMessages, computable, do_on_two_threads
from panoptic_depth_ros.prediction import Prediction

ROAD, SKY, CAR, PERSON = range(4)
HEIGHT, WIDTH = 17, 23  # odd, so that a stride of two leaves a row and a column over
CAMERA = PinholeCamera(HEIGHT, WIDTH, 20.0, 21.0, 11.3, 8.2)
DATA_TYPES = {name: kind for name, kind in TYPES.items() if kind.endswith(("/Image", "/PointCloud2"))}


@pytest.fixture
def maps(predict_segments: Callable[..., Prediction]) -> OutputMaps:
    """Sky above, then road with two cars and void at the left; published at the prediction's own size."""
    ids = np.full((HEIGHT, WIDTH), 2)
    ids[:6], ids[8:12, 3:9], ids[8:14, 12:20], ids[:, 0] = 1, 3, 4, 0
    depth = np.random.default_rng(0).uniform(2, 120, ids.shape).astype(np.float32)
    depth[ids == 1] = np.nan
    prediction = predict_segments(ids, depth, [SKY, ROAD, CAR, CAR], [0.9, 0.8, 0.3, 0.7])
    rgb = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return OutputMaps(prediction, rgb, HEIGHT, WIDTH)


def read_points(cloud: Any) -> list[list[dict[str, float]]]:
    """A PointCloud2's points as rows of dictionaries, by its own description and nothing else."""
    codes = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 8: "d"}  # sensor_msgs/PointField
    order, data = ">" if cloud.is_bigendian else "<", bytes(cloud.data)
    assert len(data) == cloud.row_step * cloud.height
    assert cloud.row_step == cloud.point_step * cloud.width
    rows = []
    for i in range(cloud.height):
        points = [i * cloud.row_step + j * cloud.point_step for j in range(cloud.width)]
        rows.append(
            [
                {f.name: struct.unpack_from(order + codes[f.datatype], data, at + f.offset)[0] for f in cloud.fields}
                for at in points
            ]
        )
    return rows


def pixel_values(image: Any) -> np.ndarray:
    code, channels = {"mono8": ("B", 1), "mono16": ("H", 1), "rgb8": ("B", 3), "32FC1": ("f", 1)}[image.encoding]
    assert image.step * image.height == len(image.data)
    values = struct.unpack(f"<{image.height * image.width * channels}{code}", bytes(image.data))
    return np.array(values).reshape((image.height, image.width, 3) if channels == 3 else (image.height, image.width))


def rgb_bits(value: float) -> tuple[int, int, int]:
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    assert bits >> 24 == 0
    return bits >> 16, bits >> 8 & 255, bits & 255


@pytest.fixture
def received(make: MakeMessage, header: Any, over_the_wire: Callable[..., Any], maps: OutputMaps) -> Callable[..., Any]:
    """Builds an output, sends it over the wire and returns what came out."""

    def build(name: str, **cloud: Any) -> Any:
        message = OutputMessages(make, CloudOptions(**cloud)).build(name, header, maps, CAMERA)
        return over_the_wire(message, TYPES[name])

    return build


@pytest.mark.parametrize("name", TYPES)
def test_every_output_carries_the_header_it_was_given(received: Callable[..., Any], header: Any, name: str) -> None:
    got = received(name).header
    assert (got.stamp.sec, got.stamp.nanosec, got.frame_id) == (
        header.stamp.sec,
        header.stamp.nanosec,
        header.frame_id,
    )


def test_label_images(received: Callable[..., Any], maps: OutputMaps) -> None:
    semantic, panoptic = received("semantic"), received("panoptic")
    assert (semantic.encoding, panoptic.encoding) == ("mono8", "mono16")
    ids = maps.prediction.segment_ids
    np.testing.assert_array_equal(pixel_values(semantic), np.array([255, SKY, ROAD, CAR, CAR])[ids])
    np.testing.assert_array_equal(pixel_values(panoptic), np.array([65535, 1000, 0, 2002, 2001])[ids])


def test_depth_image_and_its_camera(received: Callable[..., Any], maps: OutputMaps) -> None:
    depth, info = received("depth/image"), received("depth/camera_info")
    assert depth.encoding == "32FC1"
    np.testing.assert_array_equal(pixel_values(depth), maps.prediction.depth)
    assert (info.height, info.width) == (depth.height, depth.width) == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(info.k, [20.0, 0, 11.3, 0, 21.0, 8.2, 0, 0, 1])


def test_pictures(received: Callable[..., Any], maps: OutputMaps) -> None:
    color, overlay = received("panoptic_color"), received("overlay")
    assert (color.encoding, overlay.encoding) == ("rgb8", "rgb8")
    ids = maps.prediction.segment_ids
    assert (pixel_values(color)[ids == 2] == (128, 64, 128)).all()
    assert (pixel_values(color)[ids == 0] == 0).all()
    np.testing.assert_allclose(pixel_values(overlay)[15:, 2:], (maps.rgb[15:, 2:] + (128.0, 64, 128)) / 2, atol=0.51)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_an_organized_cloud_has_a_point_per_sampled_pixel(
    received: Callable[..., Any], maps: OutputMaps, stride: int
) -> None:
    cloud = received("points", stride=stride, max_depth=80.0, organized=True)
    assert (cloud.height, cloud.width) == (HEIGHT // stride, WIDTH // stride)
    assert (cloud.point_step, cloud.is_dense, cloud.is_bigendian) == (24, False, False)
    assert [(f.name, f.offset, f.datatype, f.count) for f in cloud.fields] == [
        ("x", 0, 7, 1),
        ("y", 4, 7, 1),
        ("z", 8, 7, 1),
        ("rgb", 12, 7, 1),  # PCL before 1.12 knows rgb as FLOAT32 only
        ("label", 16, 6, 1),
        ("instance", 20, 6, 1),
    ]
    depth, ids = maps.prediction.depth, maps.prediction.segment_ids
    assert depth is not None
    for i, row in enumerate(read_points(cloud)):
        for j, point in enumerate(row):
            v, u = i * stride, j * stride
            z = float(depth[v, u]) if depth[v, u] <= 80 else math.nan
            expected = [(u - 11.3) / 20 * z, (v - 8.2) / 21 * z, z]
            np.testing.assert_allclose([point["x"], point["y"], point["z"]], expected, rtol=1e-5, atol=1e-6)
            assert rgb_bits(point["rgb"]) == tuple(maps.rgb[v, u])
            assert point["label"] == [255, SKY, ROAD, CAR, CAR][ids[v, u]]
            assert point["instance"] == [0, 0, 0, 2, 1][ids[v, u]]


def test_a_compact_cloud_is_the_organized_one_without_its_holes(received: Callable[..., Any]) -> None:
    organized = received("points", stride=2, max_depth=80.0, organized=True)
    compact = received("points", stride=2, max_depth=80.0, organized=False)
    points = [point for row in read_points(organized) for point in row if math.isfinite(point["z"])]
    assert 0 < len(points) < organized.height * organized.width
    assert (compact.height, compact.width, compact.is_dense) == (1, len(points), True)
    assert read_points(compact) == [points]


def test_a_compact_cloud_may_be_empty(received: Callable[..., Any]) -> None:
    cloud = received("points", max_depth=0.5, organized=False)
    assert (cloud.height, cloud.width, len(cloud.data)) == (1, 0, 0)


def test_sensor_msgs_py_reads_the_cloud(make: MakeMessage, header: Any, maps: OutputMaps) -> None:
    point_cloud2 = pytest.importorskip("sensor_msgs_py.point_cloud2")
    cloud = OutputMessages(make, CloudOptions(stride=1, max_depth=1e9)).build("points", header, maps, CAMERA)
    points = point_cloud2.read_points(cloud, field_names=["z", "label"])
    np.testing.assert_array_equal(points["z"].reshape(HEIGHT, WIDTH), maps.prediction.depth)
    np.testing.assert_array_equal(points["label"], np.array([255, 1, 0, 2, 2])[maps.prediction.segment_ids].ravel())


@pytest.mark.parametrize("organized", [True, False])
@pytest.mark.parametrize("name", TYPES)
def test_sequences_of_numbers_are_array_arrays(maps: OutputMaps, name: str, organized: bool) -> None:
    """Anything else costs rclpy a Python loop over every byte (on Humble bytes, on later ones NumPy arrays)."""
    seen: dict[str, Any] = {}

    def spy(type_name: str, **values: Any) -> dict[str, Any]:
        if type_name == TYPES[name]:
            seen.update(values)
        return values

    OutputMessages(spy, CloudOptions(organized=organized)).build(name, None, maps, CAMERA)
    fixed_size = {"k", "r", "p"}  # rclpy keeps these as NumPy arrays
    for field, value in seen.items():
        if field == "data":
            assert type(value) is array
            assert value.typecode == "B"
        elif field not in fixed_size:
            assert isinstance(value, int | str | array | type(None)) or field == "fields"
    assert ("data" in seen) == (name in DATA_TYPES)


def test_segments_are_those_in_the_image(received: Callable[..., Any], maps: OutputMaps) -> None:
    segments = received("segments")
    assert list(segments.id) == [1000, 0, 2002, 2001]
    ids = maps.prediction.segment_ids
    assert list(segments.area) == [int((ids == k).sum()) for k in (1, 2, 3, 4)]
    assert list(segments.box)[8:12] == [3, 8, 6, 4]  # the first car's x, y, width, height
    assert np.isnan(segments.mean_depth[0])
    assert np.isnan(segments.centroid[:3]).all()
    assert np.isfinite(segments.centroid[3:]).all()


def test_the_next_frame_goes_into_the_same_memory(make: MakeMessage, header: Any, maps: OutputMaps) -> None:
    messages = OutputMessages(make, CloudOptions())
    for name in DATA_TYPES:
        first = messages.build(name, header, maps, CAMERA)
        second = messages.build(name, header, maps, CAMERA)
        assert np.shares_memory(np.frombuffer(first.data, np.uint8), np.frombuffer(second.data, np.uint8))


def test_another_camera_gets_other_rays(make: MakeMessage, header: Any, maps: OutputMaps) -> None:
    messages = OutputMessages(make, CloudOptions(stride=1, max_depth=1e9))
    shifted = PinholeCamera(HEIGHT, WIDTH, 40.0, 42.0, 3.0, 4.0)
    messages.build("points", header, maps, CAMERA)
    point = read_points(messages.build("points", header, maps, shifted))[16][20]
    assert point["x"] == pytest.approx((20 - 3) / 40 * point["z"])
    assert point["y"] == pytest.approx((16 - 4) / 42 * point["z"])


def last_first(jobs: list[Job]) -> None:
    for job in reversed(jobs):
        job()


@pytest.mark.parametrize("organized", [True, False])
@pytest.mark.parametrize("names", [list(TYPES), ["points"], ["overlay", "points"], ["segments"], []])
@pytest.mark.parametrize("how", ["last first", "two threads"])
def test_messages_built_together_are_those_built_one_by_one(
    make: MakeMessage,
    header: Any,
    over_the_wire: Callable[..., Any],
    maps: OutputMaps,
    organized: bool,
    names: list[str],
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("panoptic_depth_ros.maps._BAND_PIXELS", 25)  # many parts, which no small picture would have
    options = CloudOptions(organized=organized)
    with ThreadPoolExecutor(1) as helper:
        run = last_first if how == "last first" else partial(do_on_two_threads, helper=helper)
        together = OutputMessages(make, options).build_all(names, header, maps, CAMERA, run)
    assert set(together) == set(names)
    alone, fresh = OutputMessages(make, options), OutputMaps(maps.prediction, maps.rgb, HEIGHT, WIDTH)
    for name, message in together.items():
        expected = over_the_wire(alone.build(name, header, fresh, CAMERA), TYPES[name])
        assert repr(over_the_wire(message, TYPES[name])) == repr(expected)
        if name in DATA_TYPES:
            assert bytes(message.data) == bytes(expected.data)


def test_without_a_camera_what_is_metric_is_not_built(make: MakeMessage, header: Any, maps: OutputMaps) -> None:
    assert set(OutputMessages(make, CloudOptions()).build_all(TYPES, header, maps, None, last_first)) == {
        "segments",
        "semantic",
        "panoptic",
        "panoptic_color",
        "overlay",
    }


def test_two_threads_do_each_job_once() -> None:
    done: list[tuple[int, int]] = []
    both_at_work = threading.Barrier(2, timeout=10)

    def job(number: int) -> None:
        if number < 2:
            both_at_work.wait()  # one thread alone would wait in vain
        done.append((number, threading.get_ident()))

    with ThreadPoolExecutor(1) as helper:
        do_on_two_threads([partial(job, number) for number in range(500)], helper)
    assert sorted(number for number, _ in done) == list(range(500))
    assert len({thread for _, thread in done}) == 2


@pytest.mark.parametrize("fails_here", [True, False])
def test_when_one_thread_fails_the_other_has_ended_too(fails_here: bool) -> None:
    caller, begun, events = threading.get_ident(), threading.Barrier(2, timeout=10), []

    def job() -> None:
        begun.wait()
        if (threading.get_ident() == caller) == fails_here:
            raise ValueError("broken")
        events.append("slow job begins")
        threading.Event().wait(0.1)
        events.append("slow job ends")

    with ThreadPoolExecutor(1) as helper:
        with pytest.raises(ValueError, match="broken"):
            do_on_two_threads([job, job], helper)
        assert events == ["slow job begins", "slow job ends"]


def test_without_a_camera_only_what_lies_in_the_image_can_be_built() -> None:
    two_dimensional = ["segments", "semantic", "panoptic", "panoptic_color", "overlay"]
    assert computable(TYPES, None) == two_dimensional
    assert computable(reversed(TYPES), CAMERA) == list(TYPES)
    assert computable(["overlay", "points", "semantic"], CAMERA) == ["semantic", "points", "overlay"]


@pytest.mark.parametrize("name", ["depth/camera_info", "points"])
def test_a_metric_output_without_a_camera_is_refused(
    make: MakeMessage, header: Any, maps: OutputMaps, name: str
) -> None:
    with pytest.raises(ValueError, match=f"output {name} needs a camera"):
        OutputMessages(make, CloudOptions()).build(name, header, maps, None)
