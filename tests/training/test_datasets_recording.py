# SPDX-License-Identifier: Apache-2.0
"""A recording becomes images with sparse depth, from the scan that is nearest in time, in the camera's pixels."""

from __future__ import annotations

import pickle
from array import array
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.recording import make_header, make_message, write_recording
from panoptic_depth_training.datasets.labeled import DataError
from panoptic_depth_training.datasets.lidar import FrameTree, depth_from_points, points_from_cloud
from panoptic_depth_training.datasets.recording import TRUTH_TOPICS, RecordedDrive
from panoptic_depth_training.datasets.sources import open_images

CAMERA = PinholeCamera(48, 64, 50.0, 50.0, 31.5, 23.5)
MS = 10**6
START = 1_000 * 10**9


# ---- points ---------------------------------------------------------------------------------------------------------


def cloud(points: np.ndarray, dtype: str = "<f4", stride: int = 20, rows: int = 1) -> SimpleNamespace:
    """A PointCloud2 with x, y, z at odd places in records of `stride` bytes, and 8 bytes of padding after each row."""
    size = np.dtype(dtype).itemsize
    data = np.zeros((rows, len(points) // rows * stride + 8), np.uint8)
    records = data[:, :-8].reshape(-1, stride).copy()
    for axis in range(3):
        values = points[:, axis].astype(dtype)[:, None].view(np.uint8)
        records[:, 2 + axis * size : 2 + (axis + 1) * size] = values
    data[:, :-8] = records.reshape(rows, -1)
    kind = {"f4": 7, "f8": 8}[dtype[1:]]
    fields = [SimpleNamespace(name=name, offset=2 + k * size, datatype=kind, count=1) for k, name in enumerate("xyz")]
    return SimpleNamespace(
        fields=fields,
        is_bigendian=dtype[0] == ">",
        point_step=stride,
        row_step=data.shape[1],
        height=rows,
        width=len(points) // rows,
        data=data.tobytes(),
    )


@pytest.mark.parametrize(("dtype", "stride", "rows"), [("<f4", 20, 1), ("<f4", 16, 3), ("<f8", 32, 2), (">f4", 20, 2)])
def test_points_are_read_whatever_their_layout(dtype, stride, rows):
    points = np.random.default_rng(0).normal(size=(12, 3))
    points[4, 1] = np.nan
    found = points_from_cloud(cloud(points, dtype, stride, rows))
    np.testing.assert_allclose(found, np.delete(points, 4, axis=0), rtol=1e-6)


def test_a_cloud_without_coordinates_or_cut_short_is_refused():
    whole = cloud(np.ones((4, 3)))
    with pytest.raises(DataError, match="fields x, y; expected x, y and z as float32"):
        points_from_cloud(SimpleNamespace(**{**vars(whole), "fields": whole.fields[:2]}))
    with pytest.raises(DataError, match="cut short"):
        points_from_cloud(SimpleNamespace(**{**vars(whole), "data": whole.data[:40]}))


def test_the_nearest_point_of_a_pixel_wins():
    rng = np.random.default_rng(1)
    points = rng.uniform((-10, -10, -5), (10, 10, 30), (3000, 3))
    expected = np.zeros((48, 64))
    for x, y, z in points:
        if z <= 0.5:
            continue
        u, v = round(50 * x / z + 31.5), round(50 * y / z + 23.5)
        if 0 <= u < 64 and 0 <= v < 48 and not 0 < expected[v, u] < z:
            expected[v, u] = z
    np.testing.assert_allclose(depth_from_points(points, CAMERA), expected, rtol=1e-6)


def test_a_wide_lens_does_not_fold_far_points_into_the_image():
    """With barrel distortion the polynomial comes back to the center far outside of what the lens sees."""
    camera = replace(CAMERA, distortion=(-0.1, 0.0, 0.0, 0.0))
    steep = np.array([[3.16, 0.0, 1.0]])  # the polynomial puts it at the image's center: 3.16 * (1 - 0.1 * 3.16**2) ~ 0
    assert abs(camera.project(steep)[0, 0] - 31.5) < 2
    assert not depth_from_points(steep, camera).any()
    ahead = np.array([[0.1, 0.0, 2.0]])
    assert depth_from_points(ahead, camera).any()


# ---- frames ---------------------------------------------------------------------------------------------------------


def transforms(*edges: tuple[str, str, tuple, tuple]) -> Any:
    """A TFMessage of (parent, child, translation, quaternion)."""
    vector, quaternion = "geometry_msgs/msg/Vector3", "geometry_msgs/msg/Quaternion"
    return make_message(
        "tf2_msgs/msg/TFMessage",
        transforms=[
            make_message(
                "geometry_msgs/msg/TransformStamped",
                header=make_header(START, parent),
                child_frame_id=child,
                transform=make_message(
                    "geometry_msgs/msg/Transform",
                    translation=make_message(vector, **dict(zip("xyz", translation, strict=True))),
                    rotation=make_message(quaternion, **dict(zip("xyzw", rotation, strict=True))),
                ),
            )
            for parent, child, translation, rotation in edges
        ],
    )


HALF = 0.5**0.5
TO_OPTICAL = (-0.5, 0.5, -0.5, 0.5)  # x forward, y left, z up -> z forward, x right, y down


def test_transforms_are_chained_through_the_common_frame():
    tree = FrameTree()
    tree.add(transforms(("base", "mast", (0.0, 0.0, 2.0), (0.0, 0.0, HALF, HALF))))  # turned left by a quarter
    tree.add(transforms(("mast", "lidar", (1.0, 0.0, 0.0), (0, 0, 0, 1.0)), ("/base", "eye", (0, 0, 1.0), TO_OPTICAL)))
    point = np.array([2.0, 0.0, 0.0, 1.0])  # 3 m ahead of the mast, which looks left: 3 m left of the base, 2 m up
    np.testing.assert_allclose(tree.transform("base", "lidar") @ point, [0, 3, 2, 1], atol=1e-12)
    np.testing.assert_allclose(tree.transform("eye", "lidar") @ point, [-3, -1, 0, 1], atol=1e-12)
    np.testing.assert_allclose(tree.transform("lidar", "eye") @ tree.transform("eye", "lidar"), np.eye(4), atol=1e-12)


def test_frames_that_are_not_connected_are_named():
    tree = FrameTree()
    tree.add(transforms(("base", "lidar", (0, 0, 0), (0, 0, 0, 1.0))))
    with pytest.raises(DataError, match=r"no transform from frame 'lidar' to 'eye' .* which connects base, lidar;"):
        tree.transform("eye", "lidar")


def test_transforms_in_a_circle_are_refused():
    tree = FrameTree()
    tree.add(transforms(("a", "b", (0, 0, 0), (0, 0, 0, 1.0)), ("b", "a", (0, 0, 0), (0, 0, 0, 1.0))))
    with pytest.raises(DataError, match="in a circle"):
        tree.transform("a", "c")


# ---- recordings -----------------------------------------------------------------------------------------------------


def jpeg_message(stamp_ns: int, brightness: int) -> Any:
    data = cv2.imencode(".jpg", np.full((48, 64, 3), brightness, np.uint8))[1].tobytes()
    return compressed(stamp_ns, "jpeg", data)


def compressed(stamp_ns: int, form: str, data: bytes) -> Any:
    header = make_header(stamp_ns, "eye")
    return make_message("sensor_msgs/msg/CompressedImage", header=header, format=form, data=array("B", data))


def info_message(stamp_ns: int, camera: PinholeCamera = CAMERA) -> Any:
    p = np.hstack([camera.matrix, np.zeros((3, 1))])
    return make_message(
        "sensor_msgs/msg/CameraInfo",
        header=make_header(stamp_ns, "eye"),
        height=camera.height,
        width=camera.width,
        distortion_model="plumb_bob",
        d=array("d", [0.0] * 5),
        k=array("d", camera.matrix.ravel()),
        r=array("d", np.eye(3).ravel()),
        p=array("d", p.ravel()),
    )


def scan_message(stamp_ns: int, points: np.ndarray) -> Any:
    fields = [
        make_message("sensor_msgs/msg/PointField", name=name, offset=4 * k, datatype=7, count=1)
        for k, name in enumerate("xyz")
    ]
    return make_message(
        "sensor_msgs/msg/PointCloud2",
        header=make_header(stamp_ns, "lidar"),
        height=1,
        width=len(points),
        fields=fields,
        point_step=12,
        row_step=12 * len(points),
        data=array("B", points.astype("<f4").tobytes()),
        is_dense=True,
    )


def write_bag(
    path: Path,
    *,
    scans_ms: tuple[int, ...] = (8, 103, 195),
    leave_out: str = "",
    clouds: tuple[str, ...] = ("/points",),
    truth: bool = False,
    other_camera: bool = False,
) -> Path:
    """Images at 0, 100 and 200 ms (10, 20 and 30 in brightness times 5), scans of one point 10 m ahead plus the stamp
    in ms as centimeters. The lidar is 0.5 m above the camera, and 1 m behind it.
    """
    tf = transforms(("base", "lidar", (0, 0, 2.0), (0, 0, 0, 1.0)), ("base", "eye", (1.0, 0, 1.5), TO_OPTICAL))
    with write_recording(path) as writer:
        if leave_out != "/tf_static":
            writer.write("/tf_static", "tf2_msgs/msg/TFMessage", START, tf, latched=True)
        for k in range(3):
            stamp = START + k * 100 * MS
            if leave_out != "/camera/camera_info":
                writer.write("/camera/camera_info", "sensor_msgs/msg/CameraInfo", stamp, info_message(stamp))
            image = jpeg_message(stamp, 50 + 50 * k)
            writer.write("/camera/image/compressed", "sensor_msgs/msg/CompressedImage", stamp + MS, image)
            if other_camera:
                writer.write("/rear/image/compressed", "sensor_msgs/msg/CompressedImage", stamp + MS, image)
            if truth and k != 1:
                ids, depth = np.full((48, 64), 13001, np.uint16), np.full((48, 64), 2500 + k, np.uint16)
                for topic, values in zip(TRUTH_TOPICS, (ids, depth), strict=True):
                    png = compressed(stamp, "mono16; png compressed", cv2.imencode(".png", values)[1].tobytes())
                    writer.write(topic, "sensor_msgs/msg/CompressedImage", stamp, png)
        for ms in scans_ms:
            points = np.array([[10.0 + ms / 100, 0.0, -0.5]])
            for topic in clouds:
                # All recorded in the same instant: only their headers tell them apart.
                message = scan_message(START + ms * MS, points)
                writer.write(topic, "sensor_msgs/msg/PointCloud2", START + 300 * MS, message)
    return path


def test_each_image_gets_the_scan_nearest_in_time(tmp_path):
    drive = RecordedDrive(write_bag(tmp_path / "drive"))
    assert len(drive) == 3
    assert not drive.supervision.has_segments
    for k, ms in enumerate((8, 103, 195)):
        image = drive[k]
        assert abs(int(image.rgb[20, 20, 0]) - (50 + 50 * k)) <= 2
        assert image.camera == CAMERA
        assert (image.panoptic_ids == 65535).all()
        # 1 m behind the camera and level with its axis: the point lies on the axis.
        rows, columns = np.nonzero(image.depth)
        assert len(rows) == 1
        assert (rows[0], columns[0]) in {(23, 31), (23, 32), (24, 31), (24, 32)}
        assert image.depth.max() == pytest.approx(9.0 + ms / 100)


def test_images_without_a_scan_nearby_are_left_out(tmp_path):
    drive = RecordedDrive(write_bag(tmp_path / "drive", scans_ms=(8, 230)))
    assert [drive[k].rgb[0, 0, 0] // 50 for k in range(len(drive))] == [1, 3]


def test_rendered_truth_is_taken_where_it_is(tmp_path):
    drive = RecordedDrive(write_bag(tmp_path / "drive", truth=True))
    assert drive.supervision.has_segments
    assert len(drive) == 2
    image = drive[1]
    assert image.rgb[0, 0, 0] // 50 == 3
    assert (image.panoptic_ids == 13001).all()
    np.testing.assert_allclose(image.depth, 2.502, rtol=1e-6)


def test_a_range_of_a_recording_holds_its_last_images_out(tmp_path):
    write_bag(tmp_path / "drive")
    held_out = open_images(f"recording:{tmp_path / 'drive'}@-1:")
    assert len(held_out) == 1
    assert held_out[0].name == "drive/0002"
    assert held_out.sequence_of(0) == "drive"


def test_a_drive_can_be_sent_to_another_process(tmp_path):
    drive = RecordedDrive(write_bag(tmp_path / "drive"))
    before = drive[1].depth
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(drive))[1].depth, before)


def test_one_file_of_a_bag_stands_for_it(tmp_path):
    write_bag(tmp_path / "drive")
    assert len(RecordedDrive(tmp_path / "drive" / "drive.mcap")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leave_out": "/camera/camera_info"}, r"no camera_info for /camera/image/compressed"),
        ({"leave_out": "/camera/camera_info", "truth": True}, r"no camera_info for /camera/image/compressed"),
        (
            {"leave_out": "/camera/camera_info", "truth": True, "other_camera": True},
            r"2 image topics \(/camera/image/compressed, /rear/image/compressed\); expected one camera: "
            "leave the others out of the recording with ros2 bag convert",
        ),
        ({"clouds": ()}, r"0 topics with clouds \(none\); expected one lidar"),
        ({"clouds": ("/front", "/rear")}, r"2 topics with clouds \(/front, /rear\)"),
        ({"scans_ms": (900,)}, r"no image of /camera/image/compressed has a message of /points within 60 ms"),
    ],
)
def test_a_recording_that_lacks_something_is_refused_with_the_remedy(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        RecordedDrive(write_bag(tmp_path / "drive", **options))


def test_missing_calibration_between_the_sensors_names_the_image_and_the_frames(tmp_path):
    drive = RecordedDrive(write_bag(tmp_path / "drive", leave_out="/tf_static"))
    with pytest.raises(DataError, match=r"drive: image 0 \(stamp 1000.000 s\): no transform from frame 'lidar'"):
        drive[0]


def test_our_own_clouds_are_no_lidar(tmp_path):
    assert len(RecordedDrive(write_bag(tmp_path / "drive", clouds=("/points", "/panoptic_depth/points")))) == 3


def test_what_is_no_recording_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such file or folder"):
        RecordedDrive(tmp_path / "nothing")
