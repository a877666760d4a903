# SPDX-License-Identifier: Apache-2.0
"""A calibrated camera: from CameraInfo fields, through resizing, to rays of pixels and pixels of points.

Conventions: the optical frame has x right, y down, z forward (REP 103). Pixel (0, 0) is the *center* of the
top-left pixel, so an image of width W spans -0.5 .. W-0.5. Depth is z, along the optical axis, not ray length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

PINHOLE_MODELS = ("plumb_bob", "rational_polynomial")
FISHEYE_MODEL = "equidistant"
DISTORTION_MODELS = (*PINHOLE_MODELS, FISHEYE_MODEL)


class CalibrationError(ValueError):
    """The calibration cannot describe the image; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class PinholeCamera:
    """Intrinsics [px] of an image of this size, with OpenCV's distortion coefficients (none = rectified)."""

    height: int
    width: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion_model: str = "plumb_bob"
    distortion: tuple[float, ...] = ()

    @property
    def matrix(self) -> np.ndarray:
        """K [3, 3]."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float64)

    @property
    def is_distorted(self) -> bool:
        return any(self.distortion)

    def resized(self, height: int, width: int) -> PinholeCamera:
        """The camera of the same image stretched to height x width (pixel edges, not centers, scale)."""
        sy, sx = height / self.height, width / self.width
        return replace(
            self,
            height=height,
            width=width,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5,
            cy=(self.cy + 0.5) * sy - 0.5,
        )

    def rays(self, stride: int = 1) -> np.ndarray:
        """Viewing rays float32: x/z and y/z of what every stride-th pixel sees, from the first; distortion undone.

        [H, W, 2], or with a stride [ceil(H / stride), ceil(W / stride), 2].
        """
        v, u = np.mgrid[0 : self.height : stride, 0 : self.width : stride].astype(np.float64)
        if not self.is_distorted:
            rays = np.stack([(u - self.cx) / self.fx, (v - self.cy) / self.fy], axis=-1)
            return rays.astype(np.float32)
        pixels = np.stack([u, v], axis=-1).reshape(-1, 1, 2)
        coefficients = np.array(self.distortion, np.float64)
        if self.distortion_model == FISHEYE_MODEL:
            rays = cv2.fisheye.undistortPoints(pixels, self.matrix, coefficients)
        else:
            rays = _undistort(pixels, self.matrix, coefficients)
        return rays.reshape(*u.shape, 2).astype(np.float32)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels [N, 2] (u, v) float64 of points [N, 3] in the optical frame; NaN for points with z <= 0."""
        points = np.asarray(points, np.float64).reshape(-1, 3)
        ahead = points[:, 2] > 0
        pixels = np.full((len(points), 2), np.nan)
        if not ahead.any():
            return pixels
        if self.is_distorted and self.distortion_model == FISHEYE_MODEL:
            seen, _ = cv2.fisheye.projectPoints(
                points[ahead, None], np.zeros(3), np.zeros(3), self.matrix, np.array(self.distortion)
            )
        elif self.is_distorted:
            seen, _ = cv2.projectPoints(
                points[ahead, None], np.zeros(3), np.zeros(3), self.matrix, np.array(self.distortion)
            )
        else:
            x, y, z = points[ahead].T
            seen = np.stack([self.fx * x / z + self.cx, self.fy * y / z + self.cy], axis=-1)
        pixels[ahead] = seen.reshape(-1, 2)
        return pixels


@dataclass(frozen=True)
class Calibration:
    """The fields of a sensor_msgs/CameraInfo that describe the image, as plain values."""

    height: int
    width: int
    k: tuple[float, ...]  # 3x3, of the raw image
    p: tuple[float, ...]  # 3x4, of the rectified image
    distortion_model: str
    d: tuple[float, ...]
    binning_x: int = 0  # 0 and 1 both mean: not binned
    binning_y: int = 0
    roi_x: int = 0
    roi_y: int = 0
    roi_height: int = 0  # 0 means: the full height
    roi_width: int = 0

    def camera(self, image_height: int, image_width: int, rectified: bool = False) -> PinholeCamera:
        """The camera of an image of this size.

        K (or P if the image is rectified) holds for the full, unbinned image: move it to the region of interest,
        divide by the binning, then scale to the image at hand (REP 104). Scaling is accepted where both axes
        agree, as a driver's or republisher's plain resize gives.

        Raises:
            CalibrationError: uncalibrated (K[0] = 0), unknown distortion, or sizes that do not fit the image.
        """
        fx, fy, cx, cy = self._intrinsics(rectified)
        cx, cy = cx - self.roi_x, cy - self.roi_y
        height, width = self.roi_height or self.height, self.roi_width or self.width
        binning_y, binning_x = max(self.binning_y, 1), max(self.binning_x, 1)
        binned_height, binned_width = height // binning_y, width // binning_x
        if binned_height <= 0 or binned_width <= 0:
            raise CalibrationError(
                f"camera_info describes an image of {width}x{height} px; expected the size the camera was calibrated at"
            )
        _check_same_shape((binned_height, binned_width), (image_height, image_width))
        # Binning is a resize, half pixels included, of the rows and columns that whole bins hold.
        binned = binned_height * binning_y, binned_width * binning_x
        camera = PinholeCamera(*binned, fx, fy, cx, cy, *self._distortion(rectified))
        return camera.resized(image_height, image_width)

    def _intrinsics(self, rectified: bool) -> tuple[float, float, float, float]:
        name, matrix, stride = ("P", self.p, 4) if rectified else ("K", self.k, 3)
        if len(matrix) < 2 * stride:
            raise CalibrationError(f"camera_info {name} has {len(matrix)} values; expected {12 if rectified else 9}")
        fx, fy, cx, cy = matrix[0], matrix[stride + 1], matrix[2], matrix[stride + 2]
        if not (np.isfinite([fx, fy, cx, cy]).all() and fx > 0 and fy > 0):
            raise CalibrationError(
                f"camera_info {name} has fx={fx:g}, fy={fy:g}: the camera is not calibrated; "
                "calibrate it (camera_calibration) and let its driver publish the result"
            )
        return fx, fy, cx, cy

    def _distortion(self, rectified: bool) -> tuple[str, tuple[float, ...]]:
        if rectified or not any(self.d):
            return "plumb_bob", ()
        if self.distortion_model not in DISTORTION_MODELS:
            raise CalibrationError(
                f"camera_info has distortion model {self.distortion_model!r}; expected one of "
                f"{', '.join(DISTORTION_MODELS)}: rectify the image upstream (image_proc) and set image_is_rectified"
            )
        if not np.isfinite(self.d).all():
            raise CalibrationError("camera_info D has values that are not finite: calibrate the camera again")
        expected = (4,) if self.distortion_model == FISHEYE_MODEL else (4, 5, 8, 12, 14)
        if len(self.d) not in expected:
            counts = " or ".join(map(str, expected))
            raise CalibrationError(f"camera_info D has {len(self.d)} values; {self.distortion_model} takes {counts}")
        return self.distortion_model, self.d


def is_rectified_topic(topic: str) -> bool:
    """Whether an image topic's name says that its images are rectified: image_rect, image_rect_color of image_proc."""
    return topic.removesuffix("/compressed").rsplit("/", 1)[-1].startswith("image_rect")


def _check_same_shape(calibrated: tuple[int, int], image: tuple[int, int]) -> None:
    """Both axes must scale alike, within the pixel that rounding a resized image costs."""
    scale = max(image[0] / calibrated[0], image[1] / calibrated[1])
    if any(abs(c * scale - i) > max(1.0, scale) for c, i in zip(calibrated, image, strict=True)):
        raise CalibrationError(
            f"camera_info describes {calibrated[1]}x{calibrated[0]} px (after ROI and binning), the image has "
            f"{image[1]}x{image[0]}: another shape, so it belongs to another camera or was cropped; "
            "publish the matching camera_info (with its ROI)"
        )


def _undistort(pixels: np.ndarray, matrix: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    # OpenCV's default of five rounds leaves tenths of a pixel at the corners of wide lenses.
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-9)
    if hasattr(cv2, "undistortPointsIter"):  # OpenCV 4 has the criteria in a function of their own
        return cv2.undistortPointsIter(pixels, matrix, coefficients, np.eye(3), np.eye(3), criteria)
    return cv2.undistortPoints(pixels, matrix, coefficients, criteria=criteria)
