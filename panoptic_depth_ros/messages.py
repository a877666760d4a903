# SPDX-License-Identifier: Apache-2.0
"""ROS messages to arrays and back; the only file that knows encodings and message layouts.

Messages are those of rclpy or of rosbags: both carry the same field names. Incoming images become RGB arrays
[H, W, 3] uint8, as a view where the bytes allow it. Outgoing ones are made by a `MakeMessage`, which knows the classes.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import cv2
import numpy as np

from panoptic_depth_ros.camera import Calibration, PinholeCamera
from panoptic_depth_ros.cloud import POINT
from panoptic_depth_ros.manifest import Manifest
from panoptic_depth_ros.segments import SegmentSummary
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_PANOPTIC_ID

IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO, POINT_CLOUD = "sensor_msgs/msg/CameraInfo", "sensor_msgs/msg/PointCloud2"
PANOPTIC_INFO, PANOPTIC_SEGMENTS = "panoptic_depth/msg/PanopticInfo", "panoptic_depth/msg/PanopticSegments"
LABEL_INFO = "vision_msgs/msg/LabelInfo"


class MessageError(ValueError):
    """A message cannot be used; the text names the field, what was expected and, where there is one, the remedy."""


class MakeMessage(Protocol):
    """Makes a message of a type such as ``sensor_msgs/msg/Image`` with these fields set, the others at their defaults.

    Sequences of numbers come as array.array, the only type that every rclpy since Humble takes without looking at
    each element.
    """

    def __call__(self, type_name: str, **values: Any) -> Any: ...


# ---- images in ------------------------------------------------------------------------------------------------------


def _convert(code: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: cv2.cvtColor(pixels, code)


def _as_is(pixels: np.ndarray) -> np.ndarray:
    return pixels


# encoding -> (channels, bytes per channel, to RGB). OpenCV names a Bayer pattern by its second row, ROS by its first.
_DECODERS: dict[str, tuple[int, int, Callable[[np.ndarray], np.ndarray]]] = {
    "rgb8": (3, 1, _as_is),
    "bgr8": (3, 1, _convert(cv2.COLOR_BGR2RGB)),
    "8UC3": (3, 1, _convert(cv2.COLOR_BGR2RGB)),
    "rgba8": (4, 1, _convert(cv2.COLOR_RGBA2RGB)),
    "bgra8": (4, 1, _convert(cv2.COLOR_BGRA2RGB)),
    "8UC4": (4, 1, _convert(cv2.COLOR_BGRA2RGB)),
    "mono8": (1, 1, _convert(cv2.COLOR_GRAY2RGB)),
    "8UC1": (1, 1, _convert(cv2.COLOR_GRAY2RGB)),
    "bayer_rggb8": (1, 1, _convert(cv2.COLOR_BayerBG2RGB)),
    "bayer_bggr8": (1, 1, _convert(cv2.COLOR_BayerRG2RGB)),
    "bayer_gbrg8": (1, 1, _convert(cv2.COLOR_BayerGR2RGB)),
    "bayer_grbg8": (1, 1, _convert(cv2.COLOR_BayerGB2RGB)),
    "yuv422": (2, 1, _convert(cv2.COLOR_YUV2RGB_UYVY)),
    "uyvy": (2, 1, _convert(cv2.COLOR_YUV2RGB_UYVY)),
    "yuv422_yuy2": (2, 1, _convert(cv2.COLOR_YUV2RGB_YUYV)),
    "yuyv": (2, 1, _convert(cv2.COLOR_YUV2RGB_YUYV)),
}
# The 16-bit twins differ in the bytes per channel only.
_DECODERS |= {
    name.replace("8", "16"): (channels, 2, convert)
    for name, (channels, _, convert) in _DECODERS.items()
    if name.endswith("8")
}
ENCODINGS = tuple(_DECODERS)


def rgb_from_image(message: Any) -> np.ndarray:
    """A sensor_msgs/Image as RGB [H, W, 3] uint8, a view of the message's bytes if it is rgb8.

    Of 16-bit channels the upper byte is kept, in the message's byte order. Encodings that are not in ENCODINGS go
    through cv_bridge.

    Raises:
        MessageError: zero size, a ``step`` or data that do not hold the pixels, an encoding nobody knows.
    """
    height, width, encoding = int(message.height), int(message.width), str(message.encoding)
    if height == 0 or width == 0:
        raise MessageError(f"image is {width}x{height} px; expected at least 1x1")
    if encoding not in _DECODERS:
        return _rgb_by_cv_bridge(message, encoding)
    channels, bytes_each, to_rgb = _DECODERS[encoding]
    pixels = _pixels(message, height, width, encoding, channels * bytes_each)
    if bytes_each == 2:
        upper = 0 if message.is_bigendian else 1
        pixels = np.ascontiguousarray(pixels[..., upper::2])
    if encoding.startswith(("yuv", "uyv", "yuy")) and width % 2:
        raise MessageError(f"image encoding {encoding} shares colors between two pixels, but the width {width} is odd")
    return to_rgb(pixels[..., 0] if channels == 1 else pixels)


def _pixels(message: Any, height: int, width: int, encoding: str, bytes_per_pixel: int) -> np.ndarray:
    """The message's bytes [H, W, bytes per pixel], a view without the padding at the end of rows."""
    step, needed = int(message.step), width * bytes_per_pixel
    data = np.frombuffer(message.data, np.uint8)
    if step < needed:
        raise MessageError(f"image step is {step} bytes; {width} px of {encoding} need at least {needed}")
    # The last row's padding may be missing: some drivers leave it out.
    if len(data) < step * (height - 1) + needed:
        raise MessageError(
            f"image data has {len(data)} bytes; {height} rows of step {step} need {step * height}: "
            "the message was cut short or its step is wrong"
        )
    rows = np.lib.stride_tricks.as_strided(data, (height, needed), (step, 1), writeable=False)
    return rows.reshape(height, width, bytes_per_pixel) if step == needed else _padded(rows, width, bytes_per_pixel)


def _padded(rows: np.ndarray, width: int, bytes_per_pixel: int) -> np.ndarray:
    shape, strides = (len(rows), width, bytes_per_pixel), (rows.strides[0], bytes_per_pixel, 1)
    return np.lib.stride_tricks.as_strided(rows, shape, strides, writeable=False)


def _rgb_by_cv_bridge(message: Any, encoding: str) -> np.ndarray:
    try:
        from cv_bridge import CvBridge, CvBridgeError
    except ImportError as error:
        raise MessageError(
            f"image encoding {encoding!r} is not one of {', '.join(ENCODINGS)}, and cv_bridge, "
            "which may know it, cannot be imported; publish one of these or install cv_bridge"
        ) from error
    try:
        return np.asarray(CvBridge().imgmsg_to_cv2(message, "rgb8"))
    except (CvBridgeError, KeyError, ImportError, AttributeError) as error:
        # The last two: cv_bridge's compiled half does not import under another major release of NumPy than it was built
        # with, and NumPy 2 no longer has what swaps the bytes of big-endian images.
        raise MessageError(f"image encoding {encoding!r}: cv_bridge cannot convert it to rgb8 ({error})") from error


def rgb_from_compressed(message: Any) -> np.ndarray:
    """A sensor_msgs/CompressedImage (JPEG, PNG) as RGB [H, W, 3] uint8.

    Orientation tags are ignored, because camera_info describes the pixels as they are stored. Raises MessageError
    where the bytes are no whole image.
    """
    data = np.frombuffer(message.data, np.uint8)
    # Eight bits per channel either way; a Bayer mosaic must stay one channel.
    image = _decoded(data, cv2.IMREAD_ANYCOLOR if "bayer" in message.format else cv2.IMREAD_COLOR)
    if image is None:
        raise MessageError(
            f"compressed image of format {message.format!r} with {len(data)} bytes cannot be decoded; "
            "expected a whole JPEG or PNG"
        )
    if image.ndim == 3:
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    raw_encoding = message.format.split(";")[0].strip()
    if raw_encoding not in _DECODERS:
        raise MessageError(f"compressed image has encoding {raw_encoding!r}; expected one of {', '.join(ENCODINGS)}")
    return _DECODERS[raw_encoding][2](image)


RGB_DECODERS: dict[str, Callable[[Any], np.ndarray]] = {IMAGE: rgb_from_image, COMPRESSED_IMAGE: rgb_from_compressed}


def _decoded(data: np.ndarray, flags: int) -> np.ndarray | None:
    if not _is_whole(data):
        return None
    try:
        return cv2.imdecode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # a header of more pixels than OpenCV is willing to allocate
        return None


def _is_whole(data: np.ndarray) -> bool:
    """False for a JPEG without its end: OpenCV would fill the missing part with gray and say nothing."""
    is_jpeg = len(data) > 2 and data[0] == 0xFF and data[1] == 0xD8
    return len(data) > 0 and (not is_jpeg or data[-64:].tobytes().rfind(b"\xff\xd9") >= 0)


def calibration_from_info(info: Any) -> Calibration:
    """The Calibration in a sensor_msgs/CameraInfo."""
    return Calibration(
        height=int(info.height),
        width=int(info.width),
        k=_floats(info.k),
        p=_floats(info.p),
        distortion_model=str(info.distortion_model),
        d=_floats(info.d),
        binning_x=int(info.binning_x),
        binning_y=int(info.binning_y),
        roi_x=int(info.roi.x_offset),
        roi_y=int(info.roi.y_offset),
        roi_height=int(info.roi.height),
        roi_width=int(info.roi.width),
    )


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


# ---- messages out ---------------------------------------------------------------------------------------------------


class Buffer:
    """The bytes of a message's data field, allocated once per size and written in place by NumPy and OpenCV."""

    def __init__(self) -> None:
        self.data = array("B")

    def view(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """The bytes as an array of this shape; what was there before is to be overwritten."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if len(self.data) != size:
            self.data = array("B", bytes(size))
        return np.frombuffer(self.data, dtype).reshape(shape)


_IMAGE_LAYOUTS: dict[str, tuple[Any, int]] = {  # encoding -> (element type, channels)
    "mono8": (np.uint8, 1),
    "mono16": (np.uint16, 1),
    "rgb8": (np.uint8, 3),
    "32FC1": (np.float32, 1),
}


def image_view(buffer: Buffer, encoding: str, height: int, width: int) -> np.ndarray:
    """The array [H, W] or [H, W, 3] that `image_message` will publish from this buffer."""
    dtype, channels = _IMAGE_LAYOUTS[encoding]
    return buffer.view((height, width) if channels == 1 else (height, width, channels), dtype)


def image_message(make: MakeMessage, header: Any, encoding: str, height: int, width: int, buffer: Buffer) -> Any:
    """A sensor_msgs/Image of the buffer's bytes; rows without padding, because RViz ignores ``step``."""
    dtype, channels = _IMAGE_LAYOUTS[encoding]
    return make(
        IMAGE,
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(sys.byteorder == "big"),
        step=width * channels * np.dtype(dtype).itemsize,
        data=buffer.data,
    )


def camera_info_message(make: MakeMessage, header: Any, camera: PinholeCamera) -> Any:
    """A sensor_msgs/CameraInfo of a camera; P repeats K, so depth image tools that read P find the same rays."""
    k = camera.matrix
    return make(
        CAMERA_INFO,
        header=header,
        height=camera.height,
        width=camera.width,
        distortion_model=camera.distortion_model,
        d=array("d", camera.distortion or (0.0,) * 5),
        k=k.ravel(),
        r=np.eye(3).ravel(),
        p=np.hstack([k, np.zeros((3, 1))]).ravel(),
    )


_POINT_FIELD_TYPES = {"<f4": 7, "<u4": 6}  # sensor_msgs/PointField FLOAT32, UINT32


def point_fields(make: MakeMessage) -> list[Any]:
    """The PointFields of a POINT record. ``rgb`` is declared float32: PCL before 1.12 knows it no other way."""
    return [
        make(
            "sensor_msgs/msg/PointField",
            name=name,
            offset=offset,
            datatype=_point_field_type(name, kind),
            count=1,
        )
        for name, (kind, offset) in ((name, POINT.fields[name][:2]) for name in POINT.names or ())  # type: ignore[index]
    ]


def _point_field_type(name: str, kind: np.dtype) -> int:
    return _POINT_FIELD_TYPES["<f4" if name == "rgb" else kind.str]


def cloud_message(
    make: MakeMessage, header: Any, fields: list[Any], height: int, width: int, is_dense: bool, data: array
) -> Any:
    """A sensor_msgs/PointCloud2 of POINT records; ``is_dense`` says that no point is NaN."""
    return make(
        POINT_CLOUD,
        header=header,
        height=height,
        width=width,
        fields=fields,
        is_bigendian=False,
        point_step=POINT.itemsize,
        row_step=POINT.itemsize * width,
        data=data,
        is_dense=is_dense,
    )


def panoptic_info_message(make: MakeMessage, header: Any, manifest: Manifest) -> Any:
    """The latched PanopticInfo: what the label images' numbers mean."""
    taxonomy = manifest.taxonomy
    return make(
        PANOPTIC_INFO,
        header=header,
        model=manifest.name,
        model_version=manifest.version,
        model_digest=manifest.digest,
        label_divisor=LABEL_DIVISOR,
        void_id=VOID_PANOPTIC_ID,
        category=array("H", range(len(taxonomy))),
        name=list(taxonomy.names),
        is_thing=array("B", [category.is_thing for category in taxonomy]),
        color=array("B", [value for category in taxonomy for value in category.color]),
    )


def label_info_message(make: MakeMessage, header: Any, manifest: Manifest) -> Any:
    """The latched vision_msgs/LabelInfo: the names of the semantic image's values."""
    classes = [
        make("vision_msgs/msg/VisionClass", class_id=i, class_name=category.name)
        for i, category in enumerate(manifest.taxonomy)
    ]
    return make(LABEL_INFO, header=header, class_map=classes, threshold=0.0)


def segments_message(make: MakeMessage, header: Any, summary: SegmentSummary) -> Any:
    """The PanopticSegments of one image."""
    return make(
        PANOPTIC_SEGMENTS,
        header=header,
        id=_array("I", summary.panoptic_id),
        category=_array("H", summary.category_id),
        is_thing=_array("B", summary.is_thing),
        score=_array("f", summary.score),
        area=_array("I", summary.area),
        box=_array("I", summary.box),
        mean_depth=_array("f", summary.mean_depth),
        centroid=_array("f", summary.centroid),
    )


def _array(typecode: str, values: np.ndarray) -> array:
    return array(typecode, values.ravel().tolist())
