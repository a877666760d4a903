# SPDX-License-Identifier: Apache-2.0
"""The trainer learns, stops anywhere, goes on as if it had not stopped, and is the same on several processes."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from panoptic_depth_model.config import PRESETS, segmentation_only
from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_model.weights import digest, load_weights, save_weights
from panoptic_depth_ros.taxonomy import Taxonomy
from panoptic_depth_training.config import RECIPES, TrainingConfig
from panoptic_depth_training.data import open_mixture
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.labeled import DataError
from panoptic_depth_training.distributed import Processes
from panoptic_depth_training.losses import Losses, LossWeights, panoptic_depth_losses
from panoptic_depth_training.optim import WeightAverage, build_optimizer, learning_rate_at
from panoptic_depth_training.output_files import alone_in
from panoptic_depth_training.progress import Report
from panoptic_depth_training.train import (
    Interruption,
    batches,
    commands_of,
    facts_of,
    main,
    new_network,
    parse_arguments,
    start,
    train,
)

ALONE = Processes()
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]


@pytest.fixture
def config(frames) -> TrainingConfig:
    return replace(RECIPES["debug"], data=(f"synthetic:{frames}",), width=96, steps=3)


def trained(config: TrainingConfig, folder: Path) -> PanopticDepth:
    return train(config, folder, Interruption(), workers=0)


def test_a_few_steps_lower_the_loss(tmp_path, config):
    config = replace(config, steps=12, learning_rate=2e-3)
    image, targets = next(batches(replace(config, batch=6), open_mixture(config.data), 0, 0, ALONE))

    def loss(network: PanopticDepth) -> float:
        with torch.no_grad():
            maps = network.train()(network.normalized(image))
            return panoptic_depth_losses(network, maps, targets, LossWeights()).total.item()

    torch.manual_seed(config.seed)
    assert loss(trained(config, tmp_path)) < 0.7 * loss(PanopticDepth(config.network(CITYSCAPES)))


@pytest.mark.parametrize("average_decay", [0.0, 0.9])
def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(tmp_path, config, average_decay):
    config = replace(config, average_decay=average_decay)
    whole = trained(config, tmp_path / "whole")
    interruption = Interruption()
    interruption.request()  # heard after the first step
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", interruption, workers=0)
    parts = trained(config, tmp_path / "parts")
    assert digest(parts.state_dict()) == digest(whole.state_dict())


def test_a_training_killed_while_it_saves_goes_on_from_the_checkpoint_before(tmp_path, config, monkeypatch):
    """A checkpoint after each step, and death with the second one half written."""
    whole = trained(config, tmp_path / "whole")
    save = torch.save

    def dying_save(contents: dict[str, Any], path: Path) -> None:
        save(contents, path)
        if contents["step"] == 2:
            os.truncate(path, path.stat().st_size // 2)
            raise SystemExit("killed")

    monkeypatch.setattr("panoptic_depth_training.train.CHECKPOINT_EVERY_S", -1.0)
    monkeypatch.setattr(torch, "save", dying_save)
    with pytest.raises(SystemExit, match="killed"):
        trained(config, tmp_path / "killed")
    monkeypatch.undo()
    assert torch.load(tmp_path / "killed" / "checkpoint.pt")["step"] == 1
    assert digest(trained(config, tmp_path / "killed").state_dict()) == digest(whole.state_dict())


def test_a_terminated_command_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path, config):
    line = ["-m", "panoptic_depth_training.train", str(tmp_path), "--recipe", "debug", "--data", config.data[0]]
    process = subprocess.Popen(
        [sys.executable, *line, "--steps", "100000", "--width", "96"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "train: stopped; the same command goes on from here" in errors
    assert (tmp_path / "checkpoint.pt").exists()


def test_the_first_steps_see_twice_the_images_at_half_the_size(config):
    config = replace(config, height=64, width=128, half_size_steps=2)
    shapes = [tuple(image.shape) for image, _ in batches(config, open_mixture(config.data), 1, 0, ALONE)]
    assert shapes == [(4, 32, 64, 3), (2, 64, 128, 3)]


def test_resuming_gives_the_batches_that_would_have_come(config):
    config = replace(config, half_size_steps=2, width=128)
    images = open_mixture(config.data)
    whole = [image for image, _ in batches(config, images, 0, 0, ALONE)]
    for first in (1, 2):
        rest = [image for image, _ in batches(config, images, first, 0, ALONE)]
        assert all(torch.equal(a, b) for a, b in zip(whole[first:], rest, strict=True))


def test_processes_share_a_step_without_overlap(config):
    config, images = replace(config, batch=4), open_mixture(config.data)
    whole = [image for image, _ in batches(config, images, 0, 0, ALONE)]
    shares = [
        [image for image, _ in batches(config, images, 0, 0, Processes(rank, 2))] for rank in range(2)
    ]
    for step, together in enumerate(whole):
        assert torch.equal(torch.cat([share[step] for share in shares]), together)


def test_a_batch_that_cannot_be_shared_is_refused(config):
    with pytest.raises(ValueError, match="batch 4 does not divide into 3 processes"):
        next(batches(config, open_mixture(config.data), 0, 0, Processes(0, 3)))


def test_two_processes_compute_the_gradient_of_one(tmp_path, config):
    """Two images in one process, or one each in two with unequal numbers of things: the same gradient."""
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(asdict(replace(config, frozen_norms=True, seed=1))))
    script = str(Path(__file__).with_name("gradients.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, str(settings), str(tmp_path / "one.pt")], check=True, env=environment)
    subprocess.run([*TORCHRUN, "29511", script, str(settings), str(tmp_path / "two.pt")], check=True, env=environment)
    one, two = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)


def test_accumulated_parts_give_the_mean_of_their_gradients(tmp_path, config):
    still = {"frozen_norms": True, "learning_rate": 0.0, "weight_decay": 0.0, "clip_limit": 1e9}
    run = start(replace(config, accumulate=2, **still), CITYSCAPES, tmp_path, ALONE)
    image, targets = next(batches(config, open_mixture(config.data), 0, 0, ALONE))
    with Report(tmp_path, Losses._fields, 0, config.steps, ALONE.device) as report:
        run.take(image, targets, report)
    accumulated = {name: p.grad.clone() for name, p in run.network.named_parameters() if p.grad is not None}
    run.optimizer.zero_grad()
    for one, target in zip(image.split(1), targets.split(2), strict=True):
        total, _ = run.module(one, target)
        (total / 2).backward()
    for name, parameter in run.network.named_parameters():
        if name in accumulated:
            torch.testing.assert_close(accumulated[name], parameter.grad, msg=name)
    assert any(gradient.abs().max() > 0 for gradient in accumulated.values())


def test_two_processes_train_and_write_once(tmp_path, config):
    line = ["-m", "panoptic_depth_training.train", str(tmp_path), "--recipe", "debug", "--data", config.data[0]]
    run = subprocess.run(
        [*TORCHRUN, "29512", *line, "--steps", "2", "--width", "96", "--device", "cpu", "--precision", "bfloat16"],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=180, check=False,
    )
    assert run.returncode == 0, run.stderr
    network, facts = load_weights(tmp_path / "weights.pt")
    assert facts["preset"] == "compact"
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


SLOW_DISK = """
import time
from panoptic_depth_training import train

save = train.save_checkpoint

def slowly(*arguments):
    time.sleep(3)
    save(*arguments)

train.save_checkpoint = slowly
train.main()
"""


def test_an_image_that_one_process_cannot_read_ends_them_all_and_keeps_the_steps(tmp_path, config, broken_frames):
    """Though torchrun ends all processes, and those that load their images, as soon as one is gone."""
    script = tmp_path / "slow_disk.py"
    script.write_text(SLOW_DISK)
    line = [str(script), str(tmp_path), "--recipe", "debug", "--device", "cpu", "--workers", "1"]
    line += ["--data", f"synthetic:{broken_frames}", "--height", "32", "--width", "64", "--steps", "50"]
    run = subprocess.run(
        [*TORCHRUN, "29513", *line], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=180, check=False,
    )
    assert run.returncode == 1
    said = [text for text in run.stderr.splitlines() if text.startswith("train: ")]
    assert len(said) == 2, run.stderr
    assert sum("_panoptic.png: " in text for text in said) == 1
    assert sum("another process could not read an image" in text for text in said) == 1
    assert torch.load(tmp_path / "checkpoint.pt")["step"] < 50


def test_curves_are_written_only_where_there_is_a_folder_for_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, files in ((None, 0), (tmp_path, 1)):
        with Report(folder, ("loss",), 0, 1, ALONE.device) as report:
            report.add(torch.ones(1))
            assert report.tell(1, 0.1)
        assert len(list(tmp_path.rglob("events*"))) == files


def test_a_finished_training_has_nothing_left_to_do(tmp_path, config):
    once = trained(replace(config, steps=1), tmp_path)
    again = trained(replace(config, steps=1), tmp_path)
    assert digest(once.state_dict()) == digest(again.state_dict())


def test_a_checkpoint_of_other_settings_is_refused(tmp_path, config):
    trained(replace(config, steps=1), tmp_path)
    with pytest.raises(ValueError, match=r"another training \(batch was 2 and is 4\)"):
        trained(replace(config, steps=1, batch=4), tmp_path)


def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_checkpoint(tmp_path, config):
    trained(replace(config, steps=1), tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    contents = torch.load(tmp_path / "checkpoint.pt")
    contents["learned"]["network.embed_things.bias"][0] = torch.nan
    contents["settings"]["steps"] = 2
    torch.save(contents, tmp_path / "checkpoint.pt")
    spoiled = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=r"the loss is not finite .* lower the learning rate"):
        trained(replace(config, steps=2), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == spoiled != before


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_ends_the_training_in_its_own_words_and_keeps_the_steps(
    tmp_path, config, broken_frames, workers
):
    config = replace(config, data=(f"synthetic:{broken_frames}",), steps=50, batch=1, height=32, width=64)
    with pytest.raises(DataError) as error:
        train(config, tmp_path, Interruption(), workers=workers)
    assert re.match(r"\S*00000\d_panoptic\.png: ", str(error.value))
    assert "Traceback" not in str(error.value)
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 4  # the sixth draw would be the cut one


def test_two_trainings_do_not_share_a_folder(tmp_path, config):
    with alone_in(tmp_path), pytest.raises(ValueError, match="another process writes here; wait for it, or give"):
        trained(config, tmp_path)
    trained(replace(config, steps=1), tmp_path)


def test_weights_tell_the_commands_of_all_trainings_that_made_them(tmp_path):
    network = PanopticDepth(PRESETS["compact"])
    save_weights(tmp_path / "a.pt", network, {"scores": {"training": "train A"}})
    assert commands_of(tmp_path / "a.pt") == "train A"
    save_weights(tmp_path / "b.pt", network, {"scores": {"training": "train B", "training_before": "train A"}})
    assert commands_of(tmp_path / "b.pt") == "train A; train B"
    save_weights(tmp_path / "c.pt", network, {})
    assert commands_of(tmp_path / "c.pt") == ""


def test_the_depth_stage_starts_from_a_segmentation_network(tmp_path, config, capsys):
    torch.manual_seed(5)
    earlier = PanopticDepth(segmentation_only(PRESETS["compact"]))
    save_weights(tmp_path / "earlier.pt", earlier, facts_of(config, CITYSCAPES, {}).to_dict())
    still = replace(config, start_from=str(tmp_path / "earlier.pt"), learning_rate=0.0, weight_decay=0.0, steps=1)
    result = dict(trained(still, tmp_path / "out").named_parameters())
    for name, before in earlier.named_parameters():
        assert torch.equal(before, result[name]), name
    assert "so random at first: depth_kernel_head.kernels, " in capsys.readouterr().err


def test_of_a_network_for_other_categories_all_but_their_outputs_is_taken_over(tmp_path, config, capsys):
    torch.manual_seed(5)
    earlier = PanopticDepth(PRESETS["compact"])
    renamed = Taxonomy(tuple(replace(category, name=category.name.upper()) for category in CITYSCAPES))
    save_weights(tmp_path / "earlier.pt", earlier, facts_of(config, renamed, {}).to_dict())
    result = new_network(replace(config, start_from=str(tmp_path / "earlier.pt")), CITYSCAPES)
    before = dict(earlier.named_parameters())
    changed = {name for name, tensor in result.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed == {"location_head.centers.weight", "location_head.regions.weight"}  # both biases start alike
    assert "random at first: location_head.centers, location_head.regions" in capsys.readouterr().err


def test_weights_of_another_size_are_refused(tmp_path, config):
    other = PanopticDepth(replace(PRESETS["compact"], width=32))
    save_weights(tmp_path / "other.pt", other, facts_of(config, CITYSCAPES, {}).to_dict())
    with pytest.raises(ValueError, match=r"tensors do not fit this network.* width 32, this one resnet18 and 64"):
        trained(replace(config, start_from=str(tmp_path / "other.pt")), tmp_path / "out")


def test_frozen_parts_stay_as_they_are(tmp_path, config):
    config = replace(config, frozen_parts=2, frozen_norms=True, steps=2)
    torch.manual_seed(config.seed)
    before = PanopticDepth(config.network(CITYSCAPES)).state_dict()
    after = trained(config, tmp_path).state_dict()
    for name in before:
        frozen = name.startswith(("backbone.stem.", "backbone.stages.0.")) or ".bn" in name or "downsample.1" in name
        assert torch.equal(before[name], after[name]) == frozen or not after[name].is_floating_point(), name


def test_the_settings_lie_beside_the_weights(tmp_path, config):
    trained(replace(config, steps=1), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["focal_length_px"] == 120.0
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_the_learning_rate_warms_up_and_then_falls_to_nothing():
    rates = [learning_rate_at(step, 1000, 1e-3, 100) for step in (0, 50, 100, 500, 999)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[1] < rates[2] > rates[3] > rates[4]
    assert rates[3] == pytest.approx(1e-3 * 0.5**0.9)


def test_norms_do_not_decay():
    network = PanopticDepth(PRESETS["compact"])
    optimizer = build_optimizer(network, "adamw", 1e-3, 0.1)
    undecayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    assert undecayed == {
        id(p)
        for module in network.modules()
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.GroupNorm)
        for p in module.parameters()
    }


def test_the_average_of_the_first_steps_is_their_mean_and_later_decays():
    module = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(module, decay=0.5)
    for value in (1.0, 3.0, 7.0):
        torch.nn.init.constant_(module.weight, value)
        average.update(module)
    assert average.state["weight"].item() == pytest.approx(0.5 * 2.0 + 0.5 * 7.0)


def test_options_change_the_recipe(tmp_path):
    line = f"{tmp_path} --recipe paper_depth --data synthetic:x --data camvid:y:train=2 --steps 7 --no-frozen-norms"
    config, options = parse_arguments(line.split())
    expected = replace(
        RECIPES["paper_depth"], data=("synthetic:x", "camvid:y:train=2"), steps=7, frozen_norms=False
    )
    assert config == expected
    assert options.folder == tmp_path


def test_the_help_says_which_recipe_its_values_are_of_and_which_data_have_weights(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--recipe", "paper_depth", "--help"])
    options = dict(re.findall(r"(?m)^  --([a-z-]+) ((?:.|\n(?!  -))*)", capsys.readouterr().out))
    options = {name: " ".join(text.split()) for name, text in options.items()}
    assert options["steps"].endswith("optimizer steps in all (in recipe default: 3000)")
    assert "[@FIRST:LAST][=WEIGHT]" in options["data"]
    assert options["holdout"].endswith("[@FIRST:LAST]")


@pytest.mark.parametrize(
    ("holdout", "message"), [("streets:9:9=2", "has the weight =2"), ("synthetic:nowhere", "nowhere")]
)
def test_a_holdout_that_cannot_be_scored_is_refused_before_the_training(
    tmp_path, config, monkeypatch, holdout, message
):
    line = ["train", str(tmp_path / "out"), "--recipe", "debug", "--data", config.data[0], "--holdout", holdout]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit, match=f"train: .*{message}"):
        main()
    assert not (tmp_path / "out").exists()


def test_a_holdout_counts_whole_unless_a_count_is_given(tmp_path):
    line = [str(tmp_path), "--data", "synthetic:x", "--holdout", "streets:90000:100"]
    assert parse_arguments(line)[1].holdout_count is None
    assert parse_arguments([*line, "--holdout-count", "7"])[1].holdout_count == 7
    with pytest.raises(SystemExit):
        parse_arguments([*line, "--holdout-count", "0"])


def test_the_paper_is_trained_in_three_stages():
    stages = [RECIPES[name] for name in ("paper_segmentation", "paper_full_scale", "paper_depth")]
    assert [stage.network(CITYSCAPES).depth is None for stage in stages] == [True, True, False]
    assert [(stage.steps, stage.batch, stage.learning_rate) for stage in stages] == [
        (130_000, 32, 1e-4),
        (10_000, 8, 1e-5),
        (10_000, 8, 1e-4),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 60}, "multiples of 32"),
        ({"preset": "huge"}, "unknown preset 'huge'; expected one of paper"),
        ({"steps": 0}, "expected at least 1"),
        ({"focal_length_px": 0.0}, "focal_length_px is 0.0; expected a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan; expected 0 or more"),
        ({"clip_limit": 0.0}, "clip_limit is 0.0; expected a number above 0"),
        ({"depth_weight": math.inf}, "depth_weight is inf; expected 0 or more"),
        ({"warmup_steps": -5}, "warmup_steps is -5; expected 0 or more"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
        ({"frozen_parts": 6}, "frozen_parts is 6; expected 0 to 5"),
        ({"view": "fisheye"}, "unknown view"),
        ({"segmentation_only": True, "depth_variant": "F"}, "give one of them"),
        ({"average_decay": 1.0}, "share below 1"),
        ({"start_from": "a.pt", "backbone_weights": "b.pt"}, "leave backbone_weights out"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**change)


def test_facts_travel_with_the_weights(tmp_path, config):
    network = PanopticDepth(PRESETS["compact"])
    save_weights(tmp_path / "weights.pt", network, facts_of(config, CITYSCAPES, {"pq": 0.25}).to_dict())
    _, facts = load_weights(tmp_path / "weights.pt")
    assert (facts["preset"], facts["height"], facts["width"]) == ("compact", 64, 96)
    assert facts["focal_length_px"] == 120.0
    assert facts["scores"] == {"pq": 0.25}
