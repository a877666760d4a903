# SPDX-License-Identifier: Apache-2.0
"""The network and its deployable form keep the contract between training and vehicle."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from panoptic_depth_model.config import PRESETS, SOME_THING, Decisions, PanopticDepthConfig, segmentation_only
from panoptic_depth_model.deployable import Deployable, Outputs, segment_sums
from panoptic_depth_model.depth import RELEASED, VARIANTS
from panoptic_depth_model.kernels import dynamic_convolution, region_kernels
from panoptic_depth_model.panoptic_depth import (
    Inference,
    PanopticDepth,
    Segments,
    cropped,
    flattened,
    upsampled,
)
from panoptic_depth_model.weights import digest, load_weights, save_weights
from panoptic_depth_ros.manifest import OUTPUTS
from tests.model.sequential_merge import merge_sequentially


@pytest.fixture(scope="module")
def outputs(network, images):
    with torch.inference_mode():
        return Deployable(network)(images)


@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_have_the_names_types_and_shapes_of_the_contract(network, config, batch):
    image = torch.randint(0, 256, (batch, 64, 96, 3), dtype=torch.uint8)
    with torch.inference_mode():
        outputs = Deployable(network)(image)
    assert outputs._fields == OUTPUTS
    rows = (batch, config.num_segments)
    assert {name: (tuple(value.shape), value.dtype) for name, value in outputs._asdict().items()} == {
        "segment_ids": ((batch, 64, 96), torch.uint8),
        "depth": ((batch, 64, 96), torch.float32),
        "segment_category": (rows, torch.int32),
        "segment_score": (rows, torch.float32),
        "segment_area": (rows, torch.int32),
        "segment_depth": (rows, torch.float32),
    }


@pytest.mark.parametrize("size", [(48, 96), (64, 100), (0, 64)])
def test_a_size_that_the_pyramid_cannot_halve_is_refused_with_the_remedy(network, size):
    with pytest.raises(ValueError, match="multiples of 32: letterbox"):
        Deployable(network)(torch.zeros(1, *size, 3, dtype=torch.uint8))


def test_a_batch_gives_what_its_images_give(network, images, outputs):
    assert len(np.unique(outputs.segment_ids.numpy())) > 1, (
        "the images must have segments for this to mean anything"
    )
    with torch.inference_mode():
        singles = [Deployable(network)(image[None]) for image in images]
    together = Outputs(*(torch.cat(parts) for parts in zip(*singles, strict=True)))
    agreement = (together.segment_ids == outputs.segment_ids).float().mean()
    assert agreement > 0.999  # batched products round differently, which moves a border pixel here and there
    torch.testing.assert_close(together.segment_score, outputs.segment_score, atol=1e-4, rtol=1e-4)
    same = together.segment_ids == outputs.segment_ids
    torch.testing.assert_close(together.depth[same], outputs.depth[same], atol=1e-2, rtol=1e-3)


def test_the_table_describes_the_label_image(outputs, config):
    for ids, depth, category, score, area, mean_depth in zip(
        *(output.numpy() for output in outputs), strict=True
    ):
        assert np.bincount(ids.ravel(), minlength=config.num_segments + 1)[1:].tolist() == area.tolist()
        assert ((score > 0) == (area > 0)).all()
        for row in np.flatnonzero(area):
            assert mean_depth[row] == pytest.approx(depth[ids == row + 1].mean(), rel=1e-4)
        things = category[: config.decisions.max_things]
        assert set(things[score[: len(things)] > 0]) <= set(config.thing_ids)
        assert tuple(category[len(things) :]) == config.stuff_ids


def test_every_pixel_belongs_to_a_segment_and_depth_stays_in_range(outputs, config):
    assert outputs.segment_ids.min() > 0
    assert outputs.depth.min() >= config.depth.min_m
    assert outputs.depth.max() <= config.depth.max_m


def test_where_nothing_is_accepted_all_is_void_and_depth_is_finite(config, images):
    torch.manual_seed(0)
    silent = PanopticDepth(config).eval()
    torch.nn.init.constant_(silent.location_head.centers.bias, -20.0)
    torch.nn.init.constant_(silent.location_head.regions.bias, -20.0)
    with torch.inference_mode():
        outputs = Deployable(silent)(images)
    assert outputs.segment_ids.max() == 0
    assert outputs.segment_score.max() == 0
    assert outputs.depth.isfinite().all()


def test_segment_sums_on_a_coarser_label_grid_are_exact():
    labels = torch.tensor([[[1, 1, 2], [0, 2, 2]]])
    depth = torch.rand(1, 4, 6) * 50
    area, total = segment_sums(labels, depth, 3)
    fine = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert area.tolist() == [[8.0, 12.0, 0.0]]
    torch.testing.assert_close(total, torch.stack([depth[fine == k].sum() for k in (1, 2, 3)])[None])


def test_segment_sums_find_every_label():
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(2, 15, 20, generator=generator) * 50
    for count in range(1, 256):
        labels = torch.randint(0, count + 1, (2, 15, 20), generator=generator)
        for each, area, total in zip(range(2), *segment_sums(labels, depth, count), strict=True):
            flat = labels[each].flatten()
            assert area.tolist() == flat.bincount(minlength=count + 1)[1:].tolist()
            expected = torch.zeros(count + 1).index_add(0, flat, depth[each].flatten())
            torch.testing.assert_close(total, expected[1:])


def narrow(config: PanopticDepthConfig) -> dict[str, PanopticDepthConfig]:
    """The small network in every form that the paper compares, and the imported ones."""
    variants = {f"variant {letter}": replace(config, depth=scale) for letter, scale in VARIANTS.items()}
    towers = replace(config.embedding, shared=False, deformable=True, norm=False)
    some_thing = (SOME_THING, *range(11))
    return {
        **variants,
        "segmentation only": segmentation_only(config),
        "without adaptive fusion": replace(config, adaptive_fusion=False),
        "as released": replace(config, depth=RELEASED, embedding=towers, deformable_heads=True),
        "one region for all things": replace(segmentation_only(config), region_ids=some_thing, adaptive_fusion=False),
        "stride 4, void": replace(config, decisions=replace(config.decisions, label_stride=4, allow_void=True)),
        "stride 1": replace(config, decisions=replace(config.decisions, label_stride=1)),
    }


NARROW = [*(f"variant {letter}" for letter in VARIANTS), "segmentation only", "without adaptive fusion", "as released"]
NARROW += ["one region for all things", "stride 4, void", "stride 1"]


@pytest.fixture(params=[*PRESETS, *NARROW], scope="module")
def any_network(request, config, loud_network) -> PanopticDepth:
    return loud_network({**PRESETS, **narrow(config)}[request.param])


def test_every_parameter_learns_from_maps_masks_and_depth(any_network):
    """Batches of one and three, in training mode."""
    network = copy.deepcopy(any_network).train()
    for image in (torch.randn(1, 3, 32, 64), torch.randn(3, 3, 32, 64)):
        network.zero_grad()
        maps = network(image)
        segments = network.segments(maps.levels)
        outputs = [part for level in maps.levels for part in level] + [maps.mask_embedding, maps.depth_embedding]
        outputs += [dynamic_convolution(kernels.mask, maps.mask_embedding) for kernels in segments]
        if network.config.depth:
            depth = network.answer_depth(maps)
            assert depth.shape == (len(image), image.shape[2] // 4, image.shape[3] // 4)
            outputs.append(depth)
        sum(output.square().mean() for output in outputs if output.numel()).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("size", [(32, 64), (27, 60)])
def test_a_batch_of_three_gives_what_its_images_give(any_network, size):
    network, (height, width) = any_network, size
    coarse = torch.rand(3, 3, 3, 5, generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    images = (255 * smooth).to(torch.uint8).permute(0, 2, 3, 1)
    with torch.inference_mode():
        together = network.infer(network.normalized(images), size)
        singles = [network.infer(network.normalized(image[None]), size) for image in images]
    stride, config = network.config.decisions.label_stride, network.config
    assert together.labels.shape == (3, -(-height // stride), -(-width // stride))
    assert together.labels.max() <= config.num_segments
    assert together.labels.unique().numel() > 1, "segments must be found for this to mean anything"
    for index, single in enumerate(singles):
        assert_same_image(together, index, single)
    if config.depth is None:
        assert together.depth is None
        return
    assert together.depth.shape == (3, height, width)
    assert together.depth.min() >= config.depth.min_m
    assert together.depth.max() <= config.depth.max_m


def assert_same_image(batch: Inference, index: int, single: Inference) -> None:
    """Batched products round differently, which moves a border pixel here and there."""
    same = batch.labels[index] == single.labels[0]
    assert same.float().mean() > 0.98
    assert torch.equal(batch.category[index, batch.score[index] > 0], single.category[0, single.score[0] > 0])
    torch.testing.assert_close(batch.score[index], single.score[0], atol=1e-3, rtol=1e-3)
    if single.depth is not None:
        stride = single.depth.shape[1] // same.shape[0]
        wide = same.repeat_interleave(stride, 0).repeat_interleave(stride, 1)
        wide = wide[: single.depth.shape[1], : single.depth.shape[2]]
        shown = (slice(None, wide.shape[0]), slice(None, wide.shape[1]))
        error = (batch.depth[index][shown] - single.depth[0][shown])[wide].abs()
        assert error.mean() < 1e-2


@pytest.mark.parametrize("name", ["variant F", "segmentation only", "one region for all things"])
@pytest.mark.parametrize("label_stride", [1, 2, 4])
def test_the_answer_is_the_sequential_merge_of_the_networks_masks(config, loud_network, images, name, label_stride):
    """On an image whose masks are decided at stride 4, as the network does."""
    config = narrow(config)[name]
    # Noise forms longer chains of covered things than streets do, and they must all be settled.
    settled = replace(config.decisions, label_stride=label_stride, merge_rounds=8)
    network = loud_network(replace(config, decisions=settled))
    decisions, stuff = network.config.decisions, len(config.stuff_ids)
    with torch.inference_mode():
        maps = network(network.normalized(images))
        segments = network.segments(maps.levels)
        choice = network.choose(segments, maps.mask_embedding, (64, 128), label_stride)
        things, regions = (dynamic_convolution(k.mask, maps.mask_embedding).sigmoid() for k in segments)
    for image in range(len(images)):
        inside = things[image] > decisions.min_mask_probability
        quality = (things[image] * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        score = segments.things.score[image] * quality
        score = torch.where(score >= decisions.min_thing_score, score, 0.0)
        found = segments.regions.score[image] > 0
        labels, stays = merge_sequentially(
            things[image],
            score,
            regions[image],
            found,
            torch.arange(len(found)) < stuff,
            min_probability=decisions.min_mask_probability,
            max_overlap=decisions.max_overlap,
            min_area=decisions.min_stuff_area_px / 16,
            allow_void=decisions.allow_void,
        )
        expected = stays[: len(things[image]) + stuff]
        assert torch.equal(choice.score[image] > 0, expected)
        assert expected.sum() > 2
        if label_stride == 4:
            assert torch.equal(choice.labels[image, 0], labels)


@pytest.mark.parametrize("name", ["variant F", "one region for all things"])
def test_the_table_has_the_kernels_of_its_categories(config, loud_network, images, name):
    """Also where the channels of the location head come in another order."""
    config = narrow(config)[name]
    network = loud_network(config)
    decisions = config.decisions
    with torch.inference_mode():
        levels = network(network.normalized(images)).levels
        table = network.table(network.segments(levels))
        flat = flattened(levels)
        found = region_kernels(
            flat.regions,
            flat.mask_kernels,
            flat.depth_kernels,
            torch.tensor(config.regions),
            areas=[level.regions[0, 0].numel() for level in levels],
            adaptive=config.adaptive_fusion,
            min_probability=decisions.min_region_probability,
            min_score=decisions.min_region_score,
        )
        masks = network.embed_stuff(found.mask)
    assert (found.score > 0).any()
    for row, category in enumerate(config.stuff_ids, start=decisions.max_things):
        channel = config.regions.index(category)
        assert (table.category[:, row] == category).all()
        assert torch.equal(table.score[:, row], found.score[:, channel])
        torch.testing.assert_close(table.mask[:, row], masks[:, channel])
        assert torch.equal(table.depth[:, row], found.depth[:, channel])


@pytest.mark.parametrize("preset", ["compact", "vehicle", "paper"])
def test_an_answer_on_a_gpu_waits_for_nothing(preset, monkeypatch):
    """On a GPU that need not be there. A CUDA graph holds neither values that the host asks for nor tensors made from
    its numbers, which are copies from unpinned memory; tensors of two devices do not mix anyway.
    """
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        deployable = Deployable(PanopticDepth(PRESETS[preset]).eval())
        image = torch.zeros(1, 64, 128, 3, dtype=torch.uint8)
        monkeypatch.setattr(torch, "tensor", None)
        outputs = deployable(image)
    assert {output.device.type for output in outputs} == {"cuda"}


def test_a_thing_with_a_sure_center_and_an_unsure_mask_is_refused(config, loud_network, network, images):
    """A score is the center's times the mask's mean probability, and the threshold holds for the product."""

    def answer(with_network: PanopticDepth) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            maps = with_network(with_network.normalized(images[:1]))
            segments = with_network.segments(maps.levels)
            score = with_network.choose(segments, maps.mask_embedding, (64, 128), 4).score
        count = config.decisions.max_things
        return segments.things.score[0], score[0, :count]

    center, score = answer(network)
    row = int((score > 0).nonzero()[0])
    assert 0 < score[row] < center[row]
    between = float(score[row] + center[row]) / 2
    center, score = answer(loud_network(replace(config, decisions=replace(config.decisions, min_thing_score=between))))
    assert center[row] > between
    assert score[row] == 0
    assert ((score == 0) | (score >= between)).all()


def test_a_pixel_that_outgrew_half_precision_costs_no_other_row_its_mask(config, network, images):
    with torch.inference_mode():
        maps = network(network.normalized(images))
        things, regions = network.segments(maps.levels)
        last = torch.arange(config.decisions.max_things) == config.decisions.max_things - 1
        empty = things._replace(  # as a row is that another one has claimed
            score=torch.where(last, 0.0, things.score), mask=torch.where(last[:, None], 0.0, things.mask)
        )
        segments = Segments(empty, regions)
        embedding = maps.mask_embedding.half()
        embedding[:, 0, 5, 7] = torch.inf
        embedding[:, 1, 5, 7] = -torch.inf
        overflown = maps._replace(mask_embedding=embedding).in_float32().mask_embedding
        scores = [network.choose(segments, each, (64, 128), 2).score for each in (maps.mask_embedding, overflown)]
    stay, stay_nevertheless = (score[:, : len(last)] > 0 for score in scores)
    assert stay.sum() > 2
    assert (stay == stay_nevertheless).float().mean() > 0.9


def test_labels_follow_the_upsampled_masks(network, images):
    """Not an upsampled label image: borders are as fine as the grid."""
    with torch.inference_mode():
        pixels = network.normalized(images)
        maps = network(pixels)
        table = network.table(network.segments(maps.levels))
        inference = network.infer(pixels)
        masks = upsampled(dynamic_convolution(table.mask, maps.mask_embedding).sigmoid(), 2)
    winner = torch.where(inference.score[..., None, None] > 0, masks, -1.0).argmax(1)
    assert (inference.labels == winner + 1).float().mean() > 0.999
    blocks = inference.labels[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert not torch.equal(inference.labels, blocks)


def test_what_padding_shows_is_cut_off(network, images):
    """Segments and depth of a cut image lie where its pixels are."""
    with torch.inference_mode():
        pixels = network.normalized(images[:, :50, :87])
        assert pixels.shape == (2, 3, 64, 96)
        assert (pixels[:, :, 50:] == 0).all()
        assert (pixels[:, :, :, 87:] == 0).all()
        whole, cut = network.infer(pixels), network.infer(pixels, (50, 87))
    seen = whole.labels[:, :25, :44]
    if torch.equal(whole.score > 0, cut.score > 0):  # the padding decided nothing
        assert torch.equal(cut.labels, seen)
    same = (cut.labels == seen).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :50, :87]
    assert same.float().mean() > 0.5
    torch.testing.assert_close(cut.depth[same], cropped(whole.depth, (50, 87), 1)[same])


def test_a_released_network_takes_what_is_red_for_blue_away_from_red():
    """Official weights expect the mean of red subtracted from blue, and no division."""
    with torch.device("meta"):
        config = PanopticDepth(PRESETS["paper"]).config
    assert config.pixel_mean == (103.53, 116.28, 123.675)
    assert config.pixel_std == (1.0, 1.0, 1.0)


def test_segmentation_only_has_no_depth_and_says_void(config, images):
    network = PanopticDepth(segmentation_only(config)).eval()
    with torch.inference_mode():
        assert network.infer(network.normalized(images)).depth is None
        outputs = Deployable(network)(images)
    assert (outputs.depth == 0).all()
    assert network.depth_kernel_head is None
    assert network.config.decisions.allow_void


def test_the_pixel_variant_has_one_channel_of_depth_and_no_kernels(config):
    network = PanopticDepth(replace(config, depth=VARIANTS["A"]))
    assert network.depth_kernel_head is None
    assert network.embedding_head.depth.out_channels == 1


@pytest.mark.parametrize(("letter", "kernel"), [("B", 16), ("C", 18), ("F", 18)])
def test_depth_kernels_have_two_more_entries_where_depth_is_normalized(config, letter, kernel):
    network = PanopticDepth(replace(config, depth=VARIANTS[letter]))
    assert network.depth_kernel_head.kernels.out_channels == kernel
    assert network.embedding_head.depth.out_channels == 16


def test_weights_come_back_with_config_and_facts(tmp_path, network):
    path = tmp_path / "weights.pt"
    save_weights(path, network, {"preset": "compact", "scores": {"miou": 0.5}})
    again, facts = load_weights(path)
    assert again.config == network.config
    assert facts == {"preset": "compact", "scores": {"miou": 0.5}}
    assert digest(again.state_dict()) == digest(network.state_dict())
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pt"]


def test_weights_that_cannot_be_written_leave_what_was_there(tmp_path, network, monkeypatch):
    path = tmp_path / "weights.pt"
    save_weights(path, network, {"run": 1})

    def full_disk(contents, file):
        file.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 64")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match=r"weights\.pt could not be written; .* room on the disk"):
        save_weights(path, network, {"run": 2})
    assert load_weights(path)[1] == {"run": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pt"]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "no file of tensors, or cut short"),
        (b"epochs: 3\n", "no file of tensors, or cut short"),
        ([1, 2], "expected named tensors and values, found a list"),
        ({"model": {}}, "expected 'panoptic_depth weights 2', .* the file says 'nothing of the kind'"),
        ({"format": "panoptic_depth weights 1"}, "the file says 'panoptic_depth weights 1'"),
        ({"format": "panoptic_depth checkpoint 3"}, r"under way; expected its result, weights\.pt in the same folder"),
        ({"format": "panoptic_depth weights 2", "config": {}}, "lacks a part of that"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path, contents, message):
    path = tmp_path / "other.pt"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        torch.save(contents, path)
    with pytest.raises(ValueError, match=rf"other\.pt: .*{message}"):
        load_weights(path)


def test_weights_that_lack_a_tensor_or_are_no_numbers_are_refused(tmp_path, network):
    path = tmp_path / "weights.pt"
    save_weights(path, network, {})
    contents = torch.load(path)
    name = "embed_things.bias"
    contents["state"][name][0] = float("nan")
    torch.save(contents, path)
    with pytest.raises(ValueError, match=rf"1 tensors hold values that are no numbers, such as {name}"):
        load_weights(path)
    del contents["state"][name]
    torch.save(contents, path)
    with pytest.raises(ValueError, match="lacks a part"):
        load_weights(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cut short"):
        load_weights(path)


def test_the_digest_changes_with_a_single_value(network):
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = digest(state)
    state["embed_things.bias"][0] += 1e-6
    assert digest(state) != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_stride": 3}, "label_stride is 3; expected 1, 2 or 4"),
        ({"min_mask_probability": 1.0}, "min_mask_probability is 1.0; expected 0 to below 1"),
        ({"min_mask_probability": -0.1}, "min_mask_probability is -0.1; expected 0 to below 1"),
        ({"max_centers": 0}, "max_centers is 0; expected 1 to 3840"),
        ({"centers_per_level": 5000}, "centers_per_level is 5000; expected 1 to 3840"),
    ],
)
def test_impossible_decisions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Decisions(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thing_ids": (19,)}, "thing ids"),
        ({"backbone": "resnet7"}, "unknown backbone"),
        ({"region_ids": (0, 0, *range(1, 11))}, "name a category twice"),
        ({"region_ids": (0, 1)}, r"lack the stuff categories \[2, 3"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PanopticDepth(replace(PRESETS["compact"], **change))
