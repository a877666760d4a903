# SPDX-License-Identifier: Apache-2.0
"""A drive through a rendered street, written as a rosbag2: camera, lidar, transforms, and the truth beside them."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.recording import RecordingWriter, make_header, make_message, write_recording
from panoptic_depth_training.datasets.street_folder import require_size
from panoptic_depth_training.datasets.synthetic import BASE_FROM_LIDAR, FRONT_MOUNT, Frame, Street

SAMPLE_SEED = 2000295  # of samples/street_drive: traffic, people, a cyclist and trees, nothing too near
START_NS = 1_700_000_000 * 10**9  # an arbitrary date, so that stamps look like a vehicle's
CAMERA_FRAME, LIDAR_FRAME, BASE_FRAME, ODOM_FRAME = "camera_optical", "velodyne", "base_link", "odom"
FOCAL_SHARE = 0.85  # focal length over image width: 61 degrees across
JPEG_QUALITY = 82
FLOAT32 = 7  # sensor_msgs/PointField


@dataclass(frozen=True)
class DriveOptions:
    """What a recording holds. Raises ValueError for a drive without a frame or end, and for a size too small."""

    seed: int = SAMPLE_SEED
    seconds: float = 5.0
    rate_hz: float = 10.0
    height: int = 512
    width: int = 1024
    truth_every: int = 2  # frames; 0: no truth

    def __post_init__(self) -> None:
        require_size(self.height, self.width)
        has_end = 0.5 < self.seconds * self.rate_hz < math.inf  # frames before rounding; False for not-a-number
        if not (self.seconds > 0 and self.rate_hz > 0 and has_end):
            raise ValueError(
                f"a drive of {self.seconds:g} s at {self.rate_hz:g} frames a second: "
                f"expected finite numbers above 0 that make one frame or more"
            )

    @property
    def camera(self) -> PinholeCamera:
        focal = FOCAL_SHARE * self.width
        return PinholeCamera(self.height, self.width, focal, focal, (self.width - 1) / 2, (self.height - 1) / 2)

    @property
    def num_frames(self) -> int:
        return round(self.seconds * self.rate_hz)


def write_drive(folder: Path, options: DriveOptions) -> Iterator[int]:
    """Write the recording frame by frame; yields the number of frames done. The folder appears when all are."""
    street, camera = Street(options.seed, threads=os.cpu_count() or 1), options.camera
    with write_recording(folder, compress=True) as writer:
        writer.write("/tf_static", "tf2_msgs/msg/TFMessage", START_NS, _static_transforms(START_NS), latched=True)
        for index in range(options.num_frames):
            time_s = index / options.rate_hz
            stamp_ns = START_NS + round(time_s * 1e9)
            _write_motion(writer, stamp_ns, street.world_from_base(time_s))
            frame = street.frame(camera, time_s)
            _write_camera(writer, stamp_ns, frame)
            _write_lidar(writer, stamp_ns, street.lidar(time_s))
            if options.truth_every and index % options.truth_every == 0:
                _write_truth(writer, stamp_ns, frame)
            yield index + 1


def _write_motion(writer: RecordingWriter, stamp_ns: int, odom_from_base: np.ndarray) -> None:
    message = make_message(
        "tf2_msgs/msg/TFMessage", transforms=[_transform(stamp_ns, ODOM_FRAME, BASE_FRAME, odom_from_base)]
    )
    writer.write("/tf", "tf2_msgs/msg/TFMessage", stamp_ns, message)


def _write_camera(writer: RecordingWriter, stamp_ns: int, frame: Frame) -> None:
    jpeg = cv2.imencode(".jpg", frame.rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    _write_compressed(writer, "/camera/image_raw/compressed", stamp_ns, "rgb8; jpeg compressed bgr8", jpeg)
    writer.write("/camera/camera_info", "sensor_msgs/msg/CameraInfo", stamp_ns, _camera_info(stamp_ns, frame.camera))


def _write_truth(writer: RecordingWriter, stamp_ns: int, frame: Frame) -> None:
    """Panoptic ids, and depth in millimeters with 0 for none or farther than 16 bits reach."""
    millimeters = np.round(frame.depth * 1000)
    millimeters = np.where(millimeters > np.iinfo(np.uint16).max, 0, millimeters).astype(np.uint16)
    for topic, encoding, image in (
        ("/truth/panoptic/compressed", "mono16", frame.panoptic_ids),
        ("/truth/depth/compressed", "16UC1", millimeters),
    ):
        png = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
        _write_compressed(writer, topic, stamp_ns, f"{encoding}; png compressed", png)


def _write_compressed(writer: RecordingWriter, topic: str, stamp_ns: int, form: str, data: np.ndarray) -> None:
    header = make_header(stamp_ns, CAMERA_FRAME)
    message = make_message(
        "sensor_msgs/msg/CompressedImage", header=header, format=form, data=array("B", data.tobytes())
    )
    writer.write(topic, "sensor_msgs/msg/CompressedImage", stamp_ns, message)


def _write_lidar(writer: RecordingWriter, stamp_ns: int, points: np.ndarray) -> None:
    fields = [
        make_message("sensor_msgs/msg/PointField", name=name, offset=4 * i, datatype=FLOAT32, count=1)
        for i, name in enumerate(("x", "y", "z", "intensity"))
    ]
    message = make_message(
        "sensor_msgs/msg/PointCloud2",
        header=make_header(stamp_ns, LIDAR_FRAME),
        height=1,
        width=len(points),
        fields=fields,
        is_bigendian=False,
        point_step=16,
        row_step=16 * len(points),
        data=array("B", points.astype("<f4").tobytes()),
        is_dense=True,
    )
    writer.write("/velodyne_points", "sensor_msgs/msg/PointCloud2", stamp_ns, message)


def _camera_info(stamp_ns: int, camera: PinholeCamera) -> Any:
    k, identity = camera.matrix, np.eye(3)
    p = np.concatenate([k, np.zeros((3, 1))], axis=1)
    return make_message(
        "sensor_msgs/msg/CameraInfo",
        header=make_header(stamp_ns, CAMERA_FRAME),
        height=camera.height,
        width=camera.width,
        distortion_model="plumb_bob",
        d=array("d", [0.0] * 5),
        k=array("d", k.ravel()),
        r=array("d", identity.ravel()),
        p=array("d", p.ravel()),
        binning_x=0,
        binning_y=0,
        roi=make_message(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        ),
    )


def _static_transforms(stamp_ns: int) -> Any:
    transforms = [
        _transform(stamp_ns, BASE_FRAME, LIDAR_FRAME, BASE_FROM_LIDAR),
        _transform(stamp_ns, BASE_FRAME, CAMERA_FRAME, FRONT_MOUNT.base_from_camera),
    ]
    return make_message("tf2_msgs/msg/TFMessage", transforms=transforms)


def _transform(stamp_ns: int, parent: str, child: str, parent_from_child: np.ndarray) -> Any:
    x, y, z, w = quaternion_from_rotation(parent_from_child[:3, :3])
    position = dict(zip("xyz", map(float, parent_from_child[:3, 3]), strict=True))
    return make_message(
        "geometry_msgs/msg/TransformStamped",
        header=make_header(stamp_ns, parent),
        child_frame_id=child,
        transform=make_message(
            "geometry_msgs/msg/Transform",
            translation=make_message("geometry_msgs/msg/Vector3", **position),
            rotation=make_message("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w),
        ),
    )


def quaternion_from_rotation(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """Unit quaternion (x, y, z, w), w >= 0, of a rotation matrix [3, 3]."""
    # The eigenvector to the largest eigenvalue (Bar-Itzhack 2000) has no special cases.
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.asarray(rotation, np.float64)
    symmetric = np.array(
        [
            [xx - yy - zz, yx + xy, zx + xz, zy - yz],
            [yx + xy, yy - xx - zz, zy + yz, xz - zx],
            [zx + xz, zy + yz, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    x, y, z, w = np.linalg.eigh(symmetric)[1][:, -1].tolist()
    sign = 1.0 if w >= 0 else -1.0
    return sign * x, sign * y, sign * z, sign * w
