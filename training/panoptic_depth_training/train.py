# SPDX-License-Identifier: Apache-2.0
"""Train a PanopticDepth network.

    python -m panoptic_depth_training.train OUT_DIR --preset compact --data synthetic:FRAMES --steps 3000 \\
        --height 256 --width 512 --holdout synthetic:HELDOUT

Interrupt it at any time (Ctrl-C); the same command goes on where it stopped. At the end OUT_DIR/weights.pt
holds the network with its scores on the held-out images, ready for panoptic_depth_training.export.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from panoptic_depth_model.panoptic_depth import PRESETS, PanopticDepth, check_size
from panoptic_depth_model.weights import load_weights, save_weights
from panoptic_depth_ros.taxonomy import Taxonomy
from panoptic_depth_training.checkpoint import load_checkpoint, save_checkpoint
from panoptic_depth_training.data import TrainingSamples, open_dataset, start_worker
from panoptic_depth_training.datasets.frames import FrameFolder
from panoptic_depth_training.evaluate import evaluate, table
from panoptic_depth_training.facts import ModelFacts
from panoptic_depth_training.losses import Losses, LossWeights, panoptic_depth_losses
from panoptic_depth_training.targets import Targets

CHECKPOINT, WEIGHTS = "checkpoint.pt", "weights.pt"
REPORT_EVERY_S = 10.0
CHECKPOINT_EVERY_S = 300.0


def option(default: Any, text: str) -> Any:
    """A field of the config that is also an option of the command line."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainingConfig:
    """What decides the trained weights; stored with every checkpoint."""

    preset: str = option("compact", f"network size: {', '.join(PRESETS)}")
    data: str = option("", "labeled images, synthetic:FOLDER")
    start_from: str = option("", "weights to begin with instead of random ones")
    height: int = option(256, "network input height [px]")
    width: int = option(512, "network input width [px]")
    focal_length_px: float = option(480.0, "depth is learned as a camera of this focal length would see it")
    steps: int = option(3000, "optimizer steps in all")
    batch: int = option(8, "images a step")
    half_size_steps: int = option(0, "first steps at half height and width, twice the batch, half the cost")
    learning_rate: float = option(1e-3, "highest learning rate")
    warmup_steps: int = option(100, "steps until it is reached")
    weight_decay: float = option(0.01, "of AdamW")
    max_gradient_norm: float = option(10.0, "larger gradients are scaled down")
    mask_weight: float = option(4.0, "of the mask losses")
    depth_weight: float = option(5.0, "of the depth losses")
    seed: int = option(0, "of weights and augmentation")

    def __post_init__(self) -> None:
        check_size(self.height, self.width)
        if self.half_size_steps:
            check_size(self.height // 2, self.width // 2)
        if self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}; expected one of {', '.join(PRESETS)}")
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps is {self.steps} and batch is {self.batch}; expected at least 1")


def train(
    config: TrainingConfig, folder: Path, interruption: Interruption, *, workers: int = 1
) -> PanopticDepth:
    """Run a training, or go on with the one in the folder, to its last step.

    Raises:
        KeyboardInterrupt: it was interrupted; the folder holds all that is needed to go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images, taxonomy = open_dataset(config.data)
    network = new_network(config)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    weights = LossWeights(config.mask_weight, config.depth_weight)
    step = 0
    if (folder / CHECKPOINT).exists():
        step = load_checkpoint(folder / CHECKPOINT, network, optimizer, asdict(config))

    def save() -> None:
        save_checkpoint(folder / CHECKPOINT, network, optimizer, step, asdict(config))

    progress = Progress(config.steps, step)
    saved_s = time.monotonic()
    network.train()
    for image, targets in batches(config, images, taxonomy, range(step, config.steps), workers):
        set_learning_rate(optimizer, learning_rate(config, step))
        losses = panoptic_depth_losses(network, network(network.normalized(image)), targets, weights)
        if not losses.total.isfinite():
            raise ValueError(f"step {step}: the loss is not finite ({losses}); lower the learning rate")
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.max_gradient_norm)
        optimizer.step()
        step += 1
        progress.report(step, losses)
        if interruption.requested:
            save()
            raise KeyboardInterrupt
        if time.monotonic() - saved_s > CHECKPOINT_EVERY_S:
            save()
            saved_s = time.monotonic()
    save()
    return network.eval()


class Interruption:
    """Whether somebody wants the training to stop; acted upon between steps, where its state is whole."""

    requested = False

    def request(self, *_: object) -> None:
        self.requested = True

    def listen(self) -> None:
        """Take Ctrl-C and a scheduler's stop as requests."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.request)


def batches(
    config: TrainingConfig, images: FrameFolder, taxonomy: Taxonomy, steps: range, workers: int
) -> Iterator[tuple[Tensor, Targets]]:
    """The images [B, H, W, 3] uint8 and targets of these steps: half the size first, then the full one."""
    turn = min(max(config.half_size_steps, steps.start), steps.stop)
    for part, shrink in ((range(steps.start, turn), 2), (range(turn, steps.stop), 1)):
        samples = TrainingSamples(
            images,
            taxonomy,
            height=config.height // shrink,
            width=config.width // shrink,
            focal_length_px=config.focal_length_px / shrink,
            seed=config.seed,
        )
        batch = config.batch * shrink
        order = range(part.start * batch, part.stop * batch)
        yield from DataLoader(samples, batch, sampler=order, num_workers=workers, worker_init_fn=start_worker)


def new_network(config: TrainingConfig) -> PanopticDepth:
    """The preset with random weights from the seed, or with those of an earlier training."""
    if not config.start_from:
        torch.manual_seed(config.seed)
        return PanopticDepth(PRESETS[config.preset])
    network, facts = load_weights(Path(config.start_from))
    if facts["preset"] != config.preset:
        raise ValueError(f"{config.start_from}: preset {facts['preset']!r}; expected {config.preset!r}")
    return network


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then polynomial decay with power 0.9."""
    warmup = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    return config.learning_rate * warmup * (1 - step / config.steps) ** 0.9


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


class Progress:
    """A line every few seconds: where the training is, how fast, how long it will take."""

    def __init__(self, steps: int, first: int) -> None:
        self.steps = steps
        self.reported_step = self.first = first
        self.reported_s = self.started_s = time.monotonic()
        self.sums = [0.0] * len(Losses._fields)

    def report(self, step: int, losses: Losses) -> None:
        self.sums = [total + term.item() for total, term in zip(self.sums, losses, strict=True)]
        now = time.monotonic()
        if now - self.reported_s < REPORT_EVERY_S and step < self.steps:
            return
        count = step - self.reported_step
        terms = "  ".join(
            f"{name} {total / count:.3f}" for name, total in zip(Losses._fields, self.sums, strict=True)
        )
        left = (self.steps - step) * (now - self.started_s) / (step - self.first)
        print(
            f"step {step}/{self.steps}  loss {sum(self.sums) / count:.3f}  ({terms})  "
            f"{count / (now - self.reported_s):.2f} steps/s  "
            f"{time.strftime('%H:%M:%S', time.gmtime(left))} left",
            file=sys.stderr,
            flush=True,
        )
        self.reported_step, self.reported_s, self.sums = step, now, [0.0] * len(Losses._fields)


def facts_of(config: TrainingConfig, scores: dict[str, float | str]) -> ModelFacts:
    """What the weights file says about the training."""
    _, taxonomy = open_dataset(config.data)
    return ModelFacts(config.preset, taxonomy, config.height, config.width, config.focal_length_px, scores)


def parse_arguments(arguments: list[str] | None = None) -> tuple[TrainingConfig, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], prog="python -m panoptic_depth_training.train"
    )
    parser.add_argument("folder", type=Path, metavar="OUT_DIR", help="where checkpoint and weights go")
    for entry in fields(TrainingConfig):
        parser.add_argument(
            f"--{entry.name.replace('_', '-')}",
            type=type(entry.default),
            default=entry.default,
            help=f"{entry.metadata['help']} (default: {entry.default!r})",
        )
    parser.add_argument("--holdout", default="", help="images to score the trained network on, like --data")
    parser.add_argument(
        "--holdout-count", type=int, default=50, help="how many of them (default %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that load images (default %(default)s)"
    )
    options = parser.parse_args(arguments)
    return TrainingConfig(**{f.name: getattr(options, f.name) for f in fields(TrainingConfig)}), options


def main() -> None:
    interruption = Interruption()
    try:
        config, options = parse_arguments()
        interruption.listen()
        network = train(config, options.folder, interruption, workers=options.workers)
        scores: dict[str, float | str] = {
            "training": shlex.join(["panoptic_depth_training.train", *sys.argv[1:]])
        }
        save_weights(options.folder / WEIGHTS, network, facts_of(config, scores).to_dict())
        if options.holdout:
            scores |= evaluate(network, facts_of(config, {}), options.holdout, options.holdout_count)
            print(table(scores))
            save_weights(options.folder / WEIGHTS, network, facts_of(config, scores).to_dict())
    except (ValueError, OSError) as error:
        sys.exit(f"train: {error}")
    except KeyboardInterrupt:
        sys.exit("train: stopped; the same command goes on from here")


if __name__ == "__main__":
    main()
