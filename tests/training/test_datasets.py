# SPDX-License-Identifier: Apache-2.0
"""Data sets in their published layouts load, say how far to trust them, and name every file that is wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.taxonomy import VOID_CATEGORY, VOID_PANOPTIC_ID
from panoptic_depth_training.datasets.camvid import CamVid
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES, RAW_LABELS, CityscapesFine, stereo_depth
from panoptic_depth_training.datasets.cityscapes_dvps import CityscapesDvps
from panoptic_depth_training.datasets.frames import FrameFolder
from panoptic_depth_training.datasets.label_clips import LabelClips
from panoptic_depth_training.datasets.labeled import EXACT, DataError, LabeledImages, Supervision
from panoptic_depth_training.datasets.semkitti_dvps import SEMANTIC_KITTI, SemKittiDvps, small_numbers
from panoptic_depth_training.datasets.sources import list_images, open_images, parse_source, split_weight
from panoptic_depth_training.output_files import write_whole

HEIGHT, WIDTH = 16, 32
VOID = VOID_PANOPTIC_ID
ROAD, WALL, FENCE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY = (
    CITYSCAPES.names.index(name)
    for name in ("road", "wall", "fence", "traffic light", "traffic sign", "vegetation", "terrain", "sky")
)
PERSON, RIDER, CAR, TRUCK, BUS, BICYCLE = (
    CITYSCAPES.names.index(name) for name in ("person", "rider", "car", "truck", "bus", "bicycle")
)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def rgb_image() -> np.ndarray:
    """Red on the left, blue on the right, in OpenCV's order."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, : WIDTH // 2, 2] = image[:, WIDTH // 2 :, 0] = 200
    return image


def columns(values: list[int], dtype: type) -> np.ndarray:
    """A map of as many stripes as there are values, from left to right."""
    return np.tile(np.repeat(values, WIDTH // len(values)), (HEIGHT, 1)).astype(dtype)


def stripes(image: np.ndarray, count: int) -> list:
    """The value in the middle of each of so many stripes."""
    return image[HEIGHT // 2, WIDTH // count // 2 :: WIDTH // count].tolist()


# ---- each layout as it is published ---------------------------------------------------------------------------------


def cityscapes_tree(root: Path) -> CityscapesFine:
    """Two images of one city, with stereo."""
    raw = {name: number for number, name in enumerate(RAW_LABELS)}
    labels = [raw["road"], raw["ego vehicle"], raw["car"], raw["car"] * 1000, raw["car"] * 1000 + 7]
    labels += [raw["caravan"] * 1000 + 2, raw["person"] * 1000 + 1, raw["polegroup"]]
    for frame in ("000019", "000049"):
        name = f"aachen/aachen_000003_{frame}"
        write(root / f"leftImg8bit/train/{name}_leftImg8bit.png", rgb_image())
        write(root / f"gtFine/train/{name}_gtFine_instanceIds.png", columns(labels, np.uint16))
        disparity = columns([257, 257, 0, 1, 1025, 2561, 257, 257], np.uint16)
        write(root / f"disparity/train/{name}_disparity.png", disparity)
        camera = {
            "extrinsic": {"baseline": 0.2},
            "intrinsic": {"fx": 100.0, "fy": 99.0, "u0": 15.0, "v0": 8.0},
        }
        path = root / f"camera/train/{name}_camera.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(camera))
    return CityscapesFine(root, "train")


def dvps_tree(root: Path) -> CityscapesDvps:
    folder = root / "video_sequence/train"
    for frame in range(2):
        name = f"000001_{frame:06d}_munster_000105_{4 + 5 * frame:06d}"
        write(folder / f"{name}_leftImg8bit.png", rgb_image())
        labels = columns([ROAD * 1000, 32000, CAR * 1000, CAR * 1000 + 1], np.uint16)
        write(folder / f"{name}_gtFine_instanceTrainIds.png", labels)
        write(folder / f"{name}_depth.png", columns([256, 0, 5120, 20480], np.uint16))
    return CityscapesDvps(root, "train")


def semkitti_tree(root: Path) -> SemKittiDvps:
    folder = root / "video_sequence/val"
    for frame in range(2):
        name = f"000008_{frame:06d}"
        write(folder / f"{name}_leftImg8bit.png", rgb_image())
        write(folder / f"{name}_gtFine_class.png", columns([0, 0, 0, 8], np.uint8))
        write(folder / f"{name}_gtFine_instance.png", columns([0, 3, 4711, 5], np.uint16))
        write(folder / f"{name}_depth_707.0911865234375.png", columns([256, 0, 512, 0], np.uint16))
    return SemKittiDvps(root, "val")


def camvid_tree(root: Path) -> CamVid:
    for name in ("0001TP_006690", "0016E5_00390"):
        write(root / f"train/{name}_image.jpg", rgb_image())
        write(root / f"train/{name}_labels.png", columns([3, 8, 10, 255], np.uint8))
    return CamVid(root, "train")


def clips_tree(root: Path) -> LabelClips:
    raw = {name: number for number, name in enumerate(RAW_LABELS)}
    names = ("road", "car", "car", "car", "building", "truck", "person", "sky")
    labels = columns([raw[name] for name in names], np.uint8)
    labels[-1] = raw["truck"]  # a loose border, in all segments
    segments = columns([255, 255, 7, 9, 9, 9, 300, 300], np.uint16)
    for clip in ("seq0000", "seq0001"):
        write(root / clip / "00_image.jpg", rgb_image())
        write(root / clip / "00_label_ids.png", labels)
        write(root / clip / "00_instance_ids.png", segments)
    return LabelClips(root)


def frames_tree(root: Path) -> FrameFolder:
    camera = {"seed": 0, "height": HEIGHT, "width": WIDTH, "fx": 30.0, "fy": 31.0, "cx": 15.5, "cy": 7.5}
    root.mkdir(parents=True, exist_ok=True)
    (root / "cameras.json").write_text(json.dumps({f"{k:06d}": camera for k in range(3)}))
    for k in range(2):  # the third one is planned, but not rendered yet
        write(root / f"{k:06d}_image.jpg", rgb_image())
        write(root / f"{k:06d}_panoptic.png", columns([ROAD * 1000, CAR * 1000 + 1, CAR * 1000, VOID], np.uint16))
        write(root / f"{k:06d}_depth.png", columns([256, 640, 0, 20480], np.uint16))
    return FrameFolder(root)


TREES: dict[str, Callable[[Path], LabeledImages]] = {
    "cityscapes": cityscapes_tree,
    "cityscapes_dvps": dvps_tree,
    "semkitti_dvps": semkitti_tree,
    "camvid": camvid_tree,
    "label_clips": clips_tree,
    "synthetic": frames_tree,
}
kinds = pytest.mark.parametrize("kind", TREES)


@kinds
def test_every_data_set_gives_whole_images(tmp_path, kind):
    images = TREES[kind](tmp_path)
    assert len(images) == 2
    for index in range(2):
        image = images[index]
        assert (image.rgb.shape, image.rgb.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
        assert (image.panoptic_ids.shape, image.panoptic_ids.dtype) == ((HEIGHT, WIDTH), np.uint16)
        assert (image.depth.shape, image.depth.dtype) == ((HEIGHT, WIDTH), np.float32)
        assert image.name == images.name_of(index)
        assert image.rgb[8, 4, 0] > 150 > image.rgb[8, 4, 2]  # red on the left: RGB order
        assert all(path.exists() for path in images.files_of(index))
        assert images.supervision.judged_table(len(images.taxonomy)).shape == (256, len(images.taxonomy))


def test_cityscapes_groups_are_things_not_told_apart(tmp_path):
    image = cityscapes_tree(tmp_path)[0]
    ids = [ROAD * 1000, VOID, CAR * 1000, CAR * 1000 + 1, CAR * 1000 + 8, VOID, PERSON * 1000 + 2, VOID]
    assert stripes(image.panoptic_ids, 8) == ids


def test_cityscapes_disparity_becomes_depth_where_it_says_something(tmp_path):
    image = cityscapes_tree(tmp_path)[0]
    # 20 m px over 1, 4 and 10 px; unknown: the ego vehicle, a disparity of 0, and one of 1 (infinitely far)
    assert stripes(image.depth, 8) == pytest.approx([20.0, 0, 0, 0, 5.0, 2.0, 20.0, 20.0])
    assert image.camera == PinholeCamera(HEIGHT, WIDTH, 100.0, 99.0, 15.0, 8.0)


def test_stereo_depth_is_the_published_formula():
    disparity = np.array([[0, 1, 2, 6400, 65535]], np.uint16)
    product = 0.222126 * 2268.36  # baseline and focal length of a published camera
    expected = [0, 0, product / (1 / 256), product / (6399 / 256), product / (65534 / 256)]
    np.testing.assert_allclose(stereo_depth(disparity, product)[0], expected, rtol=1e-6)


def test_cityscapes_without_stereo_has_no_camera(tmp_path):
    cityscapes_tree(tmp_path)
    shutil.rmtree(tmp_path / "disparity")
    image = CityscapesFine(tmp_path, "train")[0]
    assert image.camera is None
    assert not image.depth.any()


def test_cityscapes_sequences_are_those_of_the_drives(tmp_path):
    images = cityscapes_tree(tmp_path)
    assert [images.sequence_of(index) for index in range(2)] == ["aachen_000003"] * 2


def test_in_dvps_instance_zero_is_a_thing_and_32000_void(tmp_path):
    image = dvps_tree(tmp_path)[1]
    assert stripes(image.panoptic_ids, 4) == [ROAD * 1000, VOID, CAR * 1000 + 1, CAR * 1000 + 2]
    assert stripes(image.depth, 4) == [1.0, 0, 20.0, 80.0]


def test_dvps_takes_the_nominal_camera_unless_the_folder_has_its_own(tmp_path):
    images = dvps_tree(tmp_path)
    assert images[0].camera.fx == pytest.approx(2262.52 * WIDTH / 2048)
    own = {images.name_of(0): {"fx": 20.0, "fy": 20.0, "cx": 15.5, "cy": 7.5}}
    (images.folder / "cameras.json").write_text(json.dumps(own))
    again = CityscapesDvps(tmp_path, "train")
    assert again[0].camera == PinholeCamera(HEIGHT, WIDTH, 20.0, 20.0, 15.5, 7.5)
    with pytest.raises(DataError, match="lacks a number for fx"):
        again[1]


def test_dvps_frames_belong_to_their_sequence(tmp_path):
    images = dvps_tree(tmp_path)
    assert [images.sequence_of(index) for index in range(2)] == ["000001", "000001"]


def test_semkitti_knows_its_own_categories_and_the_focal_length(tmp_path):
    images = semkitti_tree(tmp_path)
    image = images[0]
    assert len(images.taxonomy) == 19
    assert images.taxonomy.names[image.panoptic_ids[8, 30] // 1000] == "road"
    assert image.camera.fx == pytest.approx(707.0911865)
    assert (image.camera.cx, image.camera.cy) == (601.8873, 183.1104)  # KITTI's calibration of sequences 04 to 12
    assert stripes(image.depth, 4) == [1.0, 0, 2.0, 0]


def test_semkitti_instances_beyond_three_digits_get_free_numbers(tmp_path):
    ids = stripes(semkitti_tree(tmp_path)[0].panoptic_ids, 4)
    assert ids[:2] == [0, 3]  # no instance, and one that fits
    assert ids[2] == 4711 % 999
    assert ids[3] == SEMANTIC_KITTI.names.index("road") * 1000  # stuff has none


def test_a_large_instance_number_becomes_the_same_small_one_in_every_image():
    file = Path("instance.png")
    alone = small_numbers(np.array([0, 4711, 3], np.uint16), file)
    with_others = small_numbers(np.array([4711, 65535, 12, 999, 1998], np.uint16), file)
    assert alone.tolist() == [0, 4711 % 999, 3]
    assert with_others.tolist() == [4711 % 999, 65535 % 999, 12, 999, 1]  # 0 is no number, and 999 was taken
    crowded = small_numbers(np.array([715, 716, 4711, 5710], np.uint16), file)
    assert crowded.tolist() == [715, 716, 717, 718]


def test_a_thousand_instances_in_an_image_are_refused():
    full = np.arange(5000, 5999, dtype=np.uint16)
    assert sorted(small_numbers(full, Path("instance.png"))) == list(range(1, 1000))
    with pytest.raises(DataError, match=r"instance.png: 1000 instances; expected fewer than 1000"):
        small_numbers(np.arange(5000, 6000, dtype=np.uint16), Path("instance.png"))


def test_semkitti_pixels_without_a_label_judge_nothing(tmp_path):
    table = semkitti_tree(tmp_path).supervision.judged_table(19)
    assert not table[VOID_CATEGORY].any()
    assert table[:19].all()


def test_camvid_labels_deny_only_what_they_exclude(tmp_path):
    images = camvid_tree(tmp_path)
    image = images[0]
    assert stripes(image.panoptic_ids, 4) == [ROAD * 1000, CAR * 1000, RIDER * 1000, VOID]
    assert image.camera is None
    table = images.supervision.judged_table(len(CITYSCAPES))
    assert table[ROAD].all()
    assert np.flatnonzero(~table[CAR]).tolist() == [TRUCK, BUS]
    assert np.flatnonzero(~table[VEGETATION]).tolist() == [TERRAIN]
    assert not table[RIDER, RIDER]  # a bicyclist's pixel may be the bicycle
    assert not table[RIDER, BICYCLE]
    assert table[RIDER, PERSON]
    assert np.flatnonzero(~table[FENCE]).tolist() == [WALL, FENCE]
    assert np.flatnonzero(~table[SIGN]).tolist() == [LIGHT, SIGN]
    assert not table[VOID_CATEGORY].any()


def test_clip_segments_take_their_most_frequent_thing_and_keep_loose_borders(tmp_path):
    ids = clips_tree(tmp_path)[0].panoptic_ids
    building = CITYSCAPES.names.index("building") * 1000
    # Segment 7 is a car but for its border. Segment 9 has three labels, and segment 300 is half sky: they are none.
    expected = [ROAD * 1000, CAR * 1000, CAR * 1000 + 1, CAR * 1000, building, TRUCK * 1000, PERSON * 1000, SKY * 1000]
    assert stripes(ids, 8) == expected
    assert (ids[-1] == TRUCK * 1000).all()


def test_a_clip_segment_needs_half_of_its_pixels(tmp_path):
    images = clips_tree(tmp_path)
    segments = columns([255, 255, 7, 9, 9, 9, 300, 255], np.uint16)
    write(tmp_path / "seq0000/00_instance_ids.png", segments)
    ids = images[0].panoptic_ids
    numbered = [number for number in np.unique(ids).tolist() if number % 1000]
    assert numbered == [PERSON * 1000 + 2, CAR * 1000 + 1]


def test_the_recording_vehicle_is_void_in_clips(tmp_path):
    clips_tree(tmp_path)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[12:] = 255
    write(tmp_path / "ego_mask.png", mask)
    ids = LabelClips(tmp_path)[0].panoptic_ids
    assert (ids[12:] == VOID).all()
    assert (ids[:12] != VOID).all()


def test_rendered_frames_give_back_what_was_written(tmp_path):
    image = frames_tree(tmp_path)[1]
    assert stripes(image.panoptic_ids, 4) == [ROAD * 1000, CAR * 1000 + 1, CAR * 1000, VOID]
    assert stripes(image.depth, 4) == [1.0, 2.5, 0, 80.0]
    assert image.camera == PinholeCamera(HEIGHT, WIDTH, 30.0, 31.0, 15.5, 7.5)


# ---- faults ---------------------------------------------------------------------------------------------------------


@kinds
def test_a_missing_file_is_named_with_the_remedy(tmp_path, kind):
    images = TREES[kind](tmp_path)
    for file in images.files_of(0):
        data = file.read_bytes()
        file.unlink()
        with pytest.raises(DataError, match=rf"{re.escape(file.name)}: missing; .*again"):
            images[0]
        file.write_bytes(data)
    images[0]


@kinds
def test_a_file_that_was_cut_short_is_named(tmp_path, kind):
    images = TREES[kind](tmp_path)
    for file in images.files_of(0):
        data = file.read_bytes()
        for share in (0.0, 0.6, 0.95):
            file.write_bytes(data[: int(share * len(data))])
            fault = "not JSON" if file.suffix == ".json" else "cut short" if share else "not a readable image"
            with pytest.raises(DataError, match=rf"{re.escape(file.name)}: {fault}"):
                images[0]
        file.write_bytes(data)


@kinds
def test_maps_of_another_depth_of_pixels_are_refused(tmp_path, kind):
    images = TREES[kind](tmp_path)
    for file in images.files_of(0)[1:]:
        if file.suffix != ".png":
            continue
        data = file.read_bytes()
        pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        is_wide = pixels.dtype == np.uint16
        write(file, (pixels >> 8).astype(np.uint8) if is_wide else pixels.astype(np.uint16))
        bits = ("8", "16") if is_wide else ("16", "8")
        with pytest.raises(DataError, match=rf"{re.escape(file.name)}: has {bits[0]} bits a pixel; expected {bits[1]}"):
            images[0]
        write(file, np.dstack([pixels.astype(np.uint8)] * 3))
        with pytest.raises(DataError, match=rf"{re.escape(file.name)}: a picture with 3 channels; expected one"):
            images[0]
        file.write_bytes(data)


@kinds
def test_a_map_of_another_size_than_its_image_is_refused(tmp_path, kind):
    images = TREES[kind](tmp_path)
    for file in images.files_of(0)[1:]:
        if file.suffix != ".png":
            continue
        data = file.read_bytes()
        write(file, cv2.imread(str(file), cv2.IMREAD_UNCHANGED)[:, ::2])
        with pytest.raises(DataError, match=rf"{re.escape(file.name)}: 16x16 px; expected its image's 32x16"):
            images[0]
        file.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "which", "label"),
    [
        ("cityscapes", 1, 34),
        ("cityscapes", 1, 11003),  # buildings have no instances
        ("cityscapes_dvps", 1, 19000),
        ("cityscapes_dvps", 1, ROAD * 1000 + 1),
        ("semkitti_dvps", 1, 19),
        ("camvid", 1, 11),
        ("label_clips", 1, 34),
        ("synthetic", 1, 19000),
    ],
)
def test_a_label_that_the_data_set_does_not_have_is_reported(tmp_path, kind, which, label):
    images = TREES[kind](tmp_path)
    file = images.files_of(0)[which]
    pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    pixels[3, 5:8] = label
    write(file, pixels)
    with pytest.raises(DataError, match=rf"{re.escape(file.name)}: 3 pixels have unknown labels \({label}\); .*again"):
        images[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -5.0, "wide", None])
def test_a_camera_without_a_usable_focal_length_is_refused(tmp_path, value):
    images = cityscapes_tree(tmp_path)
    path = images.files_of(0)[3]
    values = json.loads(path.read_text())
    values["intrinsic"]["fx"] = value
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"{path.name}: camera .*again"):
        images[0]


@pytest.mark.parametrize(
    "content", ['{"extrinsic": {}}', '{"intrinsic": {"fx": 1}, "extrinsic": {"baseline": 1}}', "[]"]
)
def test_a_camera_file_that_lacks_numbers_is_refused(tmp_path, content):
    images = cityscapes_tree(tmp_path)
    images.files_of(0)[3].write_text(content)
    with pytest.raises(DataError, match=r"camera.json: expected intrinsic fx, fy, u0, v0 and extrinsic baseline"):
        images[0]


def test_rendered_frames_must_have_the_size_of_their_camera(tmp_path):
    images = frames_tree(tmp_path)
    write(images.files_of(0)[0], rgb_image()[:, :20])
    with pytest.raises(DataError, match=r"000000_image.jpg: 20x16 px; expected 32x16 as cameras.json says"):
        images[0]


def test_rendered_frames_without_a_camera_are_reported(tmp_path):
    frames_tree(tmp_path)
    (tmp_path / "cameras.json").write_text("{}")
    with pytest.raises(DataError, match=r"cameras.json: no camera for frame 000000; .*render"):
        FrameFolder(tmp_path)[0]


@pytest.mark.parametrize("content", ["[]", '{"000000": [30, 31, 15.5, 7.5]}', "7"])
def test_cameras_of_another_shape_are_refused(tmp_path, content):
    frames_tree(tmp_path)
    (tmp_path / "cameras.json").write_text(content)
    with pytest.raises(DataError, match=r"cameras.json: .*expected an object .*; remove the folder and render"):
        FrameFolder(tmp_path)


def test_two_writers_of_a_file_do_not_meet(tmp_path, monkeypatch):
    """The second one writes and is done just before the first one gives its file the name."""
    replace = Path.replace

    def replace_last(partial: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", replace)
        write_whole(target, b"second")
        return replace(partial, target)

    monkeypatch.setattr(Path, "replace", replace_last)
    write_whole(tmp_path / "file", b"first")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "source",
    [
        "synthetic:{}",
        "label_clips:{}",
        "camvid:{}:val",
        "cityscapes:{}:val",
        "cityscapes_dvps:{}:val",
        "semkitti_dvps:{}:train",
    ],
)
def test_an_empty_folder_says_what_belongs_there(tmp_path, source):
    with pytest.raises(DataError, match=f"{re.escape(str(tmp_path))}"):
        open_images(source.format(tmp_path))


# ---- sources --------------------------------------------------------------------------------------------------------


def test_a_source_has_split_and_range():
    source = parse_source("camvid:/data/my=set@home:train@10:-5")
    assert (source.kind, source.place) == ("camvid", "/data/my=set@home:train")
    assert (source.first, source.last) == (10, -5)
    plain = parse_source("synthetic:some/folder")
    assert (plain.place, plain.first, plain.last) == ("some/folder", None, None)


def test_a_source_of_a_mixture_has_a_weight():
    assert split_weight("camvid:/data/my=set:train@10:-5=2.5") == ("camvid:/data/my=set:train@10:-5", 2.5)
    assert split_weight("synthetic:some/folder") == ("synthetic:some/folder", 1.0)
    assert split_weight("synthetic:lr=2/folder") == ("synthetic:lr=2/folder", 1.0)
    assert split_weight("synthetic:frames=1e-1") == ("synthetic:frames", 0.1)


@pytest.mark.parametrize("weight", ["=3", "=0.5", "=1", "=0"])
def test_a_weight_without_a_mixture_is_refused(weight):
    with pytest.raises(DataError, match=rf"'streets:0:5{weight}' has the weight {weight}, but only sources that train"):
        open_images(f"streets:0:5{weight}")


def test_a_path_may_end_like_a_weight():
    assert parse_source("synthetic:run=2@:").place == "run=2"
    assert split_weight("synthetic:run=2@:=3") == ("synthetic:run=2@:", 3.0)


def test_unknown_kinds_list_the_known_ones():
    expected = r"unknown data 'kitti:x'; expected KIND:PATH(.|\n)*recording:BAG(.|\n)*camvid:ROOT"
    with pytest.raises(DataError, match=expected):
        parse_source("kitti:x")


def test_a_split_is_never_guessed(tmp_path):
    camvid_tree(tmp_path)
    with pytest.raises(DataError, match=r"names no split; expected camvid:ROOT:train or camvid:ROOT:val"):
        open_images(f"camvid:{tmp_path}")
    with pytest.raises(DataError, match="names no split"):
        open_images(f"camvid:{tmp_path}:test")


def test_a_weight_of_nothing_is_refused():
    for weight in ("0", "-1", "nan", "inf", "much", ""):
        with pytest.raises(DataError, match=f"has weight {weight}; expected a number above 0"):
            split_weight(f"synthetic:a={weight}")


def test_a_range_holds_images_out(tmp_path):
    camvid_tree(tmp_path)
    first, rest = (open_images(f"camvid:{tmp_path}:train@{part}") for part in (":1", "1:"))
    assert [images.name_of(0) for images in (first, rest)] == ["0001TP_006690", "0016E5_00390"]
    assert (len(first), len(rest)) == (1, 1)
    assert rest[0].name == "0016E5_00390"
    assert rest.sequence_of(0) == "0016E5"
    assert rest.files_of(0)[0].name == "0016E5_00390_image.jpg"
    assert rest.supervision == CamVid.supervision
    with pytest.raises(DataError, match=r"none of its 2 images lies in @5:9"):
        open_images(f"camvid:{tmp_path}:train@5:9")


def test_a_hole_in_the_data_is_found_before_the_training_starts(tmp_path):
    camvid_tree(tmp_path)
    (tmp_path / "train/0016E5_00390_labels.png").unlink()
    with pytest.raises(DataError, match=r"0016E5_00390_labels.png: missing, and 0 more; .*check_data camvid:"):
        open_images(f"camvid:{tmp_path}:train")
    assert len(list_images(parse_source(f"camvid:{tmp_path}:train"))) == 2  # for check_data, which goes on


@pytest.mark.parametrize("place", ["", "5", "5:x", "5:2:64", "a:b:c"])
def test_streets_need_a_seed_and_a_count(place):
    with pytest.raises(DataError, match="streets"):
        open_images(f"streets:{place}")


# ---- supervision ----------------------------------------------------------------------------------------------------


def test_exact_labels_judge_everything():
    assert EXACT.judged_table(19).all()


def test_a_data_set_without_segments_judges_nothing():
    assert not Supervision(has_segments=False).judged_table(19).any()


def test_judging_looks_up_each_pixel():
    supervision = Supervision(void_is_background=False, confusable=((), (0,), (1, 2)))
    judged = supervision.judged(np.array([[0, 1], [2, VOID_CATEGORY]], np.uint8), 3)
    assert judged.tolist() == [[[True, True, True], [False, True, True]], [[True, False, False], [False] * 3]]


def test_confusable_categories_are_given_for_all_or_none():
    with pytest.raises(ValueError, match="confusable has 1 entries; expected 3"):
        Supervision(confusable=((1,),)).judged_table(3)
