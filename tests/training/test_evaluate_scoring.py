# SPDX-License-Identifier: Apache-2.0
"""Every answer gets the scores that its truth can carry, worked out by hand or pixel by pixel."""

from __future__ import annotations

import io
import math
import xml.dom.minidom
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.manifest import Manifest
from panoptic_depth_ros.pipeline import Pipeline
from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID
from panoptic_depth_training.datasets.camvid import CamVid
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.labeled import EXACT, DataError, LabeledImage, Supervision
from panoptic_depth_training.evaluate.page import page
from panoptic_depth_training.evaluate.scoring import (
    Answer,
    Rules,
    Scores,
    ScoringResult,
    ScoringSettings,
    rules_for,
    score,
    scored_as,
    sequences,
)
from panoptic_depth_training.evaluate.tables import flat, grids, is_flat, rich_table, table
from panoptic_depth_training.metrics import DepthSettings
from panoptic_depth_training.metrics.depth import Crop
from panoptic_depth_training.metrics.depth_panoptic import PROTOCOLS, VIP_DEEPLAB_SEMKITTI

VOID = VOID_PANOPTIC_ID
ROAD, BUILDING, WALL, FENCE, SKY, PERSON, CAR, TRUCK, TRAIN = 0, 2, 3, 4, 10, 11, 13, 14, 16
HEIGHT, WIDTH = 64, 96
NETWORK_FOCAL_PX, CAMERA_FOCAL_PX = 40.0, 80.0  # both at network size
FARTHEST_M = 80.0
MANIFEST = Manifest("memory", "1", "test", HEIGHT, WIDTH, NETWORK_FOCAL_PX, 0.5, FARTHEST_M, CITYSCAPES, 18, "0" * 64)


@dataclass
class Drive:
    """Images in memory. One that is a text cannot be read, and this is why."""

    images: Sequence[LabeledImage | str]
    supervision: Supervision = EXACT
    taxonomy = CITYSCAPES
    length: int = 6  # of a sequence

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> LabeledImage:
        image = self.images[index]
        if isinstance(image, str):
            raise DataError(image)
        return image

    def name_of(self, index: int) -> str:
        return f"frame {index}"

    def sequence_of(self, index: int) -> str:
        return f"drive {index // self.length}"

    def files_of(self, index: int) -> tuple[Path, ...]:
        return ()


@dataclass
class RememberingEngine:
    """Answers every image with what it was told about it, in the form of an exported model."""

    manifest: Manifest = MANIFEST
    answers: dict[bytes, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # panoptic ids, depth [h, w]
    description: str = "memory"

    def learn(self, rgb: np.ndarray, ids: np.ndarray, depth: np.ndarray) -> None:
        self.answers[rgb.tobytes()] = ids, depth

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        ids, depth = self.answers[images[0].tobytes()]
        found = [value for value in np.unique(ids).tolist() if value != VOID]
        segment_ids = np.zeros(ids.shape, np.uint8)
        for row, value in enumerate(found):
            segment_ids[ids == value] = row + 1
        category, instance = np.array(found, np.int32) // 1000, np.array(found) % 1000
        return {
            "segment_ids": segment_ids[None],
            "depth": depth[None].astype(np.float32),
            "segment_category": category[None],
            "segment_score": (1 - 0.01 * instance).astype(np.float32)[None],  # so that instance 1 is numbered first
            "segment_area": np.bincount(segment_ids.ravel(), minlength=len(found) + 1)[None, 1:].astype(np.int32),
            "segment_depth": np.ones((1, len(found)), np.float32),
        }

    def close(self) -> None:
        self.answers.clear()


def street(number: int = 0, scale: int = 1) -> LabeledImage:
    """Sky without depth, road 5 m away, a car at 10 m and a person at 20 m, at `scale` times network size."""
    rgb = np.full((HEIGHT, WIDTH, 3), number, np.uint8)
    ids = np.full((HEIGHT, WIDTH), SKY * 1000, np.uint16)
    depth = np.zeros((HEIGHT, WIDTH), np.float32)
    ids[24:], depth[24:] = ROAD * 1000, 5
    ids[16:40, 8:40], depth[16:40, 8:40] = CAR * 1000 + 1, 10
    ids[16:56, 60:76], depth[16:56, 60:76] = PERSON * 1000 + 1, 20
    height, width = scale * HEIGHT, scale * WIDTH
    focal_px = scale * CAMERA_FOCAL_PX
    camera = PinholeCamera(height, width, focal_px, focal_px, (width - 1) / 2, (height - 1) / 2)
    rgb, ids, depth = (array.repeat(scale, axis=0).repeat(scale, axis=1) for array in (rgb, ids, depth))
    return LabeledImage(rgb, ids, depth, camera, f"street {number}")


def scored(
    images: Sequence[LabeledImage],
    answers: Sequence[tuple[np.ndarray, np.ndarray]],
    settings: ScoringSettings | None = None,
    supervision: Supervision = EXACT,
) -> ScoringResult:
    """Scores of a model with these answers: panoptic ids, and depth [m] for the images' camera, at network size."""
    engine, drive = RememberingEngine(), Drive(images, supervision)
    for image, (ids, depth) in zip(images, answers, strict=True):
        step = image.rgb.shape[0] // HEIGHT
        # What looks so near through the camera is nearer by this ratio through the network's shorter lens.
        engine.learn(image.rgb[::step, ::step], ids, depth * NETWORK_FOCAL_PX / CAMERA_FOCAL_PX)
    return scored_by(engine, drive, settings)


def scored_by(engine: RememberingEngine, drive: Drive, settings: ScoringSettings | None = None) -> ScoringResult:
    scores = Scores(rules_for(engine.manifest, drive, settings or ScoringSettings()))
    for part in sequences(drive, len(drive)):
        score(Pipeline(engine), drive, part, scores, done=lambda: None)
    return scores.result()


def truth(image: LabeledImage) -> tuple[np.ndarray, np.ndarray]:
    return image.panoptic_ids, image.depth


def test_the_truth_itself_gets_full_scores_in_meters_of_the_camera():
    images = [street(0), street(1)]
    result = scored(images, [truth(image) for image in images])
    assert result.panoptic.all.pq == result.panoptic.things.pq == result.panoptic.stuff.pq == 1
    assert result.semantic.miou == result.depth_panoptic.dpq.all == result.depth.overall.delta_1 == 1
    assert result.depth.overall.abs_rel == 0
    assert result.blank_share == 0
    assert [frame.name for frame in result.frames] == ["street 0", "street 1"]


def test_a_larger_truth_is_compared_at_its_own_size():
    image = street(scale=2)
    ids, depth = (array[::2, ::2] for array in truth(image))
    result = scored([image], [(ids, depth)])
    assert result.panoptic.all.pq == 1
    assert result.depth.overall.pixels == np.count_nonzero(image.depth)
    # Inside of segments depth is the truth's; it is the nearest pixel's, so the same, along their borders.
    assert result.depth.overall.abs_rel == pytest.approx(0, abs=1e-6)


def test_depth_that_is_a_fifth_too_far_costs_the_labels_at_the_narrowest_threshold_only():
    image = street()
    result = scored([image], [(image.panoptic_ids, 1.2 * image.depth)])
    assert result.panoptic.all.pq == 1
    assert result.depth.overall.abs_rel == pytest.approx(0.2, rel=1e-5)
    # Within 10 % only the sky, which has no true depth, keeps its label: one of four categories.
    assert result.depth_panoptic.dpq.all == pytest.approx((1 + 1 + 1 / 4) / 3)
    assert flat(result)["dpq"] == pytest.approx(0.75)


def test_median_scaling_takes_out_the_scale_and_says_so_wherever_the_errors_stand():
    image = street()
    answer = (image.panoptic_ids, 1.2 * image.depth)
    result = scored([image], [answer], ScoringSettings(DepthSettings(median_scaling=True)))
    assert result.depth.overall.abs_rel == pytest.approx(0, abs=1e-6)
    assert result.depth_panoptic.dpq.all == scored([image], [answer]).depth_panoptic.dpq.all < 1  # in meters
    numbers = flat(result)
    assert {"abs_rel", "delta_1"}.isdisjoint(numbers)
    assert (numbers["abs_rel_median_scaled"], numbers["delta_1_median_scaled"]) == (0, 1)
    assert all(is_flat(name) for name in numbers)
    summary, *others = grids(result)
    assert ("abs rel, median-scaled", "0.000") in summary.rows
    assert sum("scaled by the median of the truth" in grid.title for grid in others) == 1


def test_what_is_called_sky_counts_as_the_farthest_depth():
    image = street()
    ids = np.where(image.panoptic_ids == CAR * 1000 + 1, SKY * 1000, image.panoptic_ids).astype(np.uint16)
    result = scored([image], [(ids, image.depth)])
    share = 24 * 32 / np.count_nonzero(image.depth)  # of the car
    assert result.blank_share == pytest.approx(share)
    assert result.depth.overall.abs_rel == pytest.approx(share * (FARTHEST_M - 10) / 10)
    assert result.depth.coverage == 1


def test_the_crop_holds_for_the_share_that_was_called_sky_as_well():
    image = street()
    ids = np.where(image.panoptic_ids == CAR * 1000 + 1, SKY * 1000, image.panoptic_ids).astype(np.uint16)
    right = DepthSettings(crop=Crop(0, 1, 0.5, 1))
    assert scored([image], [(ids, image.depth)], ScoringSettings(right)).blank_share == 0


def test_without_a_camera_depth_is_not_scored():
    image = replace(street(), camera=None)
    result = scored([image], [truth(image)])
    assert result.panoptic.all.pq == 1
    assert result.depth is result.depth_panoptic is None
    assert not {"abs_rel", "delta_1", "dpq"} & set(flat(result))


def test_depth_alone_gives_depth_scores_alone():
    image = replace(street(), panoptic_ids=np.full((HEIGHT, WIDTH), VOID, np.uint16))
    answer = street()
    result = scored([image], [truth(answer)], supervision=Supervision(has_segments=False))
    assert result.panoptic is result.semantic is result.depth_panoptic is None
    assert result.depth.overall.abs_rel == 0
    assert result.frames[0].pq is None
    assert set(flat(result)) == {"images", "abs_rel", "delta_1"}


def test_a_model_without_depth_gets_no_depth_scores():
    endless = replace(
        MANIFEST, taxonomy=type(CITYSCAPES)(tuple(replace(category, has_depth=False) for category in CITYSCAPES))
    )
    image, engine = street(), RememberingEngine(endless)
    engine.learn(image.rgb, *truth(image))
    result = scored_by(engine, Drive([image]), ScoringSettings(windows=(1, 2)))
    assert result.panoptic.all.pq == 1
    assert result.depth is result.depth_panoptic is result.video is None


def test_a_crowd_is_neither_hit_nor_miss():
    image = street()
    ids = np.where(image.panoptic_ids == PERSON * 1000 + 1, PERSON * 1000, image.panoptic_ids).astype(np.uint16)
    crowd = replace(image, panoptic_ids=ids)
    result = scored([crowd], [truth(image)])
    assert result.panoptic.all.num_categories == result.depth_panoptic.at[0.5, 1].all.num_categories == 3
    assert result.panoptic.all.pq == result.depth_panoptic.dpq.all == 1


def test_a_crowd_is_a_segment_of_published_protocols():
    image = street()
    ids = np.where(image.panoptic_ids == PERSON * 1000 + 1, PERSON * 1000, image.panoptic_ids).astype(np.uint16)
    crowd = replace(image, panoptic_ids=ids)
    for name, protocol in PROTOCOLS.items():
        at = scored([crowd], [truth(image)], ScoringSettings(protocol=protocol)).depth_panoptic.at[0.5, 1]
        assert at.tp[PERSON] == (name != "occurring")


def test_by_the_script_of_semkitti_a_category_that_does_not_occur_counts_0():
    image = street()  # of 8 kinds of things it has 2, of 11 kinds of stuff 2
    result = scored([image], [truth(image)], ScoringSettings(protocol=VIP_DEEPLAB_SEMKITTI, windows=(1,)))
    for quality in (result.depth_panoptic.dpq, result.video.dvpq):
        shares = (quality.all, quality.things, quality.stuff)
        assert shares == pytest.approx((4 / 19, 2 / 8, 2 / 11), rel=1e-9)
    titles = [grid.title for grid in grids(result) if "DPQ" in grid.title or "DVPQ" in grid.title]
    assert len(titles) == 2
    for title in titles:
        assert "protocol vip_deeplab_semkitti" in title
        assert title.endswith("categories without a match count 0, for 1e-10 is added to denominators")


def test_merged_categories_are_scored_by_what_the_label_allows():
    ids = np.array([[CAR, CAR, BUILDING, ROAD, ROAD, ROAD, FENCE, BUILDING]], np.uint16) * 1000
    said = np.array([[TRUCK, PERSON, WALL, WALL, TRAIN, ROAD, WALL, BUILDING]], np.uint16) * 1000
    scores = Scores(Rules(CITYSCAPES, CamVid.supervision, FARTHEST_M, ScoringSettings()))
    image = LabeledImage(np.zeros((1, 8, 3), np.uint8), ids, np.zeros((1, 8), np.float32), None)
    scores.add(0, image, Answer(said, None))
    result = scores.result()
    names = dict(zip(result.semantic.names, result.semantic.iou.tolist(), strict=True))
    assert result.panoptic is result.depth_panoptic is None
    assert names["car/truck/bus"] == 1 / 2  # the truck may be what CamVid calls a car
    assert names["building/wall"] == 2 / 3  # a wall on the road counts against buildings
    assert names["fence/wall"] == 1
    assert names["road"] == 1 / 3
    assert math.isnan(names["person"])  # not in the truth, so not in the mean
    assert math.isnan(names["train"])
    assert result.semantic.miou == pytest.approx((1 / 2 + 2 / 3 + 1 + 1 / 3) / 4)


def test_merged_categories_equal_a_count_pixel_by_pixel():
    rng = np.random.default_rng(3)
    labels = [CITYSCAPES.names.index(name) for name in ("road", "building", "fence", "vegetation", "rider", "car")]
    true, said = rng.choice(labels, (20, 30)), rng.integers(0, 19, (20, 30))
    scores = Scores(Rules(CITYSCAPES, CamVid.supervision, FARTHEST_M, ScoringSettings()))
    image = LabeledImage(
        np.zeros((20, 30, 3), np.uint8), (true * 1000).astype(np.uint16), np.zeros((20, 30), np.float32), None
    )
    scores.add(0, image, Answer((said * 1000).astype(np.uint16), None))
    confusable = CamVid.supervision.confusable
    shared, union = dict.fromkeys(labels, 0), dict.fromkeys(labels, 0)
    for t, p in zip(true.ravel().tolist(), said.ravel().tolist(), strict=True):
        is_right = p == t or p in confusable[t]
        shared[t] += is_right
        union[t] += 1
        owner = p if confusable[p] or not any(p in c for c in confusable) else min(
            k for k in range(19) if p in confusable[k] and k != p
        )
        if not is_right and owner in union:
            union[owner] += 1
    expected = [shared[k] / union[k] for k in labels]
    np.testing.assert_allclose(scores.result().semantic.iou[labels], expected, rtol=1e-12)


def test_exact_labels_allow_nothing_but_themselves():
    exact = Supervision(confusable=((),) * 19)
    assert (scored_as(exact, 19) == np.arange(256)).all()


def test_an_image_that_cannot_be_read_is_named_and_skipped():
    image, engine = street(), RememberingEngine()
    engine.learn(image.rgb, image.panoptic_ids, image.depth / 2)
    result = scored_by(engine, Drive(["cut.png: too short", image]))
    assert result.faults == ("frame 0: cut.png: too short",)
    assert [frame.index for frame in result.frames] == [1]
    assert result.panoptic.all.pq == 1


def test_an_image_whose_truth_is_impossible_counts_nowhere():
    good = street(0)
    unknown = replace(street(1), panoptic_ids=np.full((HEIGHT, WIDTH), 40_000, np.uint16))
    engine = RememberingEngine()
    for image in (good, unknown):
        engine.learn(image.rgb, good.panoptic_ids, good.depth / 2)
    with_it, without = (scored_by(engine, Drive(images)) for images in ([good, unknown], [good]))
    assert "frame 1" in with_it.faults[0]
    assert replace(with_it, faults=()).to_dict() == without.to_dict()


def swapped(ids: np.ndarray) -> np.ndarray:
    """Cars 1 and 2 with each other's number."""
    return np.where(ids == CAR * 1000 + 1, CAR * 1000 + 2, np.where(ids == CAR * 1000 + 2, CAR * 1000 + 1, ids))


def two_cars(number: int) -> LabeledImage:
    image = street(number)
    ids = np.where(image.panoptic_ids == PERSON * 1000 + 1, CAR * 1000 + 2, image.panoptic_ids).astype(np.uint16)
    return replace(image, panoptic_ids=ids)


def test_objects_that_swap_numbers_cost_video_quality_and_no_image_quality():
    images = [two_cars(number) for number in range(3)]
    answers = [truth(images[0]), truth(images[1]), (swapped(images[2].panoptic_ids).astype(np.uint16), images[2].depth)]
    result = scored(images, answers, ScoringSettings(windows=(1, 2)))
    assert result.depth_panoptic.dpq.all == result.video.dpq.all == 1
    # Windows of two frames: in the first the cars keep their numbers; in the second each tube shares one frame of its
    # two: areas 768 and 640, so at best 768 / (2 * 768 + 640) < 1/2 and no match. Two of four tubes are found.
    assert result.video.at[0.1, 2].pq[CAR] == pytest.approx(2 / (2 + 2 / 2 + 2 / 2))
    assert result.video.at[0.1, 2].pq[ROAD] == 1


def test_a_sequence_with_a_gap_is_no_video_but_its_images_count():
    images: list[LabeledImage | str] = [street(number) for number in range(6)]
    engine = RememberingEngine()
    for image in images:
        assert isinstance(image, LabeledImage)
        engine.learn(image.rgb, image.panoptic_ids, image.depth / 2)
    images[1] = "gone.png: missing"
    result = scored_by(engine, Drive(images, length=3), ScoringSettings(windows=(1, 2)))
    assert len(result.frames) == 5
    assert result.video.sequences == 1
    assert len(result.left_out_sequences) == 1
    assert result.left_out_sequences[0].startswith("drive 0: 3 images, of which 1 ")


def test_a_sequence_shorter_than_a_window_is_no_video():
    images = [street(number) for number in range(2)]
    result = scored(images, [truth(image) for image in images], ScoringSettings(windows=(1, 4)))
    assert result.video is None
    assert "2 images" in result.left_out_sequences[0]


def test_parts_that_are_merged_score_as_the_whole():
    images = [street(number) for number in range(3)]
    engine, settings = RememberingEngine(), ScoringSettings()
    for image in images:
        wrong = np.roll(image.panoptic_ids, 4 + int(image.rgb[0, 0, 0]), axis=1)
        engine.learn(image.rgb, wrong, image.depth * 0.6)
    drive = Drive(images)
    rules = rules_for(MANIFEST, drive, settings)
    parts = [Scores(rules) for _ in range(2)]
    for part, indices in zip(parts, ([2], [0, 1]), strict=True):
        score(Pipeline(engine), drive, indices, part, done=lambda: None)
    parts[0].merge(parts[1])
    merged, whole = parts[0].result().to_dict(), scored_by(engine, drive, settings).to_dict()
    assert 0 < whole["panoptic"]["all"]["pq"] < 1
    assert merged["frames"] == whole["frames"]
    assert merged["panoptic"]["all"] == pytest.approx(whole["panoptic"]["all"])
    assert merged["depth"]["overall"] == pytest.approx(whole["depth"]["overall"])


def test_a_model_of_other_categories_is_refused():
    other = replace(MANIFEST, taxonomy=type(CITYSCAPES)(CITYSCAPES.categories[:5]))
    with pytest.raises(ValueError, match="its own categories"):
        rules_for(other, Drive([street()]), ScoringSettings())


def test_the_images_of_a_sequence_stay_together_up_to_the_count():
    assert sequences(Drive([street()] * 8, length=3), 7) == [range(0, 3), range(3, 6), range(6, 7)]


def test_flat_scores_are_those_that_occur():
    image = street()
    scores = flat(scored([image], [truth(image)]))
    assert all(is_flat(name) for name in scores)
    assert not any(is_flat(name) for name in ("training", "data", "imported_from", "camvid_val_miou"))
    assert scores == {
        "images": 1, "miou": 1, "pq": 1, "pq_things": 1, "pq_stuff": 1, "abs_rel": 0, "delta_1": 1, "dpq": 1,
        "dpq_things": 1, "dpq_stuff": 1,
        "iou_road": 1, "iou_sky": 1, "iou_person": 1, "iou_car": 1,
    }  # fmt: skip
    assert table(scores).splitlines()[1].split() == ["miou", "1.000"]


def test_tables_show_each_category_and_range_with_its_score():
    images = [street(number) for number in range(2)]
    result = scored(images, [truth(images[0]), (images[1].panoptic_ids, 1.5 * images[1].depth)])
    text = {grid.title.split(",")[0]: grid.rows for grid in grids(result)}
    assert [row[:2] for row in text["categories (%)"]] == [(n, "100.0") for n in ("road", "sky", "person", "car")]
    ranges = {row[0]: row[3] for row in text["depth"]}
    # All road, at 5 m, lies in the first range, the car in the second; one image is right, the other off by half.
    assert ranges == {"all": "0.250", "0-10 m": "0.250", "10-20 m": "0.250", "20-40 m": "0.250", "40-80 m": "-"}
    sizes = text["things by their share of the image"]
    assert sizes[0] == ("below 0.025 %", "0", "-", "0", "-")
    assert sum(int(row[1]) for row in sizes) == 2 * 2  # a person and a car in each image
    assert {row[2] for row in sizes if row[1] != "0"} == {"100.0"}
    console = Console(width=160, record=True, file=io.StringIO())
    for grid in grids(result):
        console.print(rich_table(grid))
    assert "0-10 m" in console.export_text()


def test_the_page_is_well_formed_and_has_a_bar_for_each_category():
    images = [street(number) for number in range(3)]
    result = scored(images, [truth(image) for image in images], ScoringSettings(windows=(1, 2)))
    result = replace(result, faults=("a<b>.png: cut & short",))
    text = page(result, "a & b", {"model": "<none>"}, [], [], warning="INCOMPLETE: stopped")
    document = xml.dom.minidom.parseString(text.encode())
    texts = [node.firstChild.data for node in document.getElementsByTagName("text") if node.firstChild]
    assert {"road", "sky", "person", "car"} <= set(texts)
    assert "truck" not in texts
    assert "a&lt;b&gt;.png: cut &amp; short" in text
    assert "INCOMPLETE" in text
    assert "http" not in text.replace("http://www.w3.org/", "")
