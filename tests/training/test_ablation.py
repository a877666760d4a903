# SPDX-License-Identifier: Apache-2.0
"""The ablation trains every variant alike, goes on where it stopped, and shows mean and spread."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_training import ablation
from panoptic_depth_training.ablation import (
    NAMES,
    SCORES,
    WITHOUT_FUSION,
    Holdout,
    Trial,
    parse_arguments,
    scores_of,
    table,
    trials,
)
from panoptic_depth_training.config import RECIPES, TrainingConfig
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.train import Interruption


@pytest.fixture
def trial(frames) -> Trial:
    config = replace(RECIPES["debug"], data=(f"synthetic:{frames}",), width=96, steps=1, depth_variant="A")
    return Trial("A", 0, config)


def untrained(config: TrainingConfig, folder: Path, interruption: Interruption, *, workers: int) -> PanopticDepth:
    folder.mkdir()
    return PanopticDepth(config.network(CITYSCAPES)).eval()


def never(*_: object, **__: object) -> None:
    pytest.fail("trained again")


def scored(trial: Trial, folder: Path, holdout: Holdout) -> dict[str, float]:
    return scores_of(trial, folder, holdout, 0, Interruption())


def write_scores(trial: Trial, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a trial on two streets; after it nothing can be trained."""
    monkeypatch.setattr(ablation, "train", untrained)
    monkeypatch.setattr(ablation, "evaluate", lambda *_: {"pq": 0.5})
    assert scored(trial, folder, Holdout("streets:1:2", 2)) == {"pq": 0.5}
    monkeypatch.setattr(ablation, "train", never)


def test_variants_differ_in_nothing_but_what_they_are_named_for():
    configs = {trial.name: trial.config for trial in trials(RECIPES["default"], list(NAMES), 1, 0.1)}
    assert list(configs) == ["A", "B", "C", "D", "E", "F", "F without AKF"]
    plain = {name: {**asdict(c), "depth_variant": "", "adaptive_fusion": True} for name, c in configs.items()}
    assert all(values == plain["A"] for values in plain.values())
    assert {name: c.network(CITYSCAPES).depth.scheme for name, c in configs.items()} == {
        "A": "pixel", "B": "direct", "C": "T1", "D": "T2", "E": "T1", "F": "T2", "F without AKF": "T2",
    }  # fmt: skip
    assert [name for name, c in configs.items() if not c.adaptive_fusion] == [WITHOUT_FUSION]


def test_the_budget_scales_every_count_of_steps():
    recipe = replace(RECIPES["default"], half_size_steps=1000)
    config = next(trials(recipe, ["F"], 1, 0.5)).config
    assert (config.steps, config.half_size_steps, config.warmup_steps) == (1500, 500, 50)


def test_all_variants_have_had_a_seed_before_the_next_seed_begins():
    assert [(t.name, t.seed) for t in trials(RECIPES["default"], ["A", "F"], 2, 1.0)] == [
        ("A", 0), ("F", 0), ("A", 1), ("F", 1),
    ]  # fmt: skip


def test_a_finished_trial_is_not_trained_again(tmp_path, frames, trial, monkeypatch):
    holdout = Holdout(f"synthetic:{frames}", 2)
    first = scored(trial, tmp_path, holdout)
    assert first["images"] == 2
    monkeypatch.setattr(ablation, "train", never)
    monkeypatch.setattr(ablation, "evaluate", never)
    assert scored(trial, tmp_path, holdout) == first


def test_a_trial_is_scored_on_the_whole_holdout_unless_a_count_is_given(tmp_path, frames, trial, monkeypatch):
    monkeypatch.setattr(ablation, "train", untrained)
    assert scored(trial, tmp_path, Holdout(f"synthetic:{frames}"))["images"] == 6


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"steps": 2}, r"steps was 1 and is 2"),
        ({"preset": "vehicle"}, r"preset was 'compact' and is 'vehicle'"),
        ({"data": ("streets:5:9",)}, r"data was \['synthetic:.*'\] and is \['streets:5:9'\]"),
    ],
)
def test_scores_of_another_training_are_refused(tmp_path, trial, monkeypatch, settings, change):
    write_scores(trial, tmp_path, monkeypatch)
    other = replace(trial, config=replace(trial.config, **settings))
    with pytest.raises(ValueError, match=rf"another trial \({change}\); give the same options, or take another folder"):
        scored(other, tmp_path, Holdout("streets:1:2", 2))


@pytest.mark.parametrize(
    ("holdout", "change"),
    [
        (Holdout("streets:7:2", 2), r"holdout was 'streets:1:2' and is 'streets:7:2'"),
        (Holdout("streets:1:2"), r"holdout_count was 2 and is None"),
    ],
)
def test_scores_on_another_holdout_are_refused(tmp_path, trial, monkeypatch, holdout, change):
    write_scores(trial, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=rf"another trial \({change}\); .* remove it to score the same network anew"):
        scored(trial, tmp_path, holdout)


@pytest.mark.parametrize(
    ("text", "fault"), [('{"pq": 0.5}', "does not say what"), ("[]", "does not say what"), ("", "not JSON")]
)
def test_scores_that_do_not_say_what_was_trained_are_refused(tmp_path, trial, text, fault):
    trial.folder(tmp_path).mkdir()
    (trial.folder(tmp_path) / SCORES).write_text(text)
    with pytest.raises(ValueError, match=rf"scores.json: {fault} .* remove it"):
        scored(trial, tmp_path, Holdout("streets:1:2"))


def test_scores_of_other_settings_are_found_before_the_first_training(tmp_path, trial, monkeypatch):
    last = trial.folder(tmp_path).with_name("B-seed0")
    last.mkdir()
    (last / SCORES).write_text(json.dumps({"settings": {"steps": 7}, "scores": {}}))
    monkeypatch.setattr(ablation, "train", never)
    monkeypatch.setattr(Interruption, "listen", lambda self: None)
    line = f"ablation {tmp_path} --data {trial.config.data[0]} --holdout {trial.config.data[0]} --variants A B"
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(SystemExit, match=r"B-seed0/scores.json: scores of another trial"):
        ablation.main()


def test_recipes_without_depth_are_not_offered(capsys):
    line = ["out", "--data", "streets:0:9", "--holdout", "streets:9:9", "--recipe"]
    offered = []
    for name in RECIPES:
        try:
            offered.append(parse_arguments([*line, name]).recipe)
        except SystemExit:
            assert f"invalid choice: '{name}'" in capsys.readouterr().err
    assert offered == ["default", "paper_depth", "debug"]
    assert all(list(trials(RECIPES[name], list(NAMES), 1, 1.0)) for name in offered)


@pytest.mark.parametrize("option", [["--seeds", "0"], ["--budget", "nan"], ["--budget", "-1"], ["--budget", "inf"]])
def test_an_ablation_of_nothing_is_refused(option, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["out", "--data", "streets:0:9", "--holdout", "streets:9:9", *option])
    assert f"{option[0]} " in capsys.readouterr().err


def test_the_table_shows_mean_and_spread():
    scores = [
        {"dpq": value, "dpq_things": value, "dpq_stuff": value, "pq": value, "abs_rel": value}
        for value in (0.10, 0.14)
    ]
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(table({"A": scores, "F": scores[:1]}, steps=7))
    text = console.export_text()
    assert "12.0 ± 2.8" in text
    assert "0.120 ± 0.028" in text
    assert "7 steps each" in text
