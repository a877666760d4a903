# SPDX-License-Identifier: Apache-2.0
"""An augmented image is still a true one: its camera explains it."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.preprocess import PADDING_COLOR, fit
from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID
from panoptic_depth_training.augment import (
    AUGMENTATIONS,
    Augmentation,
    ColorJitter,
    View,
    augmented,
    depth_at_focal_length,
    jittered,
    random_view,
    viewed,
)
from panoptic_depth_training.datasets.labeled import LabeledImage

CAMERA = PinholeCamera(48, 96, 80.0, 78.0, 45.0, 23.0)
CALM = ColorJitter(brightness=0, contrast=(1, 1), saturation=(1, 1), hue=0)
VIEWS_OF_48_BY_96 = {
    "enlarged and cropped": View(40, 64, 72, 144, -13, -37),
    "enlarged, mirrored": View(64, 128, 60, 120, 3, 5, mirrored=True),
    "shrunk and padded": View(40, 64, 20, 40, 9, 16),
    "shrunk, cropped, mirrored": View(20, 24, 24, 48, -3, -15, mirrored=True),
    "as it is": View(48, 96, 48, 96, 0, 0),
    "stretched": View(64, 64, 64, 64, 0, 0, mirrored=True),
}
views = pytest.mark.parametrize("view", VIEWS_OF_48_BY_96.values(), ids=VIEWS_OF_48_BY_96.keys())


def numbered_image() -> LabeledImage:
    """48x96 px; every pixel has an id and a depth of its own."""
    ids = np.arange(48 * 96, dtype=np.uint16).reshape(48, 96)
    rng = np.random.default_rng(0)
    return LabeledImage(rng.integers(0, 256, (48, 96, 3), np.uint8), ids, 1 + ids.astype(np.float32), CAMERA)


def shown(example: LabeledImage, view: View) -> LabeledImage:
    """A view in the example's own colors."""
    return viewed(example, view, CALM, np.random.default_rng(0))


def source_pixel(view: View, row: int, column: int) -> tuple[float, float] | None:
    """Where (edges, not centers) an output pixel's center lies in the image of 48x96; None beyond it."""
    if view.mirrored:
        column = view.width - 1 - column
    y = (row + 0.5 - view.top) * 48 / view.scaled_height
    x = (column + 0.5 - view.left) * 96 / view.scaled_width
    return (y, x) if 0 <= y < 48 and 0 <= x < 96 else None


@views
def test_every_pixel_keeps_the_label_and_depth_of_the_nearest_one(view):
    example = numbered_image()
    image = shown(example, view)
    for row in range(view.height):
        for column in range(view.width):
            place = source_pixel(view, row, column)
            at = (int(place[0]), int(place[1])) if place else (0, 0)
            assert image.panoptic_ids[row, column] == (example.panoptic_ids[at] if place else VOID_PANOPTIC_ID)
            assert image.depth[row, column] == (example.depth[at] if place else 0)


@views
def test_colors_lie_where_the_labels_do(view):
    row, column = np.mgrid[:48, :96]
    ramps = np.stack([5 * row, 5 * abs(column - 48), 100 + 0 * row], axis=-1).astype(np.uint8)
    image = shown(replace(numbered_image(), rgb=ramps), view)
    # Rounding; when shrinking, means are taken in two steps, which moves colors by up to a third of a row.
    tolerance = 0.7 if view.scaled_height >= 48 else 1.6
    for row in range(view.height):
        for column in range(view.width):
            place = source_pixel(view, row, column)
            if place is None:
                assert tuple(image.rgb[row, column]) == PADDING_COLOR
            elif 1 < place[0] < 47 and 2 < abs(place[1] - 48.5) < 46:  # elsewhere a ramp ends or turns
                expected = 5 * (place[0] - 0.5), 5 * abs(place[1] - 48.5), 100
                np.testing.assert_allclose(image.rgb[row, column], expected, atol=tolerance)


@views
def test_the_camera_follows_the_pixels(view):
    points = np.random.default_rng(0).uniform((-5, -3, 2), (5, 3, 40), (20, 3))
    u, v = CAMERA.project(points).T
    moved_u = (u + 0.5) * view.scaled_width / 96 - 0.5 + view.left
    moved_v = (v + 0.5) * view.scaled_height / 48 - 0.5 + view.top
    if view.mirrored:
        moved_u, points = view.width - 1 - moved_u, points * (-1, 1, 1)
    seen = view.camera(CAMERA)
    assert (seen.height, seen.width) == (view.height, view.width)
    np.testing.assert_allclose(seen.project(points), np.stack([moved_u, moved_v], -1), atol=1e-9)


def test_a_point_keeps_its_depth_and_place_through_the_camera():
    """A dot in the image, unprojected after augmentation, is where it was before."""
    point = np.array([1.0, -0.5, 8.0])
    u, v = CAMERA.project(point[None])[0].round().astype(int)
    depth = np.zeros((48, 96), np.float32)
    depth[v, u] = point[2]
    dense = np.where(depth > 0, depth, 20.0).astype(np.float32)
    example = replace(numbered_image(), depth=dense)
    for seed in range(20):
        view = random_view(48, 96, 64, 128, AUGMENTATIONS["vehicle"], np.random.default_rng(seed))
        image = shown(example, view)
        rows, columns = np.nonzero(image.depth == point[2])
        dot = point[2] * np.append(image.camera.rays()[rows, columns].mean(axis=0), 1)
        expected = point[2] * np.append(CAMERA.rays()[v, u], 1) * ((-1, 1, 1) if view.mirrored else (1, 1, 1))
        np.testing.assert_allclose(dot, expected, atol=0.5 * point[2] / CAMERA.fx)  # half a pixel at that distance


@pytest.mark.parametrize(
    ("model", "distortion"),
    [
        ("plumb_bob", (-0.3, 0.1, 0.01, -0.02, 0.02)),
        ("rational_polynomial", (0.1, -0.05, 0.01, -0.02, 0.0, 0.2, 0.0, 0.01)),
        ("rational_polynomial", (-0.1, 0, 0.01, -0.02, 0, 0, 0, 0, 0.03, 0.01, -0.02, 0.02)),
        ("rational_polynomial", (-0.1, 0, 0.01, -0.02, 0, 0, 0, 0, 0.03, 0.01, -0.02, 0.02, 0.05, -0.04)),
        ("equidistant", (0.01, -0.02, 0.003, 0.0)),
    ],
)
def test_a_lens_is_mirrored_with_its_image(model, distortion):
    camera = replace(CAMERA, distortion_model=model, distortion=distortion)
    points = np.random.default_rng(1).uniform((-3, -2, 5), (3, 2, 10), (20, 3))
    u, v = camera.project(points).T
    mirrored = View(48, 96, 48, 96, 0, 0, mirrored=True).camera(camera)
    np.testing.assert_allclose(mirrored.project(points * (-1, 1, 1)), np.stack([95 - u, v], -1), atol=1e-6)


def test_shrinking_loses_a_lidar_point_only_to_a_nearer_one():
    rng = np.random.default_rng(2)
    depth = np.where(rng.random((48, 96)) < 0.05, rng.uniform(2, 60, (48, 96)), 0).astype(np.float32)
    for view in (View(12, 24, 12, 24, 0, 0), View(10, 20, 14, 29, -2, -6, mirrored=True)):
        expected = np.full((view.height, view.width), np.inf, np.float32)
        for row, column in zip(*np.nonzero(depth), strict=True):
            v = int((row + 0.5) * view.scaled_height / 48) + view.top
            u = int((column + 0.5) * view.scaled_width / 96) + view.left
            u = view.width - 1 - u if view.mirrored else u
            if 0 <= v < view.height and 0 <= u < view.width:
                expected[v, u] = min(expected[v, u], depth[row, column])
        image = shown(replace(numbered_image(), depth=depth), view)
        np.testing.assert_array_equal(image.depth, np.where(np.isfinite(expected), expected, 0))


@pytest.mark.parametrize(("height", "width", "border"), [(64, 160, 16), (24, 64, 8), (20, 50, 5), (48, 98, 1)])
def test_a_whole_frame_lies_where_the_vehicle_puts_it(height, width, border):
    example, still = numbered_image(), Augmentation(mirror=0, color=CALM)
    image = augmented(example, height, width, still, np.random.default_rng(0))
    # Equal when shrinking; enlarged colors are interpolated by two functions of OpenCV's, which round differently.
    tolerance = 1 if height > 48 else 0
    np.testing.assert_allclose(image.rgb.astype(int), fit(example.rgb, height, width)[0], rtol=0, atol=tolerance)
    assert (image.panoptic_ids[:, :border] == VOID_PANOPTIC_ID).all()
    assert (image.panoptic_ids[:, border : width - border] != VOID_PANOPTIC_ID).all()
    assert (image.depth[:, :border] == 0).all()
    assert image.camera.cx == pytest.approx((45.5 * height / 48) - 0.5 + border)


def test_a_longer_lens_sees_the_same_image_from_farther_away():
    example = numbered_image()
    np.testing.assert_allclose(depth_at_focal_length(example, 160.0), 2 * example.depth)


def test_depth_without_calibration_is_unknown():
    example, rng = replace(numbered_image(), camera=None), np.random.default_rng(0)
    image = augmented(example, 64, 128, AUGMENTATIONS["vehicle"], rng)
    assert image.camera is None
    assert not depth_at_focal_length(image, 100.0).any()


def test_augmentation_depends_on_the_generator_alone():
    one, same, other = (
        augmented(numbered_image(), 64, 96, AUGMENTATIONS["vehicle"], np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.rgb, same.rgb)
    np.testing.assert_array_equal(one.panoptic_ids, same.panoptic_ids)
    assert (one.rgb != other.rgb).any()


def test_padding_keeps_its_color():
    settings = replace(AUGMENTATIONS["full_frame"], mirror=0)
    image = augmented(numbered_image(), 96, 96, settings, np.random.default_rng(3))
    assert (image.rgb[:24] == PADDING_COLOR).all()
    assert (image.rgb[72:] == PADDING_COLOR).all()


# ---- presets --------------------------------------------------------------------------------------------------------


def drawn_views(name: str, height: int, width: int, count: int = 300) -> list[View]:
    """Views of a Cityscapes image."""
    rng = np.random.default_rng(0)
    return [random_view(1024, 2048, height, width, AUGMENTATIONS[name], rng) for _ in range(count)]


def test_the_papers_crops_come_from_its_list_of_shortest_edges():
    seen = drawn_views("paper_crop", 512, 1024)
    edges = {512, 768, 1024, 1152, 1216, 1344, 1408, 1536, 1664, 1728, 1856, 1920, 2048}
    assert {view.scaled_height for view in seen} == edges
    assert all(view.scaled_width == 2 * view.scaled_height for view in seen)
    assert {view.scaled_height for view in drawn_views("paper_full_scale", 1024, 2048)} == set(range(1024, 1537, 64))


def test_crops_fill_the_input_and_reach_every_border():
    seen = [view for view in drawn_views("paper_crop", 512, 1024, 3000) if view.scaled_height == 768]
    assert all(-256 <= view.top <= 0 and -512 <= view.left <= 0 for view in seen)
    assert min(view.top for view in seen) < -245
    assert max(view.top for view in seen) > -11
    assert abs(np.mean([view.left for view in seen]) + 256) < 50  # evenly: 3.5 standard errors of 200 draws are 37


@pytest.mark.parametrize("sizes", [(66 / 64,), (62 / 64,)], ids=["crop", "padding"])
def test_every_place_in_the_room_is_as_likely(sizes):
    settings, rng = Augmentation(sizes=sizes, shift=(0.0, 1.0)), np.random.default_rng(0)
    tops = [random_view(64, 128, 64, 128, settings, rng).top for _ in range(3000)]
    places, counts = np.unique(tops, return_counts=True)
    assert places.tolist() == ([-2, -1, 0] if sizes[0] > 1 else [0, 1, 2])
    np.testing.assert_allclose(counts, 1000, atol=100)  # 4 standard errors


def test_full_frames_are_left_as_they_are_but_for_the_mirror():
    example = numbered_image()
    still = replace(AUGMENTATIONS["full_frame"], color=CALM)
    kinds = set()
    for seed in range(10):
        image = augmented(example, 48, 96, still, np.random.default_rng(seed))
        is_mirrored = bool((image.rgb != example.rgb).any())
        step = -1 if is_mirrored else 1
        np.testing.assert_array_equal(image.rgb, example.rgb[:, ::step])
        np.testing.assert_array_equal(image.depth, example.depth[:, ::step])
        kinds.add(is_mirrored)
    assert kinds == {False, True}


def test_the_vehicles_views_keep_the_horizon_near_the_middle():
    for view in drawn_views("vehicle", 256, 512):
        assert 0.9 * 256 - 1 <= view.scaled_height <= 1.3 * 256 + 1
        middle = view.top + view.scaled_height / 2
        assert abs(middle - 128) <= 0.2 * abs(256 - view.scaled_height) + 1


def test_a_scaled_image_never_exceeds_the_longest_edge():
    settings = Augmentation(sizes=(4.0,))
    view = random_view(512, 4096, 512, 1024, settings, np.random.default_rng(0))
    assert (view.scaled_height, view.scaled_width) == (512, 4096)


# ---- colors ---------------------------------------------------------------------------------------------------------


class Dice:
    """A generator that gives what it is told: numbers for random(), values for uniform() and integers()."""

    def __init__(self, *chances: bool, values: tuple[float, ...] = ()) -> None:
        self.chances, self.values = list(chances), list(values)

    def random(self) -> float:
        return 0.1 if self.chances.pop(0) else 0.9

    def uniform(self, low: float, high: float) -> float:
        assert low <= self.values[0] <= high
        return self.values.pop(0)

    def integers(self, low: int, high: int) -> int:
        assert low <= self.values[0] < high
        return int(self.values.pop(0))


def in_floats(pixels: np.ndarray, factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
    return np.clip(pixels.astype(np.float64) * factor + offset, 0, 255).astype(np.uint8)


def in_hsv(rgb: np.ndarray, saturation: float, hue: int) -> np.ndarray:
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = in_floats(hsv[..., 1], saturation)
    hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def test_colors_change_in_the_order_of_the_draw():
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    values = (25.0, 1.25, 0.75, -15)
    contrast_first = jittered(rgb, ColorJitter(), Dice(True, True, True, True, True, values=values))
    np.testing.assert_array_equal(contrast_first, in_hsv(in_floats(in_floats(rgb, offset=25), 1.25), 0.75, -15))
    contrast_last = jittered(rgb, ColorJitter(), Dice(True, False, True, True, True, values=values))
    np.testing.assert_array_equal(contrast_last, in_floats(in_hsv(in_floats(rgb, offset=25), 0.75, -15), 1.25))


def test_no_draw_leaves_the_colors_alone():
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    np.testing.assert_array_equal(jittered(rgb, ColorJitter(), Dice(False, True, False, False, False)), rgb)


@pytest.mark.parametrize(
    "settings",
    [
        replace(CALM, brightness=32.0),
        replace(CALM, contrast=(0.5, 0.8)),
        replace(CALM, saturation=(0.5, 0.8)),
        replace(CALM, hue=18),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_each_kind_of_change_happens_half_of_the_time(settings):
    rgb = np.array([[[200, 90, 30], [20, 130, 220]]], np.uint8)
    rng = np.random.default_rng(0)
    changed = sum(bool((jittered(rgb, settings, rng) != rgb).any()) for _ in range(1000))
    assert 430 < changed < 550  # 500, less the few draws too small to be seen in 8 bits
