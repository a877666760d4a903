# SPDX-License-Identifier: Apache-2.0
"""The ablation trains every variant alike, goes on where it stopped, and shows mean and spread."""

from __future__ import annotations

import io
from dataclasses import asdict, replace

from rich.console import Console

from panoptic_depth_training.ablation import NAMES, WITHOUT_FUSION, Trial, scores_of, table, trials
from panoptic_depth_training.config import RECIPES
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.train import Interruption


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


def test_a_finished_trial_is_not_trained_again(tmp_path, frames):
    config = replace(RECIPES["debug"], data=(f"synthetic:{frames}",), width=96, steps=1, depth_variant="A")
    trial = Trial("A", 0, config)
    first = scores_of(trial, tmp_path, f"synthetic:{frames}", 2, 0, Interruption())
    (trial.folder(tmp_path) / "checkpoint.pt").unlink()
    assert scores_of(trial, tmp_path, "synthetic:nowhere", 2, 0, Interruption()) == first
    assert first["images"] == 2


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
