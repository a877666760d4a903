# SPDX-License-Identifier: Apache-2.0
"""Pictures come from folders, recordings and data sets, evenly spread, and labels only from where they are exact."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from panoptic_depth_ros.share import share_path
from panoptic_depth_training.datasets.labeled import DataError
from panoptic_depth_training.export import pictures as module
from panoptic_depth_training.export.pictures import batches, open_pictures, told

DRIVE = share_path("samples", "street_drive")
NAMES = ("0.png", "1.png", "2.png", "3.png", "4.PNG")


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate(NAMES):
        cv2.imwrite(str(tmp_path / name), np.full((8, 6, 3), (0, 0, 50 * index), np.uint8))  # BGR
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_gives_its_pictures_in_the_order_of_their_names(folder):
    pictures = open_pictures(str(folder))
    assert len(pictures) == 5
    assert [(p.name, p.rgb.shape, p.rgb[0, 0].tolist()) for p in pictures] == [
        (name, (8, 6, 3), [50 * index, 0, 0]) for index, name in enumerate(NAMES)
    ]
    assert pictures.taxonomy is None
    assert [p.name for p in open_pictures(str(folder), 2)] == ["0.png", "4.PNG"]
    assert len(list(pictures)) == 5  # again


def test_any_recording_gives_the_images_of_its_camera():
    pictures = open_pictures(str(DRIVE), 3)  # 50 images, of which every other one has labels
    assert [picture.name for picture in pictures] == ["street_drive 0", "street_drive 24", "street_drive 49"]
    assert len(pictures) == 3
    first = next(iter(open_pictures(str(DRIVE / "street_drive.mcap"), 1)))
    assert (first.rgb.shape, first.panoptic_ids) == ((512, 1024, 3), None)


def test_a_data_set_gives_its_labels_as_well():
    pictures = open_pictures(f"recording:{DRIVE}@3:9", 2)
    first, second = pictures
    assert [first.name, second.name] == ["street_drive/0003", "street_drive/0008"]
    assert first.panoptic_ids.shape == first.rgb.shape[:2]
    assert len(pictures.taxonomy) == 19


def test_loose_labels_are_left_out(frames, monkeypatch):
    assert next(iter(open_pictures(f"synthetic:{frames}", 1))).panoptic_ids is not None
    images = module.open_images(f"synthetic:{frames}")
    images.supervision = module.open_images(f"synthetic:{frames}").supervision.__class__(confusable=((0, 1),) * 19)
    monkeypatch.setattr(module, "open_images", lambda source: images)
    pictures = open_pictures(f"synthetic:{frames}", 1)
    assert pictures.taxonomy is None
    assert next(iter(pictures)).panoptic_ids is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{tmp}", r"no picture in this folder; expected files \*.bmp"),
        ("{tmp}/absent", "neither a folder of pictures nor a recording; expected one of these, or KIND:PATH"),
        ("camera:{tmp}", "neither a folder of pictures nor a recording"),
        ("synthetic:{tmp}/absent", "absent"),
    ],
)
def test_a_source_without_pictures_is_refused(tmp_path, source, message):
    with pytest.raises(DataError, match=message):
        open_pictures(source.format(tmp=tmp_path))


def test_a_damaged_picture_is_named(folder):
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"2\.png: .*take it out of the folder"):
        list(open_pictures(str(folder)))


def test_batches_hold_pictures_as_the_vehicle_sees_them(folder):
    first, second = batches(open_pictures(str(folder), 3), 32, 32, 2)
    assert first.images.shape == second.images.shape == (2, 32, 32, 3)
    assert [len(first.pictures), len(second.pictures)] == [2, 1]
    assert (second.images[0] == second.images[1]).all()  # filled up with the last one
    assert first.placements[0].width == 24  # of a picture that is taller than it is wide


def test_what_takes_long_says_how_long_it_will_take(folder, monkeypatch):
    times = iter([0.0, 6.0, 10.0, 14.0, 14.9, 20.0])  # the first picture takes long to come
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    said = []
    assert len(list(told(open_pictures(str(folder)), "looking", said.append))) == 5
    assert said == ["looking: 1 of 5 pictures, 40 s left", "looking: 4 of 5 pictures, 5 s left"]
