# SPDX-License-Identifier: Apache-2.0
"""Rendered streets: what the truth says must be where the geometry is."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("open3d")

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.interrupt import INTERRUPTED
from panoptic_depth_ros.recording import Recording
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR
from panoptic_depth_training import render
from panoptic_depth_training.datasets import street_folder, street_noise, street_sequences
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.cityscapes_dvps import CityscapesDvps
from panoptic_depth_training.datasets.frames import FrameFolder
from panoptic_depth_training.datasets.street_folder import encode
from panoptic_depth_training.datasets.street_recording import DriveOptions, quaternion_from_rotation, write_drive
from panoptic_depth_training.datasets.street_scene import Scene
from panoptic_depth_training.datasets.street_shading import Light
from panoptic_depth_training.datasets.street_shapes import Look, bake, ball, box, placed, pose
from panoptic_depth_training.datasets.street_site import Centerline, Thing
from panoptic_depth_training.datasets.street_view import View
from panoptic_depth_training.datasets.synthetic import (
    BASE_FROM_LIDAR,
    FRONT_MOUNT,
    VIEWS_A_STREET,
    Frame,
    Mount,
    Street,
    SyntheticStreets,
    random_camera,
    random_frame,
    random_shot,
    training_street,
)

CAMERA = PinholeCamera(72, 144, 120.0, 120.0, 71.5, 35.5)
CATEGORY = {name: index for index, name in enumerate(CITYSCAPES.names)}


@pytest.fixture(scope="module")
def street() -> Street:
    return Street(12)


@pytest.fixture(scope="module")
def frames(street: Street) -> list[Frame]:
    """The same drive at two moments."""
    return [street.frame(CAMERA, time_s) for time_s in (0.0, 0.5)]


def world_points(frame: Frame) -> np.ndarray:
    """[H, W, 3] of what the pixels show."""
    depth = frame.depth[..., None]
    return apply(frame.world_from_camera, np.concatenate([frame.camera.rays() * depth, depth], axis=-1))


def apply(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ transform[:3, :3].T + transform[:3, 3]


def category_ids(frame: Frame) -> np.ndarray:
    return frame.panoptic_ids // LABEL_DIVISOR


def flat_depth(depth: np.ndarray) -> np.ndarray:
    """Where [H, W] a pixel and its neighbors lie on one surface, so that half a pixel changes little."""
    kernel = np.ones((3, 3), np.uint8)
    near, far = cv2.erode(depth, kernel), cv2.dilate(depth, kernel)
    return (near > 0) & (far - near < 0.05 * near)


def test_a_frame_has_the_size_of_its_camera_and_labels_every_pixel(frames: list[Frame]):
    frame = frames[0]
    assert (frame.rgb.shape, frame.rgb.dtype) == ((72, 144, 3), np.uint8)
    assert (frame.panoptic_ids.shape, frame.panoptic_ids.dtype) == ((72, 144), np.uint16)
    assert (frame.depth.shape, frame.depth.dtype) == ((72, 144), np.float32)
    assert set(np.unique(category_ids(frame))) <= set(range(len(CITYSCAPES)))


def test_things_are_numbered_from_one_and_stuff_is_zero(frames: list[Frame]):
    for panoptic_id in np.unique(frames[0].panoptic_ids).tolist():
        category_id, instance = divmod(panoptic_id, LABEL_DIVISOR)
        assert (instance > 0) == CITYSCAPES[category_id].is_thing


def test_only_the_sky_has_no_depth(frames: list[Frame]):
    is_sky = category_ids(frames[0]) == CATEGORY["sky"]
    assert is_sky.any()
    np.testing.assert_array_equal(frames[0].depth == 0, is_sky)


def test_unprojected_depth_lies_on_the_scene(street: Street, frames: list[Frame]):
    for frame in frames:
        points = world_points(frame)[frame.depth > 0]
        assert street.scene(frame.stamp_s).distance(points).max() < 0.01


def test_the_road_is_the_ground_plane_and_the_sidewalk_a_curb_above_it(frames: list[Frame]):
    points, category_id = world_points(frames[0]), category_ids(frames[0])
    np.testing.assert_allclose(points[category_id == CATEGORY["road"]][:, 2], 0.0, atol=0.005)
    assert points[category_id == CATEGORY["sidewalk"]][:, 2].max() == pytest.approx(0.13, abs=0.005)


def test_an_id_belongs_to_the_thing_that_stands_there_at_that_time(street: Street, frames: list[Frame]):
    assert sum(points_inside_their_things(frame, street, frame.stamp_s) for frame in frames) > 10


def points_inside_their_things(frame: Frame, street: Street, time_s: float, depth_error: float = 0.0) -> int:
    """Check what the image labels against where things are at the time; returns how many things it shows."""
    points, seen = world_points(frame), 0
    for thing in street.layout.things:
        here = frame.panoptic_ids == CATEGORY[thing.category] * LABEL_DIVISOR + thing.instance
        where = thing.pose(street.layout.centerline, time_s)
        low, high = bounds(thing, time_s)
        local = apply(np.linalg.inv(where), points[here])
        margin = 0.01 + 2 * depth_error
        assert ((local > low - margin) & (local < high + margin)).all()
        seen += here.any()
    return seen


def bounds(thing: Thing, time_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner of the thing's parts in its own frame."""
    vertices = bake([(part, np.eye(4), 0) for part in thing.parts(time_s)]).vertices
    return vertices.min(0), vertices.max(0)


def test_things_move_and_keep_their_numbers(street: Street):
    moving = [thing for thing in street.layout.things if thing.track.speed]
    assert moving
    for thing in moving:
        start, end = (thing.pose(street.layout.centerline, time_s)[:3, 3] for time_s in (0.0, 0.01))
        assert np.linalg.norm(end - start) == pytest.approx(0.01 * thing.track.speed, rel=0.2)


def test_two_frames_agree_through_the_ego_motion(frames: list[Frame]):
    """What the first frame shows is, in the second, where the motion says, or behind something nearer."""
    before, after = frames
    is_static = ~np.isin(category_ids(before), CITYSCAPES.thing_ids) & flat_depth(before.depth)
    moved = apply(np.linalg.inv(after.world_from_camera), world_points(before)[is_static])
    is_thing = np.isin(category_ids(after), CITYSCAPES.thing_ids)
    expected, found = depth_at(replace(after, depth=np.where(is_thing, 0, after.depth)), moved)
    assert len(expected) > 500
    assert (found < expected * 1.06 + 0.05).all()
    assert (np.abs(found - expected) < 0.06 * expected + 0.05).mean() > 0.9


def test_a_lidar_scan_projects_onto_the_depth_map(street: Street, frames: list[Frame]):
    scan = street.lidar(0.0)
    camera_from_lidar = np.linalg.inv(FRONT_MOUNT.base_from_camera) @ BASE_FROM_LIDAR
    expected, found = depth_at(frames[0], apply(camera_from_lidar, scan[:, :3]))
    assert len(expected) > 300
    assert (found < expected * 1.06 + 0.15).all()
    assert (np.abs(found - expected) < 0.06 * expected + 0.15).mean() > 0.9


def depth_at(frame: Frame, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z of the points [N, 3] in the camera's frame that land on smooth parts of the image, and the depth there."""
    points = points[points[:, 2] > 1.0]
    u, v = np.round(frame.camera.project(points)).astype(int).T
    inside = (u >= 0) & (u < frame.camera.width) & (v >= 0) & (v < frame.camera.height)
    points, u, v = points[inside], u[inside], v[inside]
    smooth = flat_depth(frame.depth)[v, u]
    return points[smooth, 2], frame.depth[v, u][smooth]


def test_a_lidar_scan_covers_the_forward_half(street: Street):
    scan = street.lidar(0.0)
    assert scan.dtype == np.float32
    assert scan.shape[1] == 4
    assert (scan[:, 0] > -0.1).all()
    assert scan[:, 1].min() < -3 < 3 < scan[:, 1].max()
    assert ((scan[:, 3] >= 1) & (scan[:, 3] <= 255)).all()


def test_the_same_seed_gives_the_same_arrays_and_another_seed_another_street():
    first, again, other = random_frame(5, 24, 48), random_frame(5, 24, 48), random_frame(6, 24, 48)
    for name in ("rgb", "panoptic_ids", "depth", "world_from_camera"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.camera == again.camera == random_camera(5, 24, 48)
    assert not np.array_equal(first.panoptic_ids, other.panoptic_ids)


def test_a_frame_does_not_depend_on_what_was_rendered_before(street: Street, frames: list[Frame]):
    np.testing.assert_array_equal(street.frame(CAMERA, 0.0).rgb, frames[0].rgb)


def test_a_ray_is_blocked_by_what_lies_within_its_reach(street: Street):
    """From high above the road: nothing above, the ground below, 40 m away."""
    scene = street.scene(0.0)
    start = np.array([[0.0, 0.0, 40.0]], np.float32)
    assert not scene.blocked(start, np.array([[0.0, 0.0, 1.0]], np.float32), 100.0)[0]
    assert scene.blocked(start, np.array([[0.0, 0.0, -1.0]], np.float32), 100.0)[0]
    assert not scene.blocked(start, np.array([[0.0, 0.0, -1.0]], np.float32), 5.0)[0]


def test_a_distorted_camera_is_refused(street: Street):
    distorted = PinholeCamera(24, 48, 40.0, 40.0, 23.5, 11.5, "plumb_bob", (0.1, 0.0, 0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="rectify"):
        street.frame(distorted)


# Training frames


def test_a_training_frame_shows_its_street_from_a_place_of_its_own():
    street = training_street(12)
    shots = [random_shot(street, 12 + view, 24, 48) for view in range(VIEWS_A_STREET)]
    places = np.array([shot.world_from_camera[:3, 3] for shot in shots])
    assert min(np.linalg.norm(places[i] - places[j]) for i in range(VIEWS_A_STREET) for j in range(i)) > 1.5
    assert len({shot.time_s for shot in shots}) == 1
    assert len({tuple(shot.light.to_sun) for shot in shots}) == VIEWS_A_STREET
    for number in (12, 15):
        frame = random_frame(number, 24, 48)
        np.testing.assert_array_equal(frame.world_from_camera, shots[number - 12].world_from_camera)
        assert street.scene(frame.stamp_s).distance(world_points(frame)[frame.depth > 0]).max() < 0.01


def test_rendered_streets_are_a_data_set_that_any_order_reads_alike():
    images = SyntheticStreets(seed=10, count=4, height=24, width=48)
    backward = [images[index] for index in (3, 2, 1, 0)][::-1]
    elsewhere = pickle.loads(pickle.dumps(images))
    assert len(images) == 4
    for index, image in enumerate(backward):
        frame = random_frame(10 + index, 24, 48)
        for name in ("rgb", "panoptic_ids", "depth"):
            np.testing.assert_array_equal(getattr(image, name), getattr(frame, name))
        assert image.camera == frame.camera == images.camera(index)
    np.testing.assert_array_equal(elsewhere[2].rgb, backward[2].rgb)
    assert len({images.name_of(index) for index in range(4)}) == 4
    assert images[-1].name == images.name_of(3)
    with pytest.raises(IndexError):
        images[4]
    with pytest.raises(ValueError, match="count of 1 or more"):
        SyntheticStreets(seed=10, count=0)


def test_all_categories_stand_in_the_streets():
    layouts = [training_street(street * VIEWS_A_STREET).layout for street in (0, 9)]  # the tram is the rarest
    static = {part.category for layout in layouts for part, _ in layout.static}
    things = {thing.category for layout in layouts for thing in layout.things}
    assert static | {"sky"} == {category.name for category in CITYSCAPES if not category.is_thing}
    assert things == {category.name for category in CITYSCAPES if category.is_thing}


def test_a_crowded_street_is_the_same_street_with_more_things():
    plain, crowded = Street(12).layout, Street(12, is_crowded=True).layout
    assert len(crowded.static) == len(plain.static)
    assert [thing.track for thing in crowded.things[: len(plain.things)]] == [thing.track for thing in plain.things]
    numbers = [(thing.category, thing.instance) for thing in crowded.things]
    assert len(set(numbers)) == len(numbers) > len(plain.things)


# Light and surfaces


@pytest.fixture(scope="module")
def court() -> Scene:
    """A floor of 40 m with a wall 4 m high across it, 5 m ahead."""
    gray = Look((0.4, 0.4, 0.4))
    floor = placed(box(), (0, 0, -0.5), (40, 40, 1), gray, "road")
    wall = placed(box(), (5.1, 0, 2), (0.2, 40, 4), gray, "wall")
    return Scene(bake([(part, np.eye(4), 0) for part in (floor, wall)]))


def looking_ahead(scene: Scene, to_sun: tuple[float, float, float]) -> View:
    light = Light.random(np.random.default_rng(0))
    light = replace(light, to_sun=np.array(to_sun, np.float32), sun=np.ones(3, np.float32))
    return View(scene, Centerline(0.0), light, CAMERA, Mount(pitch=0.5).base_from_camera)


@pytest.mark.parametrize(("elevation_deg", "shadow_m"), [(60.0, 4 / 3**0.5), (70.0, 1.456)])
def test_a_wall_throws_a_shadow_as_long_as_the_sun_is_low(court: Scene, elevation_deg: float, shadow_m: float):
    elevation = np.radians(elevation_deg)
    view = looking_ahead(court, (np.cos(elevation), 0, np.sin(elevation)))  # the sun is behind the wall
    directions = view.directions(*np.mgrid[:72, :144].reshape(2, -1))
    hits = view.cast(directions)
    surfaces = [surface for surface, _ in view.surfaces(hits, directions)]
    position = np.concatenate([surface.position for surface in surfaces], axis=1)
    sunlit = np.concatenate([view.sunlit(surface) for surface in surfaces])
    on_floor = np.abs(position[2]) < 1e-4
    sure = np.abs(position[0] - (5.0 - shadow_m)) > 0.1
    is_open = position[0] < 5.0 - shadow_m
    np.testing.assert_array_equal(sunlit[on_floor & sure], is_open[on_floor & sure])
    assert (sunlit[~on_floor] == 0).all()  # the near face of the wall
    assert len(set(is_open[on_floor & sure])) == 2


def test_a_corner_sees_less_of_the_sky_than_the_open_floor(court: Scene):
    view = looking_ahead(court, (0, 0, 1))
    directions = view.directions(*np.mgrid[:72, :144].reshape(2, -1))
    hits = view.cast(directions)
    free = view.open_sky(hits, directions, np.random.default_rng(0))
    x, _, z = directions * hits.length + view.world_from_camera[:3, 3:]
    on_floor = np.abs(z) < 1e-4
    assert free[on_floor & (x > 4.5)].mean() < 0.8 * free[on_floor & (x < 3.0)].mean()


def test_room_is_what_nothing_stands_in(court: Scene):
    assert court.has_room(np.eye(4), around=1.1, ahead=4.9)
    assert not court.has_room(np.eye(4), around=1.1, ahead=5.2)
    assert not court.has_room(np.eye(4), around=6.0, ahead=4.9)
    assert court.has_room(pose(yaw=np.pi), around=1.1, ahead=15.0)  # looking away from the wall


def test_normals_follow_a_shape_that_is_stretched_and_turned():
    part = placed(ball(), (1, 2, 3), (3.0, 1.0, 0.4), Look((0.5, 0.5, 0.5)), "car", yaw=0.7, pitch=0.3, roll=-0.5)
    scene = Scene(bake([(part, pose(0, 0, 0, yaw=1.0), 0)]))
    directions = np.random.default_rng(0).normal(size=(3, 500)).astype(np.float32)
    center = (pose(0, 0, 0, yaw=1.0) @ part.pose)[:3, 3]
    origins = (center[:, None] - 10 * directions).T.astype(np.float32)
    hits = scene.cast(origins, directions.T)
    view = View(scene, Centerline(0.0), Light.random(np.random.default_rng(0)), CAMERA, np.eye(4))
    ((surface, rows),) = view.surfaces(hits, directions)
    linear = (pose(0, 0, 0, yaw=1.0) @ part.pose)[:3, :3]
    # A sphere's normal is its point; the inverse transpose brings it to the world.
    points = (origins + hits.length[:, None] * directions.T)[rows] - center
    expected = np.linalg.inv(linear) @ points.T
    expected = np.linalg.inv(linear).T @ expected
    expected /= np.linalg.norm(expected, axis=0)
    assert ((surface.normal * expected).sum(0) > 0.97).all()
    np.testing.assert_allclose(np.linalg.norm(surface.normal, axis=0), 1.0, atol=1e-5)
    np.testing.assert_allclose(linear @ surface.local, points.T, atol=1e-3)


def test_noise_repeats_and_is_the_texel_below_each_coordinate():
    u, v = np.random.default_rng(0).uniform(-9000, 9000, (2, 300)).astype(np.float32)
    table = street_noise.grain()
    expected = [table[(math.floor(y) % 512) * 512 + math.floor(x) % 512] for x, y in zip(u, v, strict=True)]
    found = street_noise.sample(table, u, v)
    assert (found == np.array(expected)).mean() > 0.97  # adding whole tables costs small fractions their last bits


# Street coordinates


@pytest.mark.parametrize("curvature", [0.0, 0.008, -0.008])
def test_street_coordinates_lead_back_to_themselves(curvature: float):
    line = Centerline(curvature)
    s, left = np.array([0.0, 40.0, 150.0, -20.0]), np.array([3.0, -20.0, 12.0, 0.0])
    back_s, back_left = line.locate(line.points(s, left))
    np.testing.assert_allclose(back_s, s, atol=1e-9)
    np.testing.assert_allclose(back_left, left, atol=1e-9)


def test_left_of_a_street_that_bends_left_is_left():
    line = Centerline(0.01)
    assert line.pose(100.0, 0.0)[1, 3] > 40
    np.testing.assert_allclose(line.points(np.array([0.0]), np.array([2.0])), [[0.0, 2.0]], atol=1e-9)


# Files


def test_rendered_frames_resume_where_they_stopped(tmp_path):
    write_frames(tmp_path, count=2, seed=5)
    files = sorted(path.name for path in tmp_path.iterdir())
    kinds = ("depth.png", "image.jpg", "panoptic.png")
    assert files == [f"{index:06d}_{kind}" for index in range(2) for kind in kinds] + ["cameras.json"]

    whole = (tmp_path / "000001_depth.png").read_bytes()
    untouched = (tmp_path / "000000_image.jpg").stat().st_mtime_ns
    (tmp_path / "000001_depth.png").unlink()
    write_frames(tmp_path, count=2, seed=5)
    assert (tmp_path / "000001_depth.png").read_bytes() == whole
    assert (tmp_path / "000000_image.jpg").stat().st_mtime_ns == untouched

    with pytest.raises(ValueError, match="another seed or size"):
        write_frames(tmp_path, count=2, seed=6)


def write_frames(folder: Path, count: int, seed: int) -> None:
    render.render_all(street_folder.plan(folder, count, seed, height=24, width=48), 1, folder)


def last_words(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The sentence with which the command ends; sys.exit makes that status 1."""
    monkeypatch.setattr(sys, "argv", ["render", *map(str, arguments)])
    monkeypatch.setattr(render, "interrupt_once", lambda: None)  # the signals belong to the tests
    with pytest.raises(SystemExit) as ended:
        render.main()
    assert isinstance(ended.value.code, str)
    assert "\n" not in ended.value.code
    return ended.value.code


@pytest.mark.parametrize(("kind", "cause"), [("frames", "File exists"), ("sequences", "Not a directory")])
def test_a_file_in_the_place_of_the_folder_is_named(tmp_path, monkeypatch, kind, cause):
    file = tmp_path / "notes"
    file.write_text("mine")
    said = last_words(monkeypatch, kind, file, "--count", 1)
    assert said.startswith(f"render: {file}")
    assert f": {cause}; expected a folder that can be written" in said
    assert file.read_text() == "mine"


def test_a_full_disk_is_said_and_the_same_command_goes_on(tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(street_folder, "write_whole", full)
        said = last_words(patch, "frames", tmp_path, "--count", 1)
    assert said.startswith(f"render: {tmp_path}/cameras.json: No space left on device; expected a folder")
    assert said.endswith("the same command goes on from here")


@pytest.mark.parametrize(
    ("kind", "arguments", "fault"),
    [
        ("frames", ("--height", 1, "--width", 1), "1 px high and 1 px wide: expected 2 px or more"),
        ("sequences", ("--height", 1), "1 px high and 512 px wide: expected 2 px or more"),
        ("drive", ("--width", 1), "512 px high and 1 px wide: expected 2 px or more"),
        ("drive", ("--seconds", 0), "a drive of 0 s at 10 frames a second: expected finite"),
        ("drive", ("--seconds", -1), "a drive of -1 s"),
        ("drive", ("--seconds", -1, "--rate", -10), "a drive of -1 s at -10 frames"),
        ("drive", ("--seconds", "nan"), "a drive of nan s"),
        ("drive", ("--seconds", "inf"), "a drive of inf s"),
        ("drive", ("--rate", 0), "at 0 frames"),
        ("drive", ("--rate", "inf"), "at inf frames"),
        ("drive", ("--seconds", 0.05), "a drive of 0.05 s at 10 frames a second: .* one frame or more"),
    ],
)
def test_what_cannot_be_rendered_is_refused_before_anything_is_written(tmp_path, monkeypatch, kind, arguments, fault):
    assert re.match(f"render: .*{fault}", last_words(monkeypatch, kind, tmp_path / "new", *arguments))
    assert not list(tmp_path.iterdir())


def test_a_drive_of_one_frame_is_the_shortest():
    assert DriveOptions(seconds=0.06, rate_hz=10.0).num_frames == 1


@pytest.mark.parametrize("content", ['{"000000": {"seed": 0, "hei', "[]", '{"000000": [1, 2]}', ""])
def test_broken_cameras_are_named_with_the_remedy(tmp_path, monkeypatch, content):
    (tmp_path / "cameras.json").write_text(content)
    said = last_words(monkeypatch, "frames", tmp_path, "--count", 1)
    assert re.match(rf"render: {re.escape(str(tmp_path))}/cameras.json: .*; remove it and what pictures", said)
    (tmp_path / "cameras.json").unlink()
    assert len(street_folder.plan(tmp_path, 1, 0, 24, 48)) == 1


@pytest.mark.parametrize(
    ("kind", "picture"),
    [("frames", "000000_image.jpg"), ("sequences", "video_sequence/train/000000_000000_rendered_depth.png")],
)
def test_pictures_without_cameras_are_not_added_to(tmp_path, monkeypatch, kind, picture):
    (tmp_path / picture).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / picture).write_bytes(b"of some size")
    assert "cameras.json: missing, so nobody can say" in last_words(monkeypatch, kind, tmp_path, "--count", 1)
    assert not list(tmp_path.rglob("*.json"))


def test_an_empty_file_is_a_missing_frame(tmp_path):
    (frames,) = street_folder.plan(tmp_path, 2, 0, 24, 48)
    (sequence,) = street_sequences.plan(tmp_path, "val", 1, 0, 24, 48)
    for number in (0, 1):
        for path in frames.paths(number):
            path.write_bytes(b"whole")
    for name in sequence.names:
        for suffix in sequence.suffixes:
            (sequence.folder / (name + suffix)).write_bytes(b"whole")
    assert frames.missing == sequence.missing == []
    frames.paths(1)[2].write_bytes(b"")
    (sequence.folder / f"{sequence.names[4]}_depth.png").write_bytes(b"")
    assert frames.missing == [1]
    assert sequence.missing == [4]


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path):
    street_folder.plan(tmp_path, 1, 0, 24, 48)
    (tmp_path / "000000_image.jpg").write_bytes(b"whole")
    left, young = tmp_path / ".000001_image.jpg.77-0a0a0a0a.partial", tmp_path / ".000002_image.jpg.78-0b.partial"
    for partial in (left, young):
        partial.write_bytes(b"hal")
    os.utime(left, (time.time() - 3600,) * 2)
    street_folder.plan(tmp_path, 1, 0, 24, 48)
    assert not left.exists()
    assert young.exists()
    assert FrameFolder(tmp_path).names == ["000000"]


def test_an_interrupted_command_ends_at_once_with_all_its_processes_and_leaves_whole_frames(tmp_path):
    """Ctrl-C reaches all processes of a terminal at once, as a signal to the group does."""
    size = ["--height", "24", "--width", "48", "--jobs", "2", "--count", "3000"]
    command = [sys.executable, "-m", "panoptic_depth_training.render", "frames", str(tmp_path), *size]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: len(list(tmp_path.glob("*_depth.png"))) > VIEWS_A_STREET)
    os.killpg(process.pid, signal.SIGINT)
    _, message = process.communicate(timeout=20)
    assert process.returncode == INTERRUPTED
    assert b"Traceback" not in message
    assert message.endswith(b"stopped; the same command goes on from here\n")
    wait_for(lambda: not is_alive(process.pid))
    written = sorted(tmp_path.glob("*_depth.png"))
    assert VIEWS_A_STREET < len(written) < 3000
    for path in (written[0], written[-1]):  # of whichever process
        number = int(path.name[:6])
        for kind, data in zip(("image.jpg", "panoptic.png"), encode(random_frame(number, 24, 48)), strict=False):
            assert (tmp_path / f"{number:06d}_{kind}").read_bytes() == data


def test_processes_end_when_the_one_that_started_them_is_killed():
    """SIGKILL leaves it no time to end them itself; on their own they would sleep on here."""
    lines = (
        "import os, sys, time",
        "from panoptic_depth_training.workers import workers",
        "with workers(1) as pool:",
        "    print(pool.submit(os.getpid).result(), flush=True)",
        "    pool.submit(time.sleep, 300).result()",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    try:
        with process.stdout:
            assert int(process.stdout.readline()) != process.pid
            process.kill()
        assert process.wait() == -signal.SIGKILL
        wait_for(lambda: not is_alive(process.pid))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(group: int) -> bool:
    """Whether the group has a process that has not ended; who has ended may wait for its parent to notice."""
    stats = (path.read_text().rsplit(")", 1)[1].split() for path in Path("/proc").glob("[0-9]*/stat") if path.exists())
    return any(int(fields[2]) == group and fields[0] != "Z" for fields in stats)


def test_sequences_read_back_as_cityscapes_dvps(tmp_path):
    sequences = street_sequences.plan(tmp_path, "val", count=2, seed=3, height=48, width=96, has_lidar=True)
    render.render_all(sequences[:1], 1, tmp_path)
    images = CityscapesDvps(tmp_path, "val")
    assert len(images) == 6
    assert {images.sequence_of(index) for index in range(6)} == {"000000"}
    listed = json.loads((tmp_path / "video_sequence" / "dvps_cityscapes_val.json").read_text())
    assert len(listed) == 12
    for entry in listed[:6]:
        assert (entry["height"], entry["width"]) == (48, 96)
        assert all((images.folder / entry[kind]).exists() for kind in ("image", "seg", "depth"))
    street, mount, _, _ = street_sequences.drawn(3)
    for index in (0, 5):
        image, time_s = images[index], 0.3 * index
        pose = json.loads((images.folder / f"{image.name}_pose.json").read_text())
        assert pose["stamp_s"] == pytest.approx(time_s)
        np.testing.assert_allclose(pose["world_from_camera"], street.world_from_base(time_s) @ mount.base_from_camera)
        frame = Frame(image.rgb, image.panoptic_ids, image.depth, image.camera, np.array(pose["world_from_camera"]), 0)
        assert points_inside_their_things(frame, street, time_s, depth_error=1 / 512) > 2
        assert street.scene(time_s).has_room(street.world_from_base(time_s), around=0.8, ahead=2.0)
        scan = np.load(images.folder / f"{image.name}_lidar.npy")[:, :3]
        in_camera = np.linalg.inv(frame.world_from_camera) @ np.array(pose["world_from_lidar"])
        expected, found = depth_at(frame, apply(in_camera, scan))
        assert (np.abs(found - expected) < 0.06 * expected + 0.15).mean() > 0.85


def test_a_sequence_resumes_with_the_frames_that_are_missing(tmp_path):
    (sequence,) = street_sequences.plan(tmp_path, "train", count=1, seed=3, height=24, width=48)
    steps = sequence.write()
    assert [next(steps), next(steps)] == [1, 1]
    assert sequence.missing == [2, 3, 4, 5]
    with pytest.raises(ValueError, match="another seed or size"):
        street_sequences.plan(tmp_path, "train", count=1, seed=4, height=24, width=48)


def test_encoded_truth_reads_back():
    frame = random_frame(5, 24, 48)
    image, panoptic, depth = (cv2.imdecode(np.frombuffer(data, np.uint8), -1) for data in encode(frame))
    assert np.abs(image[..., ::-1].astype(int) - frame.rgb).mean() < 6
    np.testing.assert_array_equal(panoptic, frame.panoptic_ids)
    assert depth.dtype == np.uint16
    np.testing.assert_allclose(depth / 256, np.where(frame.depth < 255.99, frame.depth, 0), atol=1 / 512)


def test_a_recorded_drive_carries_camera_lidar_transforms_and_truth(tmp_path):
    options = DriveOptions(seed=12, seconds=0.3, rate_hz=10.0, height=24, width=48)
    assert list(write_drive(tmp_path / "drive", options)) == [1, 2, 3]
    with Recording(tmp_path / "drive") as recording:
        assert recording.counts == {
            "/tf_static": 1,
            "/tf": 3,
            "/camera/image_raw/compressed": 3,
            "/camera/camera_info": 3,
            "/velodyne_points": 3,
            "/truth/panoptic/compressed": 2,
            "/truth/depth/compressed": 2,
        }
        messages = {recorded.topic: recording.decode(recorded) for recorded in recording.messages()}
    truth = messages["/truth/panoptic/compressed"]
    frame = Street(12).frame(options.camera, 0.2)
    np.testing.assert_array_equal(cv2.imdecode(np.asarray(truth.data), -1), frame.panoptic_ids)
    depth = cv2.imdecode(np.asarray(messages["/truth/depth/compressed"].data), -1)
    np.testing.assert_allclose(depth / 1000, np.where(frame.depth < 65.5, frame.depth, 0), atol=0.04)
    assert truth.header.stamp == messages["/camera/image_raw/compressed"].header.stamp
    in_base = {t.child_frame_id: matrix(t.transform) for t in messages["/tf_static"].transforms}
    np.testing.assert_allclose(in_base["camera_optical"], FRONT_MOUNT.base_from_camera, atol=1e-9)
    np.testing.assert_allclose(in_base["velodyne"], BASE_FROM_LIDAR, atol=1e-9)
    moved = matrix(messages["/tf"].transforms[0].transform) @ in_base["camera_optical"]
    np.testing.assert_allclose(moved, frame.world_from_camera, atol=1e-6)


def test_the_sample_recording_is_what_the_command_renders():
    sample = Path(__file__).parents[2] / "samples" / "street_drive"
    assert sum(path.stat().st_size for path in sample.iterdir()) < 8e6
    with Recording(sample) as recording:
        first = next(recording.messages(["/truth/panoptic/compressed"]))
        truth = cv2.imdecode(np.asarray(recording.decode(first).data), -1)
    options, street = DriveOptions(), Street(DriveOptions().seed)
    rays = options.camera.rays()[::8, ::8].reshape(-1, 2)
    world_from_camera = street.world_from_base() @ FRONT_MOUNT.base_from_camera
    directions = np.concatenate([rays, np.ones((len(rays), 1))], axis=1) @ world_from_camera[:3, :3].T
    scene = street.scene()
    hits = scene.cast(world_from_camera[:3, 3], directions)
    is_seen = hits.part >= 0
    same = scene.mesh.panoptic_id[hits.part[is_seen]] == truth[::8, ::8].ravel()[is_seen]
    assert same.mean() > 0.999


def matrix(transform) -> np.ndarray:
    """[4, 4] of a geometry_msgs/Transform."""
    q, t = transform.rotation, transform.translation
    axis = np.array([q.x, q.y, q.z])
    cross = np.cross(np.eye(3), axis)
    result = np.eye(4)
    result[:3, :3] = np.eye(3) + 2 * q.w * cross + 2 * cross @ cross
    result[:3, 3] = t.x, t.y, t.z
    return result


def test_a_half_turn_about_each_axis_has_its_quaternion():
    for axis in range(3):
        rotation = -np.eye(3)
        rotation[axis, axis] = 1
        quaternion = np.array(quaternion_from_rotation(rotation))
        expected = np.zeros(4)
        expected[axis] = 1
        np.testing.assert_allclose(np.abs(quaternion), expected, atol=1e-9)
