# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from panoptic_depth_ros.camera import Calibration, CalibrationError, PinholeCamera

PINHOLE = PinholeCamera(48, 64, fx=50.0, fy=40.0, cx=31.0, cy=24.5)
# Strong lenses: at the corners the distortion moves pixels by hundreds.
WIDE = {
    "plumb_bob": PinholeCamera(
        720, 1280, 700.0, 690.0, 650.0, 355.0, "plumb_bob", (-0.3, 0.12, 0.001, -0.0005, -0.01)
    ),
    "rational_polynomial": PinholeCamera(
        720, 1280, 607.0, 606.0, 638.0, 367.0, "rational_polynomial",
        (0.4998, -2.7297, 0.00068, -0.00005, 1.6021, 0.3785, -2.546, 1.5238),
    ),
    "equidistant": PinholeCamera(
        720, 1280, 520.0, 515.0, 645.0, 362.0, "equidistant", (-0.02, 0.005, -0.003, 0.0006)
    ),
}  # fmt: skip


def brown_conrady(x: float, y: float, d: tuple[float, ...]) -> tuple[float, float]:
    """plumb_bob and rational_polynomial as written in the definition of CameraInfo's models."""
    k1, k2, p1, p2, k3, k4, k5, k6 = (*d, 0.0, 0.0, 0.0)[:8]
    r2 = x * x + y * y
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


def equidistant(x: float, y: float, d: tuple[float, ...]) -> tuple[float, float]:
    """Kannala and Brandt: the distance from the center grows with the angle to the axis."""
    r = float(np.hypot(x, y))
    angle = float(np.arctan(r))
    bent = angle * (1 + d[0] * angle**2 + d[1] * angle**4 + d[2] * angle**6 + d[3] * angle**8)
    return x * bent / r, y * bent / r


FORMULAS: dict[str, Callable[[float, float, tuple[float, ...]], tuple[float, float]]] = {
    "plumb_bob": brown_conrady,
    "rational_polynomial": brown_conrady,
    "equidistant": equidistant,
}


@pytest.mark.parametrize("model", WIDE)
def test_points_are_projected_by_the_models_formula(model: str) -> None:
    camera = WIDE[model]
    for x, y in [(0.4, -0.3), (-0.7, 0.2), (0.05, 0.5)]:
        bent_x, bent_y = FORMULAS[model](x, y, camera.distortion)
        expected = camera.fx * bent_x + camera.cx, camera.fy * bent_y + camera.cy
        seen = camera.project(np.array([[3 * x, 3 * y, 3.0]]))[0]
        np.testing.assert_allclose(seen, expected, atol=1e-6)


@pytest.mark.parametrize("model", WIDE)
@pytest.mark.parametrize("size", [(720, 1280), (151, 301)])
def test_every_pixel_is_seen_where_its_ray_leads(model: str, size: tuple[int, int]) -> None:
    camera = WIDE[model].resized(*size)
    points = 7 * np.concatenate([camera.rays(), np.ones((*size, 1))], axis=-1)
    v, u = np.mgrid[: size[0], : size[1]]
    error = np.abs(camera.project(points) - np.stack([u.ravel(), v.ravel()], -1))
    assert error.max() < 0.01


def test_rays_invert_the_pinhole_equations() -> None:
    rays = PINHOLE.rays()
    assert (rays.shape, rays.dtype) == ((48, 64, 2), np.float32)
    np.testing.assert_allclose(rays[10, 20], [(20 - 31) / 50, (10 - 24.5) / 40], rtol=1e-6)


def test_points_beside_and_behind_the_camera_have_no_pixel() -> None:
    pixels = PINHOLE.project(np.array([[0, 0, -1.0], [1, 1, 0.0], [0, 0, 4.0]]))
    np.testing.assert_array_equal(pixels, [[np.nan, np.nan], [np.nan, np.nan], [31.0, 24.5]])


@pytest.mark.parametrize("camera", [PINHOLE, *WIDE.values()], ids=["pinhole", *WIDE])
def test_a_resized_camera_sees_a_point_at_the_resized_position(camera: PinholeCamera) -> None:
    height, width = camera.height * 3 // 8, camera.width * 5 // 4
    points = np.array([[0.3, -0.2, 1.0], [-1.0, 0.5, 4.0], [0.0, 0.1, 2.0]])
    scale = np.array([width / camera.width, height / camera.height])
    expected = (camera.project(points) + 0.5) * scale - 0.5  # distances from the image's outer edge scale
    np.testing.assert_allclose(camera.resized(height, width).project(points), expected, atol=1e-9)


def test_a_resized_image_shows_what_lies_between_the_same_edges() -> None:
    small = PINHOLE.resized(12, 8)
    for full_edge, edge in [((-0.5, -0.5), (-0.5, -0.5)), ((63.5, 47.5), (7.5, 11.5))]:
        x, y = (full_edge[0] - PINHOLE.cx) / PINHOLE.fx, (full_edge[1] - PINHOLE.cy) / PINHOLE.fy
        np.testing.assert_allclose(small.project(np.array([[x, y, 1]]))[0], edge, atol=1e-9)


# ---- camera_info ----------------------------------------------------------------------------------------------------

INFO = Calibration(
    height=1200,
    width=1920,
    k=(1000, 0, 950, 0, 1010, 610, 0, 0, 1),
    p=(900, 0, 940, 0, 0, 905, 605, 0, 0, 0, 1, 0),
    distortion_model="plumb_bob",
    d=(-0.3, 0.1, 0.0, 0.0, 0.0),
)


def test_raw_images_take_k_and_d_and_rectified_ones_p() -> None:
    assert INFO.camera(1200, 1920) == PinholeCamera(1200, 1920, 1000, 1010, 950, 610, "plumb_bob", INFO.d)
    assert INFO.camera(1200, 1920, rectified=True) == PinholeCamera(1200, 1920, 900, 905, 940, 605)


def test_a_region_of_interest_moves_the_principal_point() -> None:
    info = replace(INFO, roi_x=100, roi_y=200, roi_height=600, roi_width=800)
    camera = info.camera(600, 800)
    assert (camera.cx, camera.cy, camera.fx, camera.fy) == (850, 410, 1000, 1010)


def test_region_then_binning_then_resize() -> None:
    # 800x600 from (100, 200), binned 2x2 to 400x300, then halved by a republisher: a quarter in all.
    info = replace(INFO, roi_x=100, roi_y=200, roi_height=600, roi_width=800, binning_x=2, binning_y=2)
    camera = info.camera(150, 200)
    assert (camera.fx, camera.fy) == (250, 252.5)
    assert camera.cx == pytest.approx((850 + 0.5) / 4 - 0.5)
    assert camera.cy == pytest.approx((410 + 0.5) / 4 - 0.5)


def test_binning_an_odd_size_leaves_out_the_last_pixel_and_scales_by_exactly_the_binning() -> None:
    camera = replace(INFO, height=601, width=801, binning_x=2, binning_y=2).camera(300, 400)
    assert (camera.fx, camera.fy) == (500, 505)
    assert camera.cx == pytest.approx((950 + 0.5) / 2 - 0.5)


def test_different_binning_of_the_axes_is_not_another_shape() -> None:
    camera = replace(INFO, binning_x=4, binning_y=2).camera(600, 480)
    assert (camera.fx, camera.fy) == (250, 505)


@pytest.mark.parametrize("size", [(600, 960), (400, 640), (403, 645), (67, 107), (2400, 3840)])
def test_a_plain_resize_is_accepted_with_the_rounding_it_costs(size: tuple[int, int]) -> None:
    camera = INFO.camera(*size)
    assert (camera.height, camera.width) == size
    assert camera.fx == pytest.approx(1000 * size[1] / 1920)


@pytest.mark.parametrize("size", [(1080, 1920), (480, 640), (1200, 1200), (1200, 1910), (600, 950)])
def test_an_image_of_another_shape_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(CalibrationError, match=rf"1920x1200 px.*image has {size[1]}x{size[0]}"):
        INFO.camera(*size)


@pytest.mark.parametrize(
    ("changes", "rectified", "text"),
    [
        ({"k": (0.0,) * 9}, False, "K has fx=0, fy=0: the camera is not calibrated"),
        ({"k": (np.nan, 0, 1, 0, 1, 1, 0, 0, 1)}, False, "K has fx=nan"),
        ({"k": (1000, 0, np.inf, 0, 1010, 610, 0, 0, 1)}, False, "K has"),
        ({"k": (-1000, 0, 950, 0, 1010, 610, 0, 0, 1)}, False, "K has fx=-1000"),
        ({"k": ()}, False, "K has 0 values; expected 9"),
        ({"p": (0.0,) * 12}, True, "P has fx=0"),
        ({"distortion_model": "fov"}, False, "'fov'; expected one of plumb_bob, rational_polynomial, equidistant"),
        ({"d": (0.1, np.nan, 0, 0, 0)}, False, "D has values that are not finite"),
        ({"d": (0.1, 0.1)}, False, "D has 2 values; plumb_bob takes 4 or 5"),
        ({"distortion_model": "equidistant"}, False, "D has 5 values; equidistant takes 4"),
        ({"height": 0, "width": 0}, False, "image of 0x0 px"),
        ({"binning_x": 2000}, False, "1920x1200"),
    ],
)
def test_a_calibration_that_cannot_be_used_says_why(changes: dict, rectified: bool, text: str) -> None:
    with pytest.raises(CalibrationError, match=text):
        replace(INFO, **changes).camera(1200, 1920, rectified)


def test_an_unknown_distortion_model_without_coefficients_is_no_obstacle() -> None:
    assert not replace(INFO, distortion_model="", d=()).camera(1200, 1920).is_distorted
    assert not replace(INFO, distortion_model="fov", d=(0.0, 0.0)).camera(1200, 1920).is_distorted
