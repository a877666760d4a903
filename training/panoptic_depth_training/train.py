# SPDX-License-Identifier: Apache-2.0
"""Train a PanopticDepth network.

    python -m panoptic_depth_training.train OUT_DIR --data synthetic:FRAMES --steps 3000 --holdout synthetic:HELDOUT
    torchrun --nproc-per-node 8 -m panoptic_depth_training.train OUT_DIR --recipe paper_segmentation --data ...

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
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from panoptic_depth_model.backbones import load_pretrained
from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_model.weights import load_weights, save_weights
from panoptic_depth_ros.arguments import count, natural
from panoptic_depth_ros.taxonomy import Taxonomy
from panoptic_depth_training.checkpoint import load_checkpoint, save_checkpoint
from panoptic_depth_training.config import RECIPES, TrainingConfig, changed
from panoptic_depth_training.data import Mixture, TrainingSamples, batch_of, open_mixture, start_worker
from panoptic_depth_training.datasets.labeled import DataError
from panoptic_depth_training.datasets.sources import SYNTAX, list_images, parse_source
from panoptic_depth_training.distributed import Processes, join, leave
from panoptic_depth_training.evaluate.network import evaluate, predicted_picture
from panoptic_depth_training.evaluate.tables import table
from panoptic_depth_training.facts import ModelFacts
from panoptic_depth_training.losses import Losses, LossWeights, panoptic_depth_losses
from panoptic_depth_training.optim import (
    WeightAverage,
    build_optimizer,
    clip_gradients,
    learning_rate_at,
    set_learning_rate,
)
from panoptic_depth_training.output_files import alone_in
from panoptic_depth_training.pixel_heads import PixelHeads
from panoptic_depth_training.progress import Report
from panoptic_depth_training.targets import Targets

CHECKPOINT, WEIGHTS, SETTINGS = "checkpoint.pt", "weights.pt", "config.json"
CATEGORY_OUTPUTS = ("location_head.centers.", "location_head.regions.")
CHECKPOINT_EVERY_S = 300.0
PICTURE_EVERY_S = 300.0
ELSEWHERE = "another process could not read an image, which its own line names"


def train(
    config: TrainingConfig,
    folder: Path,
    interruption: Interruption,
    *,
    workers: int = 1,
    processes: Processes | None = None,
) -> PanopticDepth:
    """Run a training, or go on with the one in the folder, to its last step; return the network on the CPU.

    Raises:
        KeyboardInterrupt: it was interrupted; the folder holds all that is needed to go on.
        ValueError: the data, the weights to start from or the settings cannot be used; or the loss is no number; or
            another training is under way in the folder.
    """
    processes = processes or Processes()
    folder.mkdir(parents=True, exist_ok=True)
    images = open_mixture(config.data)
    with alone_in(folder) if processes.is_first else nullcontext():
        run = start(config, images.taxonomy, folder, processes)
        if processes.is_first:
            config.save(folder / SETTINGS)
        take_all(run, images, interruption, workers)
        run.save(None)
    return run.result()


def take_all(run: Run, images: Mixture, interruption: Interruption, workers: int) -> None:
    """The steps that are left, with checkpoints; raises as `train` does."""
    config, folder, processes = run.config, run.folder, run.processes
    written = folder if processes.is_first else None
    with Report(written, Losses._fields, run.step, config.steps, processes.device) as report:
        saved_s = pictured_s = time.monotonic()
        for batch in batches(config, images, run.step, workers, processes):
            try:
                image, targets = agreed(batch, processes)
            except DataError:
                run.end_early(report)  # the steps so far are no fault of this image
                raise
            rate = run.take(image, targets, report)
            if not processes.is_first:
                pass
            elif report.tell(run.step, rate) and time.monotonic() - pictured_s > PICTURE_EVERY_S:
                picture = predicted_picture(run.network, images.taxonomy, image[0])
                report.picture("image, segments, depth", picture, run.step)
                pictured_s = time.monotonic()
            if processes.any(interruption.requested):
                run.end_early(report)
                raise KeyboardInterrupt
            if time.monotonic() - saved_s > CHECKPOINT_EVERY_S:
                run.save(report)
                saved_s = time.monotonic()


def agreed(batch: tuple[Tensor, Targets] | DataError, processes: Processes) -> tuple[Tensor, Targets]:
    """The batch, if every process has one of its own; raises DataError in all of them otherwise."""
    if isinstance(batch, DataError):
        processes.any(True)
        raise batch
    if processes.any(False):
        raise DataError(ELSEWHERE)
    return batch


class TrainingModule(nn.Module):
    """A network together with its losses: one call from a batch to a number, as DDP wants it.

    Its parameters are all that the optimizer moves: the network's, and those of heads that are not kept.
    """

    def __init__(self, network: PanopticDepth, config: TrainingConfig, processes: Processes) -> None:
        super().__init__()
        self.network = network
        self.pixel_heads = PixelHeads(network.config) if config.pixel_weight else None
        self.weights = LossWeights(config.mask_weight, config.depth_weight, config.pixel_weight)
        self.precision = torch.bfloat16 if config.precision == "bfloat16" else None
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.processes = processes
        # A function, not a module: the network's parameters are to have one name.
        self.maps = torch.compile(network.forward) if config.compile else network.forward

    def forward(self, image: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """The total loss and its terms [9] for images [B, H, W, 3] uint8."""
        image = self.network.normalized(image).contiguous(memory_format=self.memory_format)
        with torch.autocast(image.device.type, self.precision) if self.precision else nullcontext():
            maps = self.maps(image)
        losses = panoptic_depth_losses(
            self.network, maps, targets, self.weights, self.processes.mean, self.pixel_heads
        )
        return losses.total, torch.stack(tuple(losses))


@dataclass
class Run:
    """A training under way."""

    config: TrainingConfig
    folder: Path
    processes: Processes
    learned: TrainingModule
    module: nn.Module  # the same, wrapped for several processes where there are several
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    step: int = 0

    @property
    def network(self) -> PanopticDepth:
        return self.learned.network

    def take(self, image: Tensor, targets: Targets, report: Report) -> float:
        """One step; returns its learning rate."""
        config, device = self.config, self.processes.device
        rate = learning_rate_at(self.step, config.steps, config.learning_rate, config.warmup_steps)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        parts = targets.split(config.accumulate)
        for index, (image_part, target_part) in enumerate(zip(image.chunk(config.accumulate), parts, strict=True)):
            last = index == len(parts) - 1
            # Gradients cross between processes once a step, with the last part.
            with nullcontext() if last else self.without_exchange():
                total, terms = self.module(image_part.to(device, non_blocking=True), target_part.to(device))
                (total / len(parts)).backward()
            report.add(terms / len(parts))
        clip_gradients(self.learned.parameters(), config.clip, config.clip_limit)
        self.optimizer.step()
        self.step += 1
        if self.average:
            self.average.update(self.network)
        return rate

    def without_exchange(self) -> AbstractContextManager[None]:
        """Gradients stay in this process."""
        return self.module.no_sync() if isinstance(self.module, DistributedDataParallel) else nullcontext()

    def save(self, report: Report | None) -> None:
        """Write the checkpoint. Only a state whose losses were numbers replaces an older one."""
        if self.processes.is_first:
            if report:
                report.check(self.step)
            average = {"steps": self.average.steps, "state": self.average.state} if self.average else None
            save_checkpoint(
                self.folder / CHECKPOINT, self.learned, self.optimizer, average, self.step, asdict(self.config)
            )

    def end_early(self, report: Report) -> None:
        """Write the checkpoint. No process ends before: torchrun ends the others as soon as one is gone."""
        self.save(report)
        self.processes.any(False)

    def result(self) -> PanopticDepth:
        """The network as it is to be used."""
        if self.average:
            self.network.load_state_dict(self.average.state)
        return self.network.to("cpu").to(memory_format=torch.contiguous_format).eval()


def start(config: TrainingConfig, taxonomy: Taxonomy, folder: Path, processes: Processes) -> Run:
    """A new training on data of these categories, or the one whose checkpoint the folder holds."""
    network = new_network(config, taxonomy)
    network.backbone.freeze(config.frozen_parts, config.frozen_norms)
    if processes.count > 1 and processes.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    learned = TrainingModule(network, config, processes)
    learned.to(processes.device).to(memory_format=memory_format).train()
    optimizer = build_optimizer(learned, config.optimizer, config.learning_rate, config.weight_decay)
    average = WeightAverage(network, config.average_decay) if config.average_decay else None
    module = across_processes(learned) if processes.count > 1 else learned
    run = Run(config, folder, processes, learned, module, optimizer, average)
    if (folder / CHECKPOINT).exists():
        run.step, stored = load_checkpoint(folder / CHECKPOINT, learned, optimizer, asdict(config))
        if average and stored:
            average.steps = stored["steps"]
            for name, tensor in stored["state"].items():
                average.state[name].copy_(tensor)
    return run


def across_processes(module: nn.Module) -> DistributedDataParallel:
    """Averages gradients over processes; each keeps norm statistics of its own."""
    newer = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    return DistributedDataParallel(module, **options)


def new_network(config: TrainingConfig, taxonomy: Taxonomy) -> PanopticDepth:
    """The network with random weights from the seed, those of an earlier training, or those of a classifier."""
    torch.manual_seed(config.seed)
    network = PanopticDepth(config.network(taxonomy))
    if config.backbone_weights:
        load_pretrained(network.backbone, network.config.backbone, config.backbone_weights)
    if config.start_from:
        earlier, facts = load_weights(Path(config.start_from))
        same_categories = ModelFacts.from_dict(facts).taxonomy.names == taxonomy.names
        take_over(network, earlier, config.start_from, same_categories)
    return network


def take_over(network: PanopticDepth, earlier: PanopticDepth, source: str, same_categories: bool) -> None:
    """Copy the weights of an earlier network; heads that it lacks, and those for other categories, start anew.

    Raises:
        ValueError: tensors have other shapes or no place, so that it was another network.
    """
    ours, theirs = network.state_dict(), earlier.state_dict()
    if not same_categories:
        theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith(CATEGORY_OUTPUTS)}
    strange = [name for name, tensor in theirs.items() if name not in ours or ours[name].shape != tensor.shape]
    if strange:
        raise ValueError(
            f"{source}: {len(strange)} tensors do not fit this network, such as {', '.join(strange[:3])}; "
            f"it has backbone {earlier.config.backbone} and width {earlier.config.width}, this one "
            f"{network.config.backbone} and {network.config.width}"
        )
    if new := sorted({".".join(name.split(".")[:2]) for name in ours.keys() - theirs.keys()}):
        print(f"train: not in {source}, so random at first: {', '.join(new)}", file=sys.stderr)
    network.load_state_dict(theirs, strict=False)


class Interruption:
    """Whether somebody wants the training to stop; acted upon between steps, where its state is whole."""

    requested = False

    def request(self, *_: object) -> None:
        self.requested = True

    def listen(self) -> None:
        """Take Ctrl-C and a scheduler's stop as requests."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.request)

    @staticmethod
    def end() -> None:
        """From here on Ctrl-C interrupts at once."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def batches(
    config: TrainingConfig, images: Mixture, first: int, workers: int, processes: Processes
) -> Iterator[tuple[Tensor, Targets] | DataError]:
    """This process's images [B, H, W, 3] uint8 and targets of the steps from `first` on, half the size first; or why
    there are none.
    """
    turn = min(max(config.half_size_steps, first), config.steps)
    for part, shrink in ((range(first, turn), 2), (range(turn, config.steps), 1)):
        samples = TrainingSamples(
            images,
            height=config.height // shrink,
            width=config.width // shrink,
            focal_length_px=config.focal_length_px / shrink,
            view=config.view,
            seed=config.seed,
        )
        batch = config.batch * shrink
        share, rest = divmod(batch, processes.count)
        if rest or share % config.accumulate:
            raise ValueError(
                f"batch {batch} does not divide into {processes.count} processes with {config.accumulate} parts each"
            )
        own = [step * batch + processes.rank * share + k for step in part for k in range(share)]
        yield from DataLoader(
            samples,
            share,
            sampler=own,
            num_workers=workers,
            worker_init_fn=start_worker,
            collate_fn=batch_of,
            pin_memory=processes.device.type == "cuda",
        )


def facts_of(config: TrainingConfig, taxonomy: Taxonomy, scores: dict[str, float | str]) -> ModelFacts:
    """What the weights file says about the training."""
    return ModelFacts(config.preset, taxonomy, config.height, config.width, config.focal_length_px, scores)


def parse_arguments(arguments: list[str] | None = None) -> tuple[TrainingConfig, argparse.Namespace]:
    """The config, from a recipe and what the command line changes of it, and the other options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="train"
    )
    parser.add_argument("folder", type=Path, metavar="OUT_DIR", help="where checkpoint, weights and curves go")
    parser.add_argument(
        "--recipe", choices=RECIPES, default="default", help="settings to begin with (default %(default)s)"
    )
    for entry in fields(TrainingConfig):
        flag = f"--{entry.name.replace('_', '-')}"
        text = f"{entry.metadata['help']} (in recipe default: {entry.default!r})"
        kind: dict[str, Any] = {"type": type(entry.default)}
        if entry.name == "data":
            kind = {"action": "append"}
        elif isinstance(entry.default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(flag, default=None, help=text.replace("%", "%%"), **kind)
    parser.add_argument("--holdout", default="", help=f"images to score the trained network on, {SYNTAX}")
    parser.add_argument("--holdout-count", type=count, help="score the first of them only (default: all)")
    parser.add_argument("--workers", type=natural, default=1, help="processes that load images (default %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default %(default)s")
    options = parser.parse_args(arguments)
    given = {f.name: getattr(options, f.name) for f in fields(TrainingConfig) if getattr(options, f.name) is not None}
    if "data" in given:
        given["data"] = tuple(given["data"])
    return changed(RECIPES[options.recipe], given), options


def main() -> None:
    interruption = Interruption()
    try:
        config, options = parse_arguments()
        if options.holdout:
            list_images(parse_source(options.holdout))  # what is wrong with it is to be said before the training
        interruption.listen()
        processes = join(options.device)
        network = train(config, options.folder, interruption, workers=options.workers, processes=processes)
        interruption.end()
        if processes.is_first:
            finish(config, network, options, processes.device)
    except (ValueError, OSError) as error:
        sys.exit(f"train: {error}")
    except KeyboardInterrupt:
        sys.exit("train: stopped; the same command goes on from here")
    finally:
        leave()


def finish(
    config: TrainingConfig, network: PanopticDepth, options: argparse.Namespace, device: torch.device
) -> None:
    """Write the weights, then score them: a failing evaluation loses no training."""
    taxonomy = open_mixture(config.data).taxonomy
    scores: dict[str, float | str] = {"training": shlex.join(["panoptic_depth_training.train", *sys.argv[1:]])}
    if config.start_from and (before := commands_of(Path(config.start_from))):
        scores["training_before"] = before
    save_weights(options.folder / WEIGHTS, network, facts_of(config, taxonomy, scores).to_dict())
    if options.holdout:
        network.to(device)
        scores |= evaluate(network, facts_of(config, taxonomy, {}), options.holdout, options.holdout_count)
        print(table(scores))
        save_weights(options.folder / WEIGHTS, network, facts_of(config, taxonomy, scores).to_dict())


def commands_of(weights: Path) -> str:
    """The commands that made weights, the first first; empty where their file does not say."""
    scores = load_weights(weights)[1].get("scores", {})
    return "; ".join(str(scores[key]) for key in ("training_before", "training") if scores.get(key))


if __name__ == "__main__":
    main()
