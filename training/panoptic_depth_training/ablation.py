# SPDX-License-Identifier: Apache-2.0
"""Train the variants of the paper's ablation with equal budgets and seeds, and print its table.

    python -m panoptic_depth_training.ablation OUT_DIR --data streets:0:2000 --holdout streets:90000:100 --budget 0.2

Depth variants A to F (table 3: pixel-wise; instance-wise; with normalization T1 or T2; with the instance loss) and
region kernels with and without adaptive fusion (table 1). A finished run is not trained again, an interrupted one
goes on; more seeds or variants can be added to the same folder later.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from panoptic_depth_model.depth import DIRECT, PIXEL, VARIANTS
from panoptic_depth_model.weights import save_weights
from panoptic_depth_training.config import RECIPES, TrainingConfig
from panoptic_depth_training.data import open_mixture
from panoptic_depth_training.evaluate.network import evaluate
from panoptic_depth_training.train import WEIGHTS, Interruption, facts_of, train

SCORES = "scores.json"
WITHOUT_FUSION = "F without AKF"
NAMES = (*VARIANTS, WITHOUT_FUSION)
COLUMNS = ("dpq", "dpq_things", "dpq_stuff", "pq", "abs_rel")


@dataclass(frozen=True)
class Trial:
    """One training of the ablation."""

    name: str
    seed: int
    config: TrainingConfig

    def folder(self, root: Path) -> Path:
        return root / f"{self.name.replace(' ', '_')}-seed{self.seed}"


def trials(recipe: TrainingConfig, names: list[str], seeds: int, budget: float) -> Iterator[Trial]:
    """All trainings, seed by seed, so that an early end leaves whole tables."""
    steps = max(1, round(recipe.steps * budget))
    for seed in range(seeds):
        for name in names:
            config = replace(
                recipe,
                depth_variant=name[0],
                adaptive_fusion=name != WITHOUT_FUSION,
                seed=seed,
                steps=steps,
                half_size_steps=round(recipe.half_size_steps * budget),
                warmup_steps=max(1, round(recipe.warmup_steps * budget)),
            )
            yield Trial(name, seed, config)


def scores_of(
    trial: Trial, root: Path, holdout: str, count: int, workers: int, interruption: Interruption
) -> dict[str, float]:
    """Train and score one trial, unless its folder holds the scores already."""
    folder = trial.folder(root)
    path = folder / SCORES
    if path.exists():
        return json.loads(path.read_text())
    network = train(trial.config, folder, interruption, workers=workers)
    facts = facts_of(trial.config, open_mixture(trial.config.data).taxonomy, {})
    save_weights(folder / WEIGHTS, network, facts.to_dict())
    scores = evaluate(network, facts, holdout, count)
    kept = {name: value for name, value in scores.items() if isinstance(value, float)}
    path.write_text(json.dumps(kept, indent=2) + "\n")
    return kept


def table(results: dict[str, list[dict[str, float]]], steps: int) -> Table:
    """Mean and spread (standard deviation over seeds) in the form of the paper's table 3; DPQ and PQ in percent."""
    drawn = Table(
        "variant", "IDE", "IDN", "instance loss", "DPQ", "things", "stuff", "PQ", "abs rel", "seeds",
        title=f"{steps} steps each",
    )
    for name, scores in results.items():
        scale = VARIANTS[name[0]]
        drawn.add_row(
            name,
            "" if scale.scheme == PIXEL else "yes",
            "" if scale.scheme in (PIXEL, DIRECT) else scale.scheme,
            "yes" if scale.supervise_shift else "",
            *(_spread([score.get(column, math.nan) for score in scores], column) for column in COLUMNS),
            str(len(scores)),
        )
    return drawn


def _spread(values: list[float], column: str) -> str:
    digits = 3 if column == "abs_rel" else 1
    values = values if column == "abs_rel" else [100 * value for value in values]
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--data", action="append", required=True, help="labeled images, as for train")
    parser.add_argument("--holdout", required=True, help="images to score on")
    parser.add_argument("--holdout-count", type=int, default=100, help="how many (default %(default)s)")
    parser.add_argument("--recipe", choices=RECIPES, default="default")
    parser.add_argument("--budget", type=float, default=0.1, help="share of the recipe's steps (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant (default %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--workers", type=int, default=1, help="processes that load images (default %(default)s)")
    options = parser.parse_args()
    interruption = Interruption()
    interruption.listen()
    results: dict[str, list[dict[str, float]]] = {}
    try:
        recipe = replace(RECIPES[options.recipe], data=tuple(options.data))
        todo = list(trials(recipe, options.variants, options.seeds, options.budget))
        for number, trial in enumerate(todo, start=1):
            print(f"ablation: {number}/{len(todo)}: {trial.name}, seed {trial.seed}", file=sys.stderr)
            scores = scores_of(
                trial, options.folder, options.holdout, options.holdout_count, options.workers, interruption
            )
            results.setdefault(trial.name, []).append(scores)
    except (ValueError, OSError) as error:
        sys.exit(f"ablation: {error}")
    except KeyboardInterrupt:
        print("ablation: stopped; the same command goes on from here", file=sys.stderr)
    if results:
        Console().print(table(results, todo[0].config.steps))
    if interruption.requested:
        sys.exit(1)


if __name__ == "__main__":
    main()
