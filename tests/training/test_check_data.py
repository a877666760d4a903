# SPDX-License-Identifier: Apache-2.0
"""The check counts what is there, shows it, and reports every bad file without stopping at the first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID
from panoptic_depth_training.check_data import Census, check, inconsistencies, main
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.labeled import LabeledImage
from panoptic_depth_training.datasets.sources import list_images, parse_source

ROAD, PERSON, CAR = 0, 11, 13


@pytest.fixture
def camvid(tmp_path) -> Path:
    """Six images: the upper half a tree, the lower road, and a car on it."""
    labels = np.full((36, 48), 5, np.uint8)
    labels[18:] = 3
    labels[20:30, 10:20] = 8
    for k in range(6):
        for name, image in (("image.jpg", np.full((36, 48, 3), 40 * k, np.uint8)), ("labels.png", labels)):
            path = tmp_path / "camvid" / "train" / f"drive_{k:06d}_{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
    return tmp_path / "camvid"


def labeled(ids: np.ndarray, depth: float = 0.0) -> LabeledImage:
    camera = PinholeCamera(*ids.shape, 50.0, 50.0, 1.0, 1.0)
    return LabeledImage(np.zeros((*ids.shape, 3), np.uint8), ids, np.full(ids.shape, depth, np.float32), camera, "one")


def test_pixels_and_instances_are_counted():
    ids = np.array([[0, 0, 13001, 13001], [13002, 13000, 11001, VOID_PANOPTIC_ID]], np.uint16)
    census = Census(CITYSCAPES)
    census.add(labeled(ids, depth=4.0))
    census.add(labeled(np.zeros((2, 4), np.uint16)))
    assert (census.num_images, census.num_pixels, census.void_pixels) == (2, 16, 1)
    assert census.pixels[[ROAD, PERSON, CAR]].tolist() == [10, 1, 4]
    assert census.images[[ROAD, PERSON, CAR]].tolist() == [2, 1, 1]
    assert census.instances[[ROAD, PERSON, CAR]].tolist() == [0, 1, 2]
    assert census.crowd_pixels[[ROAD, PERSON, CAR]].tolist() == [0, 0, 1]
    assert census.depth_line() == "depth: 50.00 % of pixels, 4.0 to 4.0 m, median 4.0 m; focal length 50 to 50 px"


def test_what_contradicts_itself_is_told():
    good = labeled(np.array([[0, 13001]], np.uint16))
    assert inconsistencies(good, CITYSCAPES) == []
    road_with_instance = replace(good, panoptic_ids=np.array([[1, 13001]], np.uint16))
    assert inconsistencies(road_with_instance, CITYSCAPES) == ["road is stuff, but has instances"]
    unknown = replace(good, panoptic_ids=np.array([[19000, 13001]], np.uint16))
    assert inconsistencies(unknown, CITYSCAPES) == ["categories up to 19; the taxonomy has 19"]
    not_a_number = replace(good, depth=np.array([[np.nan, 1]], np.float32))
    assert "negative or infinite" in inconsistencies(not_a_number, CITYSCAPES)[0]
    small = replace(good, depth=np.zeros((1, 1), np.float32))
    assert inconsistencies(small, CITYSCAPES) == ["depth is float32 (1, 1); expected float32 (1, 2)"]
    elsewhere = replace(good, camera=PinholeCamera(9, 9, 50.0, 50.0, 1.0, 1.0))
    assert "does not describe an image of 2x1 px" in inconsistencies(elsewhere, CITYSCAPES)[0]


def test_a_sound_data_set_passes_with_a_table_and_a_picture(camvid, tmp_path, capsys):
    assert main(["camvid", f"{camvid}:train", "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "6 of 6 images read; depth: none; no calibration" in text
    assert "vegetation" in text
    sheet = cv2.imread(str(tmp_path / "out" / "contact_sheet.png"))
    assert sheet.shape == (6 * 360, 2 * 480, 3)  # image and labels; nobody measured depth
    np.testing.assert_allclose(sheet[5 * 360 + 100, 400], 200, atol=2)  # the last image is the brightest
    tree = CITYSCAPES[CITYSCAPES.names.index("vegetation")].color
    np.testing.assert_allclose(sheet[5 * 360 + 100, 900], [(200 + value) / 2 for value in tree[::-1]], atol=2)


def test_every_bad_file_is_named_and_the_rest_is_still_read(camvid, capsys):
    train = camvid / "train"
    (train / "drive_000000_labels.png").unlink()
    whole = (train / "drive_000001_image.jpg").read_bytes()
    (train / "drive_000001_image.jpg").write_bytes(whole[:-40])
    cv2.imwrite(str(train / "drive_000002_labels.png"), np.full((36, 48), 11, np.uint8))
    cv2.imwrite(str(train / "drive_000003_labels.png"), np.full((36, 48), 3, np.uint16))
    cv2.imwrite(str(train / "drive_000004_labels.png"), np.full((18, 24), 3, np.uint8))
    assert main([f"camvid:{camvid}:train"]) == 1
    output = capsys.readouterr()
    assert "1 of 6 images read" in output.out
    for fault in (
        "drive_000000_labels.png: missing; copy",
        "drive_000001_image.jpg: cut short",
        "drive_000002_labels.png: 1728 pixels have unknown labels (11); copy",
        "drive_000003_labels.png: has 16 bits a pixel; expected 8",
        "drive_000004_labels.png: 24x18 px; expected its image's 48x36",
        "check_data: 5 faults",
    ):
        assert fault in output.err


def test_all_missing_files_of_an_image_are_named(camvid):
    images = list_images(parse_source(f"camvid:{camvid}:train"))
    for file in images.files_of(2):
        file.unlink()
    report = check(images)
    assert report.census.num_images == 5
    assert [Path(fault.split(":")[0]).name for fault in report.faults] == [file.name for file in images.files_of(2)]


def test_a_limit_reads_no_further(camvid):
    images = list_images(parse_source(f"camvid:{camvid}:train@1:"))
    (camvid / "train" / "drive_000005_labels.png").unlink()
    report = check(images, limit=3)
    assert report.census.num_images == 3
    assert report.faults == ()


def test_a_data_set_without_a_usable_image_is_a_list_of_faults(camvid, capsys):
    for file in (camvid / "train").glob("*_image.jpg"):
        file.write_bytes(b"")
    assert main([f"camvid:{camvid}:train"]) == 1
    told = capsys.readouterr()
    assert "0 of 6 images read; no depth, no calibration" in told.out
    assert "check_data: 6 faults" in told.err


def test_a_sheet_that_could_not_be_written_is_refused_before_reading(camvid, tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.touch()
    assert main([f"camvid:{camvid}:train", "--out", str(taken)]) == 1
    told = capsys.readouterr()
    assert "taken" in told.err
    assert told.out == ""


def test_what_cannot_be_opened_ends_with_one_sentence(tmp_path, capsys):
    assert main(["camvid", f"{tmp_path}:train"]) == 1
    assert "there is no such folder; copy the CamVid folder again" in capsys.readouterr().err
    assert main(["nonsense:x"]) == 1
    assert "expected KIND:PATH" in capsys.readouterr().err


def test_a_limit_below_one_is_refused(camvid):
    with pytest.raises(SystemExit):
        main([f"camvid:{camvid}:train", "--limit", "0"])
