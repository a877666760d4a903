# SPDX-License-Identifier: Apache-2.0
"""Train the variants of the paper's ablation with equal budgets and seeds, and print its table.

    python -m panoptic_depth_training.ablation OUT_DIR --data streets:0:2000 --holdout streets:90000:100 --budget 0.2

Depth variants A to F (table 3: pixel-wise; instance-wise; with normalization T1 or T2; with the instance loss) and
region kernels with and without adaptive fusion (table 1). A finished run is not trained again, an interrupted one
goes on; more seeds or variants can be added to the same folder later, other settings want another folder.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from panoptic_depth_model.depth import DIRECT, PIXEL, VARIANTS
from panoptic_depth_model.weights import save_weights
from panoptic_depth_ros.arguments import count, natural, positive
from panoptic_depth_training.checkpoint import differences
from panoptic_depth_training.config import RECIPES, TrainingConfig
from panoptic_depth_training.data import open_mixture
from panoptic_depth_training.datasets.files import read_json
from panoptic_depth_training.datasets.sources import SYNTAX, WEIGHTED_SYNTAX, list_images, parse_source
from panoptic_depth_training.evaluate.network import evaluate
from panoptic_depth_training.output_files import write_whole
from panoptic_depth_training.train import WEIGHTS, Interruption, facts_of, train

SCORES = "scores.json"
WITHOUT_FUSION = "F without AKF"
NAMES = (*VARIANTS, WITHOUT_FUSION)
COLUMNS = ("dpq", "dpq_things", "dpq_stuff", "pq", "abs_rel")
DEPTH_RECIPES = tuple(name for name, recipe in RECIPES.items() if not recipe.segmentation_only)


@dataclass(frozen=True)
class Holdout:
    """What all trials are scored on."""

    data: str
    count: int | None = None  # its first images; None: all


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
    trial: Trial, root: Path, holdout: Holdout, workers: int, interruption: Interruption
) -> dict[str, float]:
    """Train and score one trial, unless its folder holds the scores already.

    Raises ValueError where the folder holds scores or a checkpoint of other settings.
    """
    if (earlier := earlier_scores(trial, root, holdout)) is not None:
        return earlier
    folder = trial.folder(root)
    network = train(trial.config, folder, interruption, workers=workers)
    facts = facts_of(trial.config, open_mixture(trial.config.data).taxonomy, {})
    save_weights(folder / WEIGHTS, network, facts.to_dict())
    scores = evaluate(network, facts, holdout.data, holdout.count)
    kept = {name: value for name, value in scores.items() if isinstance(value, float)}
    contents = {"settings": _settings(trial, holdout), "scores": kept}
    write_whole(folder / SCORES, (json.dumps(contents, indent=2) + "\n").encode())
    return kept


def earlier_scores(trial: Trial, root: Path, holdout: Holdout) -> dict[str, float] | None:
    """The scores that the trial's folder holds, if any. Raises ValueError where they are of other settings."""
    path = trial.folder(root) / SCORES
    if not path.exists():
        return None
    remedy = "remove it to score the trial anew"
    contents = read_json(path, remedy)
    if not isinstance(contents, dict) or not contents.keys() >= {"settings", "scores"}:
        raise ValueError(f"{path}: does not say what was trained and scored; {remedy}")
    if changes := differences(contents["settings"], _settings(trial, holdout)):
        is_trained = not changes.keys() - {"holdout", "holdout_count"}
        remedy = "remove it to score the same network anew" if is_trained else "take another folder"
        words = ", ".join(changes.values())
        raise ValueError(f"{path}: scores of another trial ({words}); give the same options, or {remedy}")
    return contents["scores"]


def _settings(trial: Trial, holdout: Holdout) -> dict[str, Any]:
    """All that decides a trial's scores, as it comes back from a file."""
    settings = asdict(trial.config) | {"holdout": holdout.data, "holdout_count": holdout.count}
    return json.loads(json.dumps(settings))


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


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="ablation"
    )
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--data", action="append", required=True, help=f"labeled images, {WEIGHTED_SYNTAX}")
    parser.add_argument("--holdout", required=True, help=f"images to score on, {SYNTAX}")
    parser.add_argument("--holdout-count", type=count, help="score on the first of them only (default: all)")
    parser.add_argument("--recipe", choices=DEPTH_RECIPES, default="default", help="settings (default %(default)s)")
    parser.add_argument("--budget", type=positive, default=0.1, help="share of the recipe's steps (%(default)s)")
    parser.add_argument("--seeds", type=count, default=3, help="trainings of each variant (default %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--workers", type=natural, default=1, help="processes that load images (default %(default)s)")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_arguments()
    interruption = Interruption()
    interruption.listen()
    results: dict[str, list[dict[str, float]]] = {}
    try:
        recipe = replace(RECIPES[options.recipe], data=tuple(options.data))
        todo = list(trials(recipe, options.variants, options.seeds, options.budget))
        holdout = Holdout(options.holdout, options.holdout_count)
        # What is wrong with the options is to be said before the first training, not after it.
        list_images(parse_source(holdout.data))
        for trial in todo:
            earlier_scores(trial, options.folder, holdout)
        for number, trial in enumerate(todo, start=1):
            print(f"ablation: {number}/{len(todo)}: {trial.name}, seed {trial.seed}", file=sys.stderr)
            scores = scores_of(trial, options.folder, holdout, options.workers, interruption)
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
