# SPDX-License-Identifier: Apache-2.0
"""The trainer learns, stops anywhere, and goes on as if it had not stopped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.data import default_collate

from panoptic_depth_model.panoptic_depth import PRESETS, PanopticDepth
from panoptic_depth_model.weights import digest, load_weights, save_weights
from panoptic_depth_training.data import TrainingSamples, open_dataset
from panoptic_depth_training.losses import LossWeights, panoptic_depth_losses
from panoptic_depth_training.train import (
    Interruption,
    TrainingConfig,
    batches,
    facts_of,
    learning_rate,
    parse_arguments,
    train,
)


@pytest.fixture
def config(frames) -> TrainingConfig:
    return TrainingConfig(
        data=f"synthetic:{frames}",
        height=64,
        width=96,
        focal_length_px=80.0,
        steps=3,
        batch=2,
        warmup_steps=1,
    )


def test_a_batch_is_learned_by_heart(frames):
    images, taxonomy = open_dataset(f"synthetic:{frames}")
    samples = TrainingSamples(images, taxonomy, height=64, width=96, focal_length_px=80.0, seed=0)
    image, targets = default_collate([samples[k] for k in range(4)])
    torch.manual_seed(0)
    network = PanopticDepth(replace(PRESETS["compact"], width=16)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    history = []
    for _ in range(15):
        losses = panoptic_depth_losses(network, network(network.normalized(image)), targets, LossWeights())
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(losses.total.item())
    assert history[-1] < history[0] / 2


def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(tmp_path, config):
    whole = train(config, tmp_path / "whole", Interruption(), workers=0)
    interruption = Interruption()
    interruption.request()  # heard after the first step
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", interruption, workers=0)
    parts = train(config, tmp_path / "parts", Interruption(), workers=0)
    assert digest(parts.state_dict()) == digest(whole.state_dict())


def test_the_first_steps_see_twice_the_images_at_half_the_size(config):
    config = replace(config, height=64, width=128, half_size_steps=2)
    images, taxonomy = open_dataset(config.data)
    shapes = [tuple(image.shape) for image, _ in batches(config, images, taxonomy, range(1, 3), workers=0)]
    assert shapes == [(4, 32, 64, 3), (2, 64, 128, 3)]


def test_resuming_gives_the_batches_that_would_have_come(config):
    config = replace(config, half_size_steps=2, width=128)
    images, taxonomy = open_dataset(config.data)
    whole = [image for image, _ in batches(config, images, taxonomy, range(3), workers=0)]
    for first in (1, 2):
        rest = [image for image, _ in batches(config, images, taxonomy, range(first, 3), workers=0)]
        assert all(torch.equal(a, b) for a, b in zip(whole[first:], rest, strict=True))


def test_a_finished_training_has_nothing_left_to_do(tmp_path, config):
    once = train(replace(config, steps=1), tmp_path, Interruption(), workers=0)
    again = train(replace(config, steps=1), tmp_path, Interruption(), workers=0)
    assert digest(once.state_dict()) == digest(again.state_dict())


def test_a_checkpoint_of_other_settings_is_refused(tmp_path, config):
    train(replace(config, steps=1), tmp_path, Interruption(), workers=0)
    with pytest.raises(ValueError, match=r"another training \(batch was 2 and is 4\)"):
        train(replace(config, steps=1, batch=4), tmp_path, Interruption(), workers=0)


def test_training_can_start_from_earlier_weights(tmp_path, config):
    torch.manual_seed(5)
    earlier = PanopticDepth(PRESETS["compact"])
    save_weights(tmp_path / "earlier.pt", earlier, facts_of(config, {}).to_dict())
    still = replace(
        config, start_from=str(tmp_path / "earlier.pt"), learning_rate=0.0, weight_decay=0.0, steps=1
    )
    trained = train(still, tmp_path / "out", Interruption(), workers=0)
    for (name, before), after in zip(earlier.named_parameters(), trained.parameters(), strict=True):
        assert torch.equal(before, after), name


def test_the_learning_rate_warms_up_and_then_falls_to_nothing():
    config = TrainingConfig(steps=1000, warmup_steps=100, learning_rate=1e-3)
    rates = [learning_rate(config, step) for step in (0, 49, 99, 500, 999)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[1] < rates[2] > rates[3] > rates[4]
    assert rates[3] == pytest.approx(1e-3 * 0.5**0.9)


def test_options_become_the_config(tmp_path):
    line = f"{tmp_path} --data synthetic:x --steps 7 --learning-rate 2e-4"
    config, options = parse_arguments(line.split())
    assert config == TrainingConfig(data="synthetic:x", steps=7, learning_rate=2e-4)
    assert options.folder == tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 60}, "multiples of 32"),
        ({"preset": "huge"}, "unknown preset 'huge'; expected one of compact"),
        ({"steps": 0}, "expected at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**change)


def test_unknown_data_and_an_empty_folder_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="expected synthetic:FOLDER"):
        open_dataset("kitti:somewhere")
    with pytest.raises(ValueError, match=r"no cameras\.json; render frames with"):
        open_dataset(f"synthetic:{tmp_path}")


def test_facts_travel_with_the_weights(tmp_path, config):
    network = PanopticDepth(PRESETS["compact"])
    save_weights(tmp_path / "weights.pt", network, facts_of(config, {"pq": 0.25}).to_dict())
    _, facts = load_weights(tmp_path / "weights.pt")
    assert (facts["preset"], facts["height"], facts["width"]) == ("compact", 64, 96)
    assert facts["focal_length_px"] == 80.0
    assert facts["scores"] == {"pq": 0.25}
