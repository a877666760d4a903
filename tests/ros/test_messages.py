# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from panoptic_depth_ros import messages, ros_types
from panoptic_depth_ros.camera import Calibration, PinholeCamera
from panoptic_depth_ros.manifest import Manifest
from panoptic_depth_ros.messages import (
    Buffer,
    MakeMessage,
    MessageError,
    calibration_from_info,
    camera_info_message,
    image_message,
    image_view,
    label_info_message,
    panoptic_info_message,
    rgb_from_compressed,
    rgb_from_image,
    segments_message,
)
from panoptic_depth_ros.segments import SegmentSummary

ORANGE = (200, 100, 50)
PIXEL: dict[str, tuple[int, ...]] = {  # one orange pixel, as each encoding orders its channels
    "rgb8": (200, 100, 50),
    "bgr8": (50, 100, 200),
    "rgba8": (200, 100, 50, 7),
    "bgra8": (50, 100, 200, 7),
    "8UC3": (50, 100, 200),
    "8UC4": (50, 100, 200, 7),
}
YUV = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv")
BAYER = ("rggb", "bggr", "gbrg", "grbg")


def image(
    encoding: str, rows: Iterable[bytes], width: int, *, padding: int = 0, cut: int = 0, big_endian: bool = False
) -> Any:
    """A sensor_msgs/Image of these rows, each followed by padding, the last ``cut`` bytes missing."""
    rows = list(rows)
    data = b"".join(row + b"\xee" * padding for row in rows)
    return SimpleNamespace(
        height=len(rows),
        width=width,
        encoding=encoding,
        is_bigendian=int(big_endian),
        step=len(rows[0]) + padding,
        data=array("B", data[: len(data) - cut]),
    )


def mosaic(pattern: str, color: tuple[int, int, int], height: int, width: int) -> np.ndarray:
    """What a sensor with this color filter sees of a flat color; the pattern names its top left 2x2 pixels."""
    plane = np.empty((height, width), np.uint8)
    for index, letter in enumerate(pattern):
        plane[index // 2 :: 2, index % 2 :: 2] = color["rgb".index(letter)]
    return plane


def sixteen_bit(row: bytes, big_endian: bool) -> bytes:
    """Each byte as the upper one of a 16-bit value whose lower one is misleading."""
    return b"".join(bytes([value, 0x99] if big_endian else [0x99, value]) for value in row)


# ---- images in: values ----------------------------------------------------------------------------------------------

# Tight rows, padded rows, and padded rows whose last padding a driver left out.
LAYOUTS = {"tight": (0, 0), "padded": (5, 0), "last padding missing": (5, 5)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", PIXEL)
def test_color_channels_come_out_as_rgb(encoding: str, layout: str) -> None:
    padding, cut = LAYOUTS[layout]
    black = bytes(len(PIXEL[encoding]))
    row = bytes(PIXEL[encoding]) + black + black
    rgb = rgb_from_image(image(encoding, [black * 3, row], 3, padding=padding, cut=cut))
    assert rgb.shape == (2, 3, 3)
    assert rgb.dtype == np.uint8
    assert tuple(rgb[1, 0]) == ORANGE
    assert rgb.sum(dtype=int) == sum(ORANGE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_gray_becomes_three_equal_channels(encoding: str, layout: str) -> None:
    padding, cut = LAYOUTS[layout]
    rgb = rgb_from_image(image(encoding, [bytes([0, 128]), bytes([255, 3])], 2, padding=padding, cut=cut))
    np.testing.assert_array_equal(rgb, np.array([[0, 128], [255, 3]])[..., None].repeat(3, 2))


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ["rgb16", "bgr16", "rgba16", "bgra16", "mono16"])
def test_of_16_bits_the_upper_eight_are_kept(encoding: str, layout: str, big_endian: bool) -> None:
    padding, cut = LAYOUTS[layout]
    pixel = bytes(PIXEL.get(encoding.replace("16", "8"), (90,)))
    rows = [sixteen_bit(pixel + bytes(len(pixel)), big_endian)] * 2
    rgb = rgb_from_image(image(encoding, rows, 2, padding=padding, cut=cut, big_endian=big_endian))
    assert rgb.dtype == np.uint8
    expected = (90, 90, 90) if encoding == "mono16" else ORANGE
    np.testing.assert_array_equal(rgb, [[expected, (0, 0, 0)]] * 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("seen", BAYER)
@pytest.mark.parametrize("named", BAYER)
def test_a_bayer_mosaic_gives_its_color_under_its_own_name_only(named: str, seen: str, bits: int, layout: str) -> None:
    padding, cut = LAYOUTS[layout]
    rows = [row.tobytes() for row in mosaic(seen, ORANGE, 8, 10)]
    if bits == 16:
        rows = [sixteen_bit(row, big_endian=True) for row in rows]
    rgb = rgb_from_image(image(f"bayer_{named}{bits}", rows, 10, padding=padding, cut=cut, big_endian=bits == 16))
    assert rgb.shape == (8, 10, 3)
    assert rgb.dtype == np.uint8
    assert (rgb == ORANGE).all() == (named == seen)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", YUV)
def test_yuv_is_limited_range_bt_601(encoding: str, layout: str) -> None:
    padding, cut = LAYOUTS[layout]
    # (first brightness, second brightness, U, V) -> the two pixels' colors
    pairs = {
        (235, 16, 128, 128): ((255, 255, 255), (0, 0, 0)),
        (81, 81, 90, 240): ((255, 0, 0), (255, 0, 0)),
        (145, 145, 54, 34): ((0, 255, 0), (0, 255, 0)),
        (41, 41, 240, 110): ((0, 0, 255), (0, 0, 255)),
        # 1.164 * (100 - 16) = 97.8; red + 1.596 * 32 = 148.8; green - 0.391 * -28 - 0.813 * 32 = 82.7; blue 41.3
        (100, 150, 100, 160): ((149, 83, 41), (207, 141, 99)),
    }
    row = b""
    for y0, y1, u, v in pairs:
        row += bytes([u, y0, v, y1] if encoding in ("yuv422", "uyvy") else [y0, u, y1, v])
    rgb = rgb_from_image(image(encoding, [row, row], 2 * len(pairs), padding=padding, cut=cut))
    expected = [color for colors in pairs.values() for color in colors]
    np.testing.assert_allclose(rgb.astype(int), [expected] * 2, atol=2)


def test_every_encoding_that_is_offered_is_tested_here() -> None:
    tested = {*PIXEL, "mono8", "8UC1", *YUV, "rgb16", "bgr16", "rgba16", "bgra16", "mono16"}
    tested |= {f"bayer_{pattern}{bits}" for pattern in BAYER for bits in (8, 16)}
    assert set(messages.ENCODINGS) == tested


def test_rgb8_is_a_view_that_protects_the_message() -> None:
    message = image("rgb8", [bytes(range(6)), bytes(range(6, 12))], 2)
    rgb = rgb_from_image(message)
    message.data[3] = 99
    assert rgb[0, 1, 0] == 99
    with pytest.raises(ValueError, match="read-only"):
        rgb[0, 0] = 1


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono16"])
def test_images_of_either_library_are_read(make: MakeMessage, encoding: str) -> None:
    data = array("B", range(2 * 3 * 6))
    message = make("sensor_msgs/msg/Image", height=2, width=3, encoding=encoding, step=18, data=data)
    plain = SimpleNamespace(height=2, width=3, encoding=encoding, step=18, data=bytes(data), is_bigendian=0)
    np.testing.assert_array_equal(rgb_from_image(message), rgb_from_image(plain))


# ---- images in: what cannot be used ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"height": 0}, "image is 2x0 px"),
        ({"width": 0}, "image is 0x2 px"),
        ({"step": 5}, "image step is 5 bytes; 2 px of rgb8 need at least 6"),
        ({"step": 0}, "image step is 0 bytes"),
        ({"step": 7}, "image data has 12 bytes; 2 rows of step 7 need 14"),
        ({"height": 3}, "image data has 12 bytes; 3 rows of step 6 need 18"),
        ({"data": array("B")}, "image data has 0 bytes"),
        ({"data": array("B", bytes(11))}, "image data has 11 bytes"),
        ({"encoding": "rgb16"}, "image step is 6 bytes; 2 px of rgb16 need at least 12"),
        ({"encoding": "yuyv", "width": 3}, "encoding yuyv .* width 3 is odd"),
        ({"encoding": "uyvy", "width": 1, "step": 2}, "encoding uyvy .* width 1 is odd"),
    ],
)
def test_an_image_that_contradicts_itself_says_where(changes: dict, text: str) -> None:
    message = image("rgb8", [bytes(6)] * 2, 2)
    with pytest.raises(MessageError, match=text):
        rgb_from_image(SimpleNamespace(**{**vars(message), **changes}))


@pytest.mark.parametrize("encoding", ["", "h265", "RGB8"])
def test_an_unknown_encoding_is_named_together_with_those_known(encoding: str) -> None:
    with pytest.raises(MessageError, match=rf"image encoding '{encoding}'") as error:
        rgb_from_image(image(encoding, [bytes(6)], 2))
    if "cannot be imported" in str(error.value):
        assert "rgb8, bgr8" in str(error.value)


@pytest.mark.parametrize(
    "error",
    [
        ImportError("numpy.core.multiarray failed to import"),  # built with another major release of NumPy
        AttributeError("`newbyteorder` was removed from the ndarray class in NumPy 2.0"),
    ],
)
def test_a_cv_bridge_that_does_not_fit_numpy_costs_one_named_frame(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CvBridge:
        def imgmsg_to_cv2(self, message: Any, encoding: str) -> np.ndarray:
            raise error

    monkeypatch.setitem(sys.modules, "cv_bridge", SimpleNamespace(CvBridge=CvBridge, CvBridgeError=TypeError))
    with pytest.raises(MessageError, match=f"'nv21': cv_bridge cannot convert it to rgb8 .*{error.args[0][:9]}"):
        rgb_from_image(image("nv21", [bytes(6)], 2))


# ---- compressed images ----------------------------------------------------------------------------------------------


def compressed(data: bytes, image_format: str) -> Any:
    return SimpleNamespace(data=array("B", data), format=image_format)


def encoded(extension: str, picture: np.ndarray) -> bytes:
    return cv2.imencode(extension, picture)[1].tobytes()


def smooth_picture() -> np.ndarray:
    """RGB [40, 60, 3]: red grows to the right, green downwards, blue is even; a JPEG hardly changes it."""
    v, u = np.mgrid[0:40, 0:60]
    return np.stack([u * 4, v * 6, np.full_like(u, 90)], -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("extension", "image_format", "tolerance"),
    [(".png", "bgr8; png compressed bgr8", 0), (".jpg", "bgr8; jpeg compressed bgr8", 8), (".jpg", "jpeg", 8)],
)
def test_a_compressed_image_is_decoded_to_rgb(
    make: MakeMessage, extension: str, image_format: str, tolerance: int
) -> None:
    data = array("B", encoded(extension, smooth_picture()[..., ::-1]))
    message = make("sensor_msgs/msg/CompressedImage", format=image_format, data=data)
    rgb = rgb_from_compressed(message)
    assert rgb.dtype == np.uint8
    np.testing.assert_allclose(rgb.astype(int), smooth_picture(), atol=tolerance)


def test_gray_and_16_bit_pictures_become_8_bit_rgb() -> None:
    gray = np.arange(48, dtype=np.uint8).reshape(6, 8)
    rgb = rgb_from_compressed(compressed(encoded(".png", gray), "mono8; png compressed "))
    np.testing.assert_array_equal(rgb, gray[..., None].repeat(3, 2))
    deep = gray.astype(np.uint16) * 256 + 0x40
    rgb = rgb_from_compressed(compressed(encoded(".png", deep), "mono16; png compressed "))
    np.testing.assert_array_equal(rgb, gray[..., None].repeat(3, 2))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", BAYER)
def test_a_compressed_bayer_mosaic_gives_its_color(pattern: str, bits: int) -> None:
    plane = mosaic(pattern, ORANGE, 8, 10)
    if bits == 16:
        plane = plane.astype(np.uint16) * 256 + 0x99
    rgb = rgb_from_compressed(compressed(encoded(".png", plane), f"bayer_{pattern}{bits}; png compressed "))
    assert rgb.dtype == np.uint8
    assert (rgb == ORANGE).all()


def test_a_bayer_camera_whose_driver_compressed_colors_is_read_as_colors() -> None:
    data = encoded(".png", smooth_picture()[..., ::-1])
    rgb = rgb_from_compressed(compressed(data, "bayer_rggb8; jpeg compressed bgr8"))
    np.testing.assert_array_equal(rgb, smooth_picture())


def test_an_unknown_bayer_pattern_is_no_color() -> None:
    data = encoded(".png", mosaic("rggb", ORANGE, 8, 10))
    with pytest.raises(MessageError, match="bayer_rgbw8"):
        rgb_from_compressed(compressed(data, "bayer_rgbw8; png compressed "))


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_a_compressed_image_cut_anywhere_is_refused(extension: str) -> None:
    data = encoded(extension, smooth_picture())
    for length in range(0, len(data), 3):
        with pytest.raises(MessageError, match=rf"format 'cam' with {length} bytes cannot be decoded"):
            rgb_from_compressed(compressed(data[:length], "cam"))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


HUGE_PNG = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0))


@pytest.mark.parametrize(
    "data",
    [b"\xff\xd8\xff\xd9", b"no picture at all" * 10, HUGE_PNG + png_chunk(b"IDAT", b"x")],
    ids=["jpeg without content", "text", "png of 40 gigapixels"],
)
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError, match=f"'jpeg' with {len(data)} bytes cannot be decoded"):
        rgb_from_compressed(compressed(data, "jpeg"))


def test_orientation_tags_are_ignored() -> None:
    jpeg = encoded(".jpg", smooth_picture()[..., ::-1])
    # TIFF header, one entry: tag 0x0112 (orientation), type short, count 1, value 6 (turn by 90 degrees)
    tiff = b"MM\x00\x2a" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\x00\x00" + tiff
    turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    as_opencv_turns_it = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR)
    assert as_opencv_turns_it is not None
    assert as_opencv_turns_it.shape == (60, 40, 3)
    assert rgb_from_compressed(compressed(turned, "jpeg")).shape == (40, 60, 3)


# ---- camera_info ----------------------------------------------------------------------------------------------------


def test_camera_info_is_read_field_by_field(make: MakeMessage) -> None:
    roi = make("sensor_msgs/msg/RegionOfInterest", x_offset=5, y_offset=6, height=100, width=200)
    info = make(
        "sensor_msgs/msg/CameraInfo",
        height=480,
        width=640,
        distortion_model="rational_polynomial",
        d=array("d", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
        k=np.arange(9.0),
        p=np.arange(12.0) + 100,
        binning_x=2,
        binning_y=3,
        roi=roi,
    )
    assert calibration_from_info(info) == Calibration(
        height=480,
        width=640,
        k=tuple(np.arange(9.0)),
        p=tuple(np.arange(12.0) + 100),
        distortion_model="rational_polynomial",
        d=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        binning_x=2,
        binning_y=3,
        roi_x=5,
        roi_y=6,
        roi_height=100,
        roi_width=200,
    )


@pytest.mark.parametrize("distortion", [(), (-0.3, 0.1, 0.0, 0.0, 0.01)])
def test_a_published_camera_reads_back_as_itself(
    make: MakeMessage, header: Any, over_the_wire: Callable[..., Any], distortion: tuple[float, ...]
) -> None:
    camera = PinholeCamera(48, 64, 50.5, 49.5, 31.25, 23.75, "plumb_bob", distortion)
    info = over_the_wire(camera_info_message(make, header, camera), "sensor_msgs/msg/CameraInfo")
    assert calibration_from_info(info).camera(48, 64) == camera
    assert info.header.frame_id == header.frame_id
    np.testing.assert_array_equal(info.k, [50.5, 0, 31.25, 0, 49.5, 23.75, 0, 0, 1])
    np.testing.assert_array_equal(info.r, np.eye(3).ravel())
    np.testing.assert_array_equal(info.p, [50.5, 0, 31.25, 0, 0, 49.5, 23.75, 0, 0, 0, 1, 0])


# ---- messages out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "code", "shape"),
    [("mono8", "<u1", (3, 5)), ("mono16", "<u2", (3, 5)), ("rgb8", "<u1", (3, 5, 3)), ("32FC1", "<f4", (3, 5))],
)
def test_an_image_message_holds_what_was_written_into_its_view(
    make: MakeMessage,
    header: Any,
    over_the_wire: Callable[..., Any],
    encoding: str,
    code: str,
    shape: tuple[int, ...],
) -> None:
    buffer, values = Buffer(), np.arange(1, np.prod(shape) + 1).astype(code).reshape(shape)
    image_view(buffer, encoding, 3, 5)[:] = values
    sent = image_message(make, header, encoding, 3, 5, buffer)
    received = over_the_wire(sent, "sensor_msgs/msg/Image")
    assert (received.height, received.width, received.encoding, received.is_bigendian) == (3, 5, encoding, 0)
    assert received.step == values.strides[0]
    assert bytes(received.data) == values.tobytes()
    assert (received.header.stamp.sec, received.header.stamp.nanosec) == (
        header.stamp.sec,
        header.stamp.nanosec,
    )


def test_a_buffer_keeps_its_memory_until_the_size_changes() -> None:
    buffer = Buffer()
    first = buffer.view((4, 6), np.uint8)
    data = buffer.data
    assert np.shares_memory(first, buffer.view((4, 6), np.uint8))
    assert buffer.data is data
    assert buffer.view((2, 3), np.float32).shape == (2, 3)  # as many bytes
    assert buffer.data is data
    assert buffer.view((5, 6), np.uint8).size == len(buffer.data) == 30


def test_panoptic_info_tells_what_the_numbers_mean(
    make: MakeMessage, header: Any, over_the_wire: Callable[..., Any], manifest: Manifest
) -> None:
    info = over_the_wire(panoptic_info_message(make, header, manifest), "panoptic_depth/msg/PanopticInfo")
    assert (info.model, info.model_version, info.model_digest) == ("made-up", "1.2.3", "0123abcd")
    assert (info.label_divisor, info.void_id) == (1000, 65535)
    assert list(info.category) == [0, 1, 2, 3]
    assert list(info.name) == ["road", "sky", "car", "person"]
    assert list(info.is_thing) == [0, 0, 1, 1]
    assert list(info.color) == [128, 64, 128, 70, 130, 180, 0, 0, 142, 220, 20, 60]


def test_label_info_names_the_values_of_the_semantic_image(
    make: MakeMessage, over_the_wire: Callable[..., Any], header: Any, manifest: Manifest
) -> None:
    if make is ros_types.make_message:
        pytest.importorskip("vision_msgs.msg")
    info = over_the_wire(label_info_message(make, header, manifest), "vision_msgs/msg/LabelInfo")
    assert [(c.class_id, c.class_name) for c in info.class_map] == [
        (0, "road"),
        (1, "sky"),
        (2, "car"),
        (3, "person"),
    ]


@pytest.mark.parametrize("count", [2, 0])
def test_segments_are_published_as_parallel_arrays(
    make: MakeMessage, header: Any, over_the_wire: Callable[..., Any], count: int
) -> None:
    summary = SegmentSummary(
        panoptic_id=np.array([0, 3001], np.uint16)[:count],
        category_id=np.array([0, 3], np.uint8)[:count],
        is_thing=np.array([False, True])[:count],
        score=np.array([0.75, 0.5], np.float32)[:count],
        area=np.array([100_000, 7])[:count],
        box=np.array([[0, 1, 70_000, 3], [4, 5, 6, 7]])[:count],
        mean_depth=np.array([12.5, np.nan], np.float32)[:count],
        centroid=np.array([[1, 2, 3], [np.nan] * 3], np.float32)[:count],
    )
    received = over_the_wire(segments_message(make, header, summary), "panoptic_depth/msg/PanopticSegments")
    assert list(received.id) == [0, 3001][:count]
    assert list(received.category) == [0, 3][:count]
    assert list(received.is_thing) == [0, 1][:count]
    assert list(received.score) == [0.75, 0.5][:count]
    assert list(received.area) == [100_000, 7][:count]
    assert list(received.box) == [0, 1, 70_000, 3, 4, 5, 6, 7][: 4 * count]
    np.testing.assert_array_equal(received.mean_depth, [12.5, np.nan][:count])
    np.testing.assert_array_equal(received.centroid, [1, 2, 3, np.nan, np.nan, np.nan][: 3 * count])
