# SPDX-License-Identifier: Apache-2.0
"""Official weights give what the official network gives (tests/data/panoptic_depth/README.md)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from panoptic_depth_model.import_official import import_state
from panoptic_depth_model.kernels import (
    Kernels,
    dynamic_convolution,
    fuse_things,
    region_kernels,
    side_by_side,
    thing_kernels,
)
from panoptic_depth_model.merge import excess, mask_quality
from panoptic_depth_model.panoptic_depth import CENTER_WINDOWS, Inference, LevelMaps, Maps, PanopticDepth, flattened
from panoptic_depth_model.resampling import cropped, upsampled

DATA = Path(__file__).parents[1] / "data" / "panoptic_depth"
LEVELS = ("p3", "p4", "p5", "p6", "p7")
FIRST_THING = 11  # Cityscapes' train ids
HEIGHT, WIDTH = 184, 312

FEATURES = {"atol": 1e-4, "rtol": 0.0}
MAPS = {"atol": 2e-4, "rtol": 0.0}
STATISTICS = {"atol": 1e-5, "rtol": 1e-5}
SCORES = {"atol": 1e-5, "rtol": 0.0}
DIFFERENT_PIXELS = 0.0005  # share
DEPTH_M, MEAN_DEPTH_M = 5e-3, 5e-4


def official_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights that depend on nothing but the tensors' names."""
    rules = json.loads((DATA / "weights_rules.json").read_text())
    with np.load(DATA / "bias_overrides.npz") as overrides:
        state = {name: torch.from_numpy(overrides[name]) for name in overrides.files}
    for name, shape in shapes.items():
        if name not in state:
            state[name] = torch.from_numpy(official_weight(name, shape, rules).astype(np.float32))
    return {name: state[name] for name in shapes}


def official_weight(name: str, shape: tuple[int, ...], rules: dict) -> np.ndarray:
    if name in rules["constants"]:
        return np.full(shape, rules["constants"][name])
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    kind = name.rsplit(".", 1)[1]
    if kind == "running_var":
        return 1 + 0.1 * generator.random(shape)
    values = generator.standard_normal(shape)
    if ".norm." in name and kind == "weight":
        return (1 + 0.1 * values) * (rules["conv3_norm_gain"] if ".conv3.norm." in name else 1.0)
    if kind in ("running_mean", "bias"):
        return 0.1 * values
    if "offset_mask_conv" in name:
        return rules["offset_std"] * values
    scale = np.sqrt((1.0 if "fpn_" in name or "top_block" in name else 2.0) / np.prod(shape[1:]))
    scale *= rules["dcn_gain"] if ".dcnv2." in name else 1.0
    scale *= rules["stem_gain"] if "stem" in name else 1.0
    return values * (scale * rules["gains"].get(name, 1.0))


class Run(NamedTuple):
    """What our network says about the image, from the pixels to the answer."""

    network: PanopticDepth
    features: dict[str, Tensor]  # [C, h, w] each
    maps: Maps
    candidates: list[Kernels]  # things by level
    fused: Kernels  # rows in falling score, absorbed ones with score 0
    inference: Inference


@pytest.fixture(scope="module")
def run(official_shapes) -> Run:
    network = import_state(official_weights(official_shapes["depth"]))
    image = torch.from_numpy(cv2.imread(str(DATA / "image.png"))[None, ..., ::-1].copy())
    with torch.inference_mode():
        pixels = network.normalized(image)
        stages = network.backbone(pixels)
        pyramid = network.pyramid(stages)
        semantic = network.semantic_pyramid(pyramid[:4])
        maps = Maps([network.level_maps(level) for level in pyramid[1:]], *network.embedding_head(semantic))
        names = ("res2", "res3", "res4", "res5", "p2", *LEVELS, "sem_fpn", "mask_embedding")
        features = dict(zip(names, (*stages, *pyramid, semantic, maps.mask_embedding), strict=True))
        candidates = [things_of(network, maps.levels[i : i + 1], CENTER_WINDOWS[i : i + 1]) for i in range(5)]
        together = things_of(network, maps.levels, CENTER_WINDOWS)
        together = together._replace(mask=network.embed_things(together.mask))
        fused = fuse_things(together, network.config.decisions.min_similarity)
        # The same steps in one call, as everybody else runs them.
        inference = network.infer(pixels, (HEIGHT, WIDTH))
    return Run(network, {name: feature[0] for name, feature in features.items()}, maps, candidates, fused, inference)


def things_of(network: PanopticDepth, levels: list[LevelMaps], windows: tuple[int, ...]) -> Kernels:
    decisions = network.config.decisions
    flat = flattened(levels)
    return thing_kernels(
        [level.centers for level in levels],
        flat.mask_kernels,
        flat.depth_kernels,
        network.thing_ids,
        windows=windows,
        per_level=decisions.centers_per_level,
        count=decisions.max_centers,
        min_score=decisions.min_center_score,
    )


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    with np.load(DATA / "case.npz") as file:
        return {name: file[name] for name in file.files}


def assert_close(ours: Tensor | np.ndarray, official: np.ndarray, tolerance: dict[str, float]) -> None:
    np.testing.assert_allclose(np.asarray(ours), official, **tolerance)


def test_features_agree_in_every_channel(run, official):
    names = [name.removesuffix("_mean") for name in official if name.endswith("_mean")]
    assert names == list(run.features)
    for name, feature in run.features.items():
        assert_close(feature.double().mean((1, 2)), official[f"{name}_mean"], STATISTICS)
        if f"{name}_std" in official:
            assert_close(feature.double().std((1, 2), correction=0), official[f"{name}_std"], STATISTICS)
    assert_close(run.features["res5"][::128], official["res5_sub"], FEATURES)
    for level in ("p5", "p6", "p7"):
        assert_close(run.features[level][::32], official[f"{level}_sub"], FEATURES)


def test_maps_of_all_heads_agree(run, official):
    for name, level in zip(LEVELS[1:], run.maps.levels[1:], strict=True):
        assert_close(level.centers[0], official[f"center_logits_{name}"], MAPS)
    for name, level in zip(LEVELS[2:], run.maps.levels[2:], strict=True):
        assert_close(level.regions[0], official[f"region_logits_{name}"], MAPS)
        assert_close(level.mask_kernels[0, ::8], official[f"kernels_{name}_sub"], MAPS)
        assert_close(level.depth_kernels[0], official[f"depth_kernels_{name}"], MAPS)
    assert_close(run.maps.mask_embedding[0, ::64, ::8, ::8], official["mask_embedding_sub"], MAPS)
    assert_close(run.maps.depth_embedding[0, :, ::8, ::8], official["depth_embedding_sub"], MAPS)


def test_the_same_centers_are_found_on_every_level(run, official):
    for index, (name, found) in enumerate(zip(LEVELS, run.candidates, strict=True)):
        kept = found.score[0] > 0
        assert (found.category[0, kept] - FIRST_THING).tolist() == official[f"cand_{name}_class"].tolist()
        assert_close(found.score[0, kept], official[f"cand_{name}_score"], SCORES)
        level = run.maps.levels[index]
        position = torch.from_numpy(official[f"cand_{name}_index"]).long()
        assert torch.equal(found.mask[0, kept], level.mask_kernels[0].flatten(1)[:, position].T)
        assert torch.equal(found.depth[0, kept], level.depth_kernels[0].flatten(1)[:, position].T)


def test_the_same_regions_are_found_on_every_level(run, official):
    decisions = run.network.config.decisions
    for name, level in zip(LEVELS, run.maps.levels, strict=True):
        flat = flattened([level])
        found = region_kernels(
            flat.regions,
            flat.mask_kernels,
            flat.depth_kernels,
            run.network.region_ids,
            areas=[flat.regions.shape[2]],
            adaptive=True,
            min_probability=decisions.min_region_probability,
            min_score=decisions.min_region_score,
        )
        kept = found.score[0] > 0
        assert found.category[0, kept].tolist() == official[f"stuff_{name}_class"].tolist()
        assert_close(found.score[0, kept], official[f"stuff_{name}_score"], SCORES)


def test_kernels_of_things_agree_after_fusion(run, official):
    candidates = len(official["fusion_keep"])
    kept = run.fused.score[0] > 0
    assert kept[:candidates].tolist() == official["fusion_keep"].tolist()
    assert not kept[candidates:].any()
    assert (run.fused.category[0, kept] - FIRST_THING).tolist() == official["fused_class"].tolist()
    assert_close(run.fused.mask[0, kept][:, ::16], official["fused_mask_kernels_sub"], MAPS)
    assert_close(run.fused.depth[0, kept], official["fused_depth_kernels"], MAPS)


def test_kernels_of_regions_agree_after_fusion(run, official):
    with torch.inference_mode():
        regions = run.network.segments(run.maps.levels).regions
    kept = regions.score[0] > 0
    assert regions.category[0, kept].tolist() == official["stuff_class"].tolist()
    assert_close(regions.score[0, kept], official["stuff_score"], SCORES)
    assert_close(regions.mask[0, kept][:, ::16], official["stuff_mask_kernels_sub"], MAPS)
    assert_close(regions.depth[0, kept], official["stuff_depth_kernels"], MAPS)


def test_scores_of_things_agree(run, official):
    things = run.fused.mask
    with torch.inference_mode():
        masks = dynamic_convolution(things, run.maps.mask_embedding).sigmoid()
        score = (run.fused.score * mask_quality(excess(masks, 0.5), 0.5))[0]
    best, order = score.sort(descending=True)
    reported = int((best >= 0.05).sum())
    category = run.fused.category[0, order[:reported]] - FIRST_THING
    assert category.tolist() == official["thing_class"].tolist()
    assert_close(best[:reported], official["thing_score"], SCORES)


def official_rows(run: Run) -> tuple[list[int], list[int]]:
    """Rows of our table that stay, and their official ids, in the official order."""
    score, first_stuff = run.inference.score[0], run.network.config.decisions.max_things
    things = [row for row in score[:first_stuff].argsort(descending=True).tolist() if score[row] > 0]
    stuff = [row for row in range(first_stuff, len(score)) if score[row] > 0]
    categories = run.inference.category[0]
    return [*things, *stuff], [*range(21, 21 + len(things)), *(int(categories[row]) + 1 for row in stuff)]


def test_the_same_segments_stay(run, official):
    rows, ids = official_rows(run)
    assert ids == official["accepted_ids"].tolist()
    assert run.inference.category[0, rows].tolist() == official["accepted_categories"].tolist()


def test_probabilities_of_the_segments_agree(run, official):
    rows, _ = official_rows(run)
    with torch.inference_mode():
        table = run.network.table(run.network.segments(run.maps.levels))
        masks = dynamic_convolution(table.mask[:, rows], run.maps.mask_embedding).sigmoid()
        masks = cropped(upsampled(masks, 4), (HEIGHT, WIDTH), 1)[0]
    # Stored in half precision, which rounds by up to 2.5e-4.
    np.testing.assert_allclose(masks[:, 1::12, 1::12], official["accepted_prob_sub12"], atol=3e-4)


def test_the_same_region_wins_each_pixel(run, official):
    with torch.inference_mode():
        regions = run.network.segments(run.maps.levels).regions
        masks = dynamic_convolution(regions.mask, run.maps.mask_embedding).sigmoid()
        masks = cropped(upsampled(masks, 4), (HEIGHT, WIDTH), 1)[0]
    winner = torch.where(regions.score[0, :, None, None] > 0, masks, 0.0).argmax(0).numpy()
    assert (winner != official["stuff_argmax"]).mean() <= DIFFERENT_PIXELS


def test_the_panoptic_map_and_the_depth_agree(run, official):
    rows, ids = official_rows(run)
    id_of_label = np.zeros(run.network.config.num_segments + 1, np.uint8)
    id_of_label[np.array(rows) + 1] = ids
    labels = run.inference.labels[0].long().numpy()
    assert labels.shape == (HEIGHT, WIDTH)
    panoptic = id_of_label[labels]
    assert (panoptic != official["panoptic_id"]).mean() <= DIFFERENT_PIXELS
    semantic = run.inference.category[0].numpy()[labels - 1]
    assert (semantic != official["semantic"]).mean() <= DIFFERENT_PIXELS

    same = (panoptic == official["panoptic_id"])[::3, ::3]
    error = np.abs(run.inference.depth[0].numpy()[::3, ::3] - official["depth_cropped_sub3"])[same]
    assert error.max() <= DEPTH_M
    assert error.mean() <= MEAN_DEPTH_M


@pytest.fixture(scope="module")
def fusion() -> dict[str, np.ndarray]:
    with np.load(DATA / "kernel_fusion.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("case", ["10", "11", "12"])
def test_kernels_of_clusters_fuse_alike(fusion, case):
    category, score, mask, depth = (
        torch.from_numpy(fusion[f"{case}_{name}"])[None] for name in ("classes", "scores", "kernels", "depth_kernels")
    )
    fused = fuse_things(Kernels(category.long(), score, mask, depth), 0.97)
    kept = fused.score[0] > 0
    assert kept.sum() < kept.numel(), "some must fuse for this to mean anything"
    assert fused.category[0, kept].tolist() == fusion[f"{case}_out_classes"].tolist()
    assert fused.score[0, kept].tolist() == fusion[f"{case}_out_scores"].tolist()
    assert_close(fused.mask[0, kept][:, ::16], fusion[f"{case}_out_kernels_sub"], SCORES)
    assert_close(fused.depth[0, kept], fusion[f"{case}_out_depth_kernels"], SCORES)


@pytest.mark.parametrize("case", ["10", "11", "12"])
def test_regions_fuse_alike(fusion, case):
    """Every kernel comes from a level of one position, which its region wins with the kernel's score."""
    category, score, mask, depth = (
        torch.from_numpy(fusion[f"{case}_{name}"]) for name in ("classes", "scores", "kernels", "depth_kernels")
    )
    count = int(category.max()) + 1
    own = torch.nn.functional.one_hot(category.long(), count).bool()  # [L, R]
    logits = torch.where(own, score.logit()[:, None], -20.0)
    maps = (side_by_side([row[None, :, None, None] for row in each]) for each in (logits, mask, depth))
    settings = {"adaptive": True, "min_probability": 0.0, "min_score": 0.0}
    fused = region_kernels(*maps, torch.arange(count), areas=[1] * len(own), **settings)
    present = fused.score[0] > 1e-6
    assert present.nonzero().flatten().tolist() == fusion[f"{case}_stuff_classes"].tolist()
    assert_close(fused.score[0, present], fusion[f"{case}_stuff_scores"], SCORES)
    assert_close(fused.mask[0, present][:, ::16], fusion[f"{case}_stuff_kernels_sub"], SCORES)
    assert_close(fused.depth[0, present], fusion[f"{case}_stuff_depth_kernels"], SCORES)
