# SPDX-License-Identifier: Apache-2.0
"""The network and its deployable form keep the contract between training and vehicle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from panoptic_depth_model.deployable import Deployable, Outputs, segment_sums
from panoptic_depth_model.depth import DepthScale, select_then_dot
from panoptic_depth_model.panoptic_depth import PRESETS, PanopticDepth, pick_labels
from panoptic_depth_model.weights import digest, load_weights, save_weights
from panoptic_depth_ros.manifest import OUTPUTS


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


@pytest.mark.parametrize("label_stride", [1, 2, 4])
def test_labels_follow_the_most_probable_segment(label_stride):
    probability = torch.full((1, 3, 4, 8), -1.0)
    probability[0, 0] = 0.4
    probability[0, 2] = 0.1
    probability[0, 2, :, 4:] = 0.9  # the right half
    labels = pick_labels(probability, torch.tensor([[0.5, 0.0, 0.5]]), label_stride)
    assert labels.shape == (1, 16 // label_stride, 32 // label_stride)
    assert set(labels[..., : 3 * labels.shape[2] // 8].flatten().tolist()) == {1}
    assert set(labels[..., labels.shape[2] // 2 :].flatten().tolist()) == {3}


def test_segment_sums_on_a_coarser_label_grid_are_exact():
    labels = torch.tensor([[[1, 1, 2], [0, 2, 2]]])
    depth = torch.rand(1, 4, 6) * 50
    area, total = segment_sums(labels, depth, 3)
    fine = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert area.tolist() == [[8.0, 12.0, 0.0]]
    torch.testing.assert_close(total, torch.stack([depth[fine == k].sum() for k in (1, 2, 3)])[None])


@pytest.mark.parametrize(("scheme", "at_zero"), [("T1", 30.0 + 40.0 * 0.5), ("T2", 30.0)])
def test_the_shift_is_the_nearest_depth_in_scheme_1_and_the_mean_in_scheme_2(scheme, at_zero):
    scale = DepthScale(scheme, shift_limit_m=60.0, range_limit_m=80.0, min_m=1.0, max_m=90.0)
    kernel = torch.zeros(4)  # sigmoid(0) = 0.5: shift 30 m, range 40 m
    depth = scale.depth_m(torch.tensor([-30.0, 0.0, 30.0]), scale.shift_m(kernel), scale.range_m(kernel))
    torch.testing.assert_close(depth, torch.tensor([at_zero - 20.0, at_zero, at_zero + 20.0]))


def test_selecting_before_the_product_equals_selecting_whole_depth_maps():
    kernels, embedding = torch.randn(2, 5, 6), torch.randn(2, 4, 3, 7)
    rows = torch.randint(0, 5, (2, 3, 7))
    scale = DepthScale()
    logits = torch.einsum("bne,behw->bnhw", kernels[..., 2:], embedding)
    shift, extent = scale.shift_m(kernels)[..., None, None], scale.range_m(kernels)[..., None, None]
    all_maps = scale.limited(scale.depth_m(logits, shift, extent))
    expected = all_maps.gather(1, rows[:, None])[:, 0]
    torch.testing.assert_close(select_then_dot(kernels, rows, embedding, scale), expected)


def test_weights_come_back_with_config_and_facts(tmp_path, network):
    path = tmp_path / "weights.pt"
    save_weights(path, network, {"preset": "compact", "scores": {"miou": 0.5}})
    again, facts = load_weights(path)
    assert again.config == network.config
    assert facts == {"preset": "compact", "scores": {"miou": 0.5}}
    assert digest(again.state_dict()) == digest(network.state_dict())
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pt"]


def test_a_file_that_holds_no_weights_is_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="expected a file written by save_weights"):
        load_weights(tmp_path / "other.pt")


def test_the_digest_changes_with_a_single_value(network):
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = digest(state)
    state["embed_things.bias"][0] += 1e-6
    assert digest(state) != before


@pytest.mark.parametrize("change", [{"thing_ids": (19,)}, {"backbone": "resnet7"}])
def test_a_config_that_makes_no_sense_is_refused(change):
    with pytest.raises(ValueError, match=r"thing ids|unknown backbone"):
        PanopticDepth(replace(PRESETS["compact"], **change))
