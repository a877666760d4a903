# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves in a folder: scores.json, scores.html, and pictures of the best and worst frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from panoptic_depth_ros.engines import Engine
from panoptic_depth_training.evaluate.drawing import compared, write_jpeg
from panoptic_depth_training.evaluate.page import FramePicture, page
from panoptic_depth_training.evaluate.run import Evaluation, opened
from panoptic_depth_training.evaluate.scoring import FrameScore, Rules, ScoringResult, answer
from panoptic_depth_training.evaluate.tables import decimal, percent
from panoptic_depth_training.output_files import write_whole

JSON, PAGE, FRAMES = "scores.json", "scores.html", "scores_frames"
PICTURES = 4  # of the best frames, and as many of the worst


def write_report(
    folder: Path, evaluation: Evaluation, result: ScoringResult, asked: int, warning: str
) -> tuple[Path, Path]:
    """Write what an evaluation of the first `asked` images found; returns JSON and page.

    `warning` says what is missing, empty where nothing is. An interrupted evaluation is not kept waiting for pictures.
    """
    pipeline, _, rules = opened(evaluation)
    facts = facts_of(evaluation, pipeline.engine, rules)
    contents = {
        "complete": not warning and not result.faults,
        "images_asked_for": asked,
        "model": _model(evaluation, pipeline.engine),
        "data": evaluation.data,
        "settings": _settings(rules),
        "scores": result.to_dict(),
    }
    write_whole(folder / JSON, (json.dumps(contents, indent=1, allow_nan=False) + "\n").encode())
    best, worst = ([], []) if warning else best_and_worst(result.frames)
    shown_best, shown_worst = (write_pictures(folder, evaluation, frames) for frames in (best, worst))
    title = f"{pipeline.engine.manifest.name} on {evaluation.data}"
    write_whole(folder / PAGE, page(result, title, facts, shown_best, shown_worst, warning).encode())
    remove_pictures(folder, {picture.file for picture in (*shown_best, *shown_worst)})
    return folder / JSON, folder / PAGE


def remove_pictures(folder: Path, kept: set[str]) -> None:
    """Remove an earlier evaluation's pictures."""
    for path in (folder / FRAMES).glob("[0-9]" * 6 + ".jpg"):
        if f"{FRAMES}/{path.name}" not in kept:
            path.unlink()


def best_and_worst(frames: Sequence[FrameScore], count: int = PICTURES) -> tuple[list[FrameScore], list[FrameScore]]:
    """The best frames, the best first, and the worst, the worst first; of few frames each is in one list."""
    ranked = sorted(frames, key=lambda frame: frame.rank, reverse=True)
    num_worst = min(count, len(ranked) // 2)
    return ranked[: min(count, len(ranked) - num_worst)], ranked[len(ranked) - num_worst :][::-1]


def write_pictures(folder: Path, evaluation: Evaluation, frames: Sequence[FrameScore]) -> list[FramePicture]:
    """Ask the model again about some frames and draw what it says."""
    pipeline, images, rules = opened(evaluation)
    (folder / FRAMES).mkdir(exist_ok=True)
    pictures = []
    for frame in frames:
        image = images[frame.index]
        name = f"{FRAMES}/{frame.index:06d}.jpg"
        write_jpeg(folder / name, compared(image, answer(pipeline, image), rules))
        pictures.append(FramePicture(_caption(frame), name))
    return pictures


def _caption(frame: FrameScore) -> str:
    parts = [
        f"PQ {percent(frame.pq)} %" if frame.pq is not None else "",
        f"mIoU {percent(frame.miou)} %" if frame.miou is not None else "",
        f"abs rel {decimal(frame.abs_rel)}" if frame.abs_rel is not None else "",
    ]
    return ", ".join([frame.name, *filter(None, parts)])


def facts_of(evaluation: Evaluation, engine: Engine, rules: Rules) -> dict[str, str]:
    """What was scored and how, in words."""
    manifest, depth = engine.manifest, rules.settings.depth
    facts = {
        "model": f"{evaluation.model} ({manifest.name} {manifest.version}, preset {manifest.preset})",
        "weights": f"SHA-256 {manifest.digest}",
        "engine": engine.description,
        "network input": f"{manifest.height}x{manifest.width} px, focal length {manifest.focal_length_px:g} px",
        "data": evaluation.data,
        "resolution": "the truth's own; the answers are enlarged as on the vehicle",
    }
    if rules.has_categories and not rules.has_segments:
        facts["categories"] = "merged as in the data set's labels: mIoU over those that occur in the truth, no PQ"
    if rules.blank_depth_m is not None:
        facts["depth"] = f"truth {depth.min_depth_m:g} to {depth.max_depth_m:g} m, averaged per {depth.averaging}"
        if depth.median_scaling:
            facts["depth"] += ", each image scaled by the median of its truth: the errors say nothing about meters"
        facts["depth called endless (sky)"] = f"counts as {rules.blank_depth_m:g} m where the truth has a depth"
    if rules.windows:
        windows = ", ".join(map(str, rules.windows))
        facts["video"] = f"windows of {windows} frames; instances are numbered as the model does it"
    return facts


def _model(evaluation: Evaluation, engine: Engine) -> dict[str, object]:
    manifest = engine.manifest
    return {
        "path": str(evaluation.model),
        "name": manifest.name,
        "version": manifest.version,
        "preset": manifest.preset,
        "digest": manifest.digest,
        "engine": engine.description,
        "height": manifest.height,
        "width": manifest.width,
        "focal_length_px": manifest.focal_length_px,
    }


def _settings(rules: Rules) -> dict[str, object]:
    depth, protocol = asdict(rules.settings.depth), rules.settings.protocol
    return {
        "resolution": "of the truth",
        "depth": depth | {"range_edges_m": list(rules.settings.depth.range_edges_m)},
        "predicted_none_counts_as_m": rules.blank_depth_m,
        "dpq_protocol": protocol.name,
        "absent_categories_in_dpq": protocol.absent,
        "epsilon_in_dpq": protocol.epsilon,
        "video_windows": list(rules.windows),
        "things_without_instances": f"a crowd in PQ, {protocol.instance_zero} in DPQ",
        "merged_categories": rules.has_categories and not rules.has_segments,
    }
