# SPDX-License-Identifier: Apache-2.0
"""Can a network learn a few images by heart? If targets, losses and inference belong together, it can.

    python benchmarks/memorizing.py vehicle          # 16 rendered images; needs the train extra
    python benchmarks/memorizing.py paper            # 4

Prints panoptic quality and depth error on the very images that it trains on, without augmentation. Void in the truth
is what a network cannot draw on images so small: segments of less than a hundredth of the image, and those in which
no whole position of the finest pyramid level (stride 8) is sure to lie, such as poles.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from panoptic_depth_model.config import PRESETS
from panoptic_depth_model.deployable import Deployable
from panoptic_depth_model.panoptic_depth import PanopticDepth
from panoptic_depth_model.weights import load_weights, save_weights
from panoptic_depth_ros.arguments import count
from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID
from panoptic_depth_training.augment import depth_at_focal_length
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.datasets.labeled import EXACT, LabeledImage
from panoptic_depth_training.datasets.synthetic import SyntheticStreets
from panoptic_depth_training.facts import ModelFacts
from panoptic_depth_training.losses import LossWeights, panoptic_depth_losses
from panoptic_depth_training.metrics import DepthErrors, PanopticQuality
from panoptic_depth_training.metrics.panoptic import PanopticResult
from panoptic_depth_training.optim import build_optimizer, clip_gradients, learning_rate_at, set_learning_rate
from panoptic_depth_training.targets import Targets, batched, encode

MIN_AREA = 0.01  # of the image
MIN_SQUARE_PX = 16  # twice the stride: wherever the square lies, a position is inside
MAX_INSTANCES = 64
FIRST_SEED = 40_000


@dataclass(frozen=True)
class Lesson:
    """How a network learns its images by heart."""

    images: int
    batch: int
    steps: int
    learning_rate: float


LESSONS = {
    "compact": Lesson(images=16, batch=16, steps=900, learning_rate=2e-3),
    "vehicle": Lesson(images=16, batch=16, steps=1200, learning_rate=1e-3),
    "paper": Lesson(images=4, batch=4, steps=400, learning_rate=5e-4),
}


def is_drawable(mask: npt.NDArray[np.bool_]) -> bool:
    square = np.ones((MIN_SQUARE_PX, MIN_SQUARE_PX), np.uint8)
    inner = cv2.erode(mask.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return bool(mask.mean() >= MIN_AREA and inner.any())


def rendered(count: int, height: int, width: int) -> list[LabeledImage]:
    """Street images without the segments that are too small or too thin."""
    streets = SyntheticStreets(FIRST_SEED, count, height=height, width=width)
    images = []
    for index in range(count):
        image = streets[index]
        drawable = [i for i in np.unique(image.panoptic_ids) if is_drawable(image.panoptic_ids == i)]
        kept = np.isin(image.panoptic_ids, drawable)
        # Nor is the depth of the others asked for, which belongs to them and not to what is behind them.
        images.append(
            replace(
                image,
                panoptic_ids=np.where(kept, image.panoptic_ids, VOID_PANOPTIC_ID).astype(np.uint16),
                depth=np.where(kept, image.depth, 0).astype(np.float32),
            )
        )
    return images


def focal_length(images: list[LabeledImage]) -> float:
    return float(np.mean([image.camera.fx for image in images if image.camera]))


def targets_of(image: LabeledImage, focal_length_px: float) -> Targets:
    depth = depth_at_focal_length(image, focal_length_px)
    return encode(image.panoptic_ids, depth, CITYSCAPES, EXACT, MAX_INSTANCES)


def network_for(preset: str, height: int, width: int) -> PanopticDepth:
    """A preset that may answer with small segments, for the images are small."""
    config = PRESETS[preset]
    area_px = round(MIN_AREA / 2 * height * width)
    decisions = replace(config.decisions, label_stride=1, min_stuff_area_px=area_px)
    torch.manual_seed(0)
    return PanopticDepth(replace(config, decisions=decisions)).to(memory_format=torch.channels_last)


def learn(
    network: PanopticDepth,
    images: list[LabeledImage],
    lesson: Lesson,
    precision: torch.dtype | None,
    keep: Callable[[int], None],
) -> None:
    """Go over the images again and again, in an order of chance; now and then `keep` is told the steps so far."""
    console = Console(stderr=True)
    focal_length_px = focal_length(images)
    targets = [targets_of(image, focal_length_px) for image in images]
    pixels = torch.stack([torch.from_numpy(image.rgb) for image in images])
    optimizer = build_optimizer(network, "adamw", lesson.learning_rate, 0.0)
    generator, started_s = torch.Generator().manual_seed(0), time.monotonic()
    order: list[int] = []
    for step in range(lesson.steps):
        order = order or torch.randperm(len(images), generator=generator).tolist()
        chosen, order = order[: lesson.batch], order[lesson.batch :]
        set_learning_rate(optimizer, learning_rate_at(step, lesson.steps, lesson.learning_rate, 50))
        image = network.normalized(pixels[chosen]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", precision, enabled=precision is not None):
            maps = network.train()(image)
        losses = panoptic_depth_losses(network, maps, batched([targets[i] for i in chosen]), LossWeights())
        optimizer.zero_grad()
        losses.total.backward()
        clip_gradients(network.parameters(), "norm", 10.0)
        optimizer.step()
        if step % 25 == 24:
            terms = " ".join(f"{name} {value.item():.3f}" for name, value in losses._asdict().items())
            elapsed_s = time.monotonic() - started_s
            console.print(f"step {step + 1}/{lesson.steps}  {elapsed_s:.0f} s  {terms}", soft_wrap=True)
        if step % 100 == 99:
            keep(step + 1)
        if step % 200 == 199:
            result, abs_rel = examine(network, images)
            weakest = sorted(zip(result.pq.tolist(), CITYSCAPES.names, strict=True))[:5]
            console.print(
                f"  PQ {100 * result.all.pq:.1f}, absolute relative error {abs_rel:.3f}; weakest: "
                + ", ".join(f"{name} {100 * pq:.0f}" for pq, name in weakest),
                soft_wrap=True,
            )


def examine(network: PanopticDepth, images: list[LabeledImage]) -> tuple[PanopticResult, float]:
    """Panoptic quality, and absolute relative depth error."""
    quality, errors = PanopticQuality(CITYSCAPES), DepthErrors()
    deployable = Deployable(network.eval())
    focal_length_px = focal_length(images)
    for image in images:
        with torch.inference_mode():
            outputs = deployable(torch.from_numpy(image.rgb)[None])
        category = outputs.segment_category[0].numpy()
        instance = np.where(np.isin(category, CITYSCAPES.thing_ids), np.arange(1, len(category) + 1), 0)
        ids = np.concatenate([[VOID_PANOPTIC_ID], category * 1000 + instance]).astype(np.uint16)
        quality.add(ids[outputs.segment_ids[0].numpy()], image.panoptic_ids)
        errors.add(outputs.depth[0].numpy(), depth_at_focal_length(image, focal_length_px))
    return quality.result(), errors.result().overall.abs_rel


def begun(preset: str, height: int, width: int, weights: Path | None) -> tuple[PanopticDepth, dict[str, float]]:
    """The network, new or as it was left, and the steps and minutes that went into it."""
    if weights is None or not weights.exists():
        return network_for(preset, height, width), {"steps": 0, "minutes": 0}
    network, facts = load_weights(weights)
    return network.to(memory_format=torch.channels_last), facts["scores"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=LESSONS)
    parser.add_argument("--height", type=count, default=192)
    parser.add_argument("--width", type=count, default=384)
    for name in ("images", "batch", "steps"):
        parser.add_argument(f"--{name}", type=count, default=0, help="default: the preset's")
    parser.add_argument("--bfloat16", action="store_true", help="network in half precision, where the CPU has it")
    parser.add_argument("--weights", type=Path, help="keep the network here; if there is one already, go on with it")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    given = {name: getattr(options, name) for name in ("images", "batch", "steps") if getattr(options, name)}
    lesson = replace(LESSONS[options.preset], **given)
    height, width = options.height, options.width
    network, before = begun(options.preset, height, width, options.weights)
    images = rendered(lesson.images, height, width)
    started_s = time.monotonic()

    def spent(steps: int) -> dict[str, float | str]:
        return {"steps": before["steps"] + steps, "minutes": before["minutes"] + (time.monotonic() - started_s) / 60}

    def keep(steps: int) -> None:
        if options.weights:
            facts = ModelFacts(options.preset, CITYSCAPES, height, width, focal_length(images), spent(steps))
            save_weights(options.weights, network, facts.to_dict())

    learn(network, images, lesson, torch.bfloat16 if options.bfloat16 else None, keep)
    keep(lesson.steps)
    in_all = spent(lesson.steps)
    result, abs_rel = examine(network, images)
    table = Table("preset", "images", "size", "steps x batch", "minutes", "PQ", "things", "stuff", "abs rel")
    table.add_row(
        options.preset,
        str(lesson.images),
        f"{height}x{width}",
        f"{in_all['steps']} x {lesson.batch}",
        f"{in_all['minutes']:.0f} ({os.cpu_count()} cores)",
        *(f"{100 * part.pq:.1f}" for part in (result.all, result.things, result.stuff)),
        f"{abs_rel:.4f}",
    )
    Console().print(table)


if __name__ == "__main__":
    main()
