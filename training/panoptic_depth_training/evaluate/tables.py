# SPDX-License-Identifier: Apache-2.0
"""Scores as tables of text: for the terminal, the page, and the few numbers that travel with a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from rich.table import Table

from panoptic_depth_training.evaluate.scoring import ScoringResult
from panoptic_depth_training.metrics.depth import DepthScores
from panoptic_depth_training.metrics.depth_panoptic import (
    DEPTH_IGNORED,
    DepthPanopticResult,
    DepthPanopticSettings,
)
from panoptic_depth_training.metrics.panoptic import SIZE_EDGES, PanopticResult, ThingSizes

NOTHING = "-"  # where there is no score
_DIGITS = 4  # of what is written into manifests
_NUMBERS = ("images", "miou", "pq", "pq_things", "pq_stuff", "dpq", "dpq_things", "dpq_stuff")
_DEPTH_NUMBERS = ("abs_rel", "delta_1")
_SCALED = "_median_scaled"  # behind the names of depth errors that say nothing about meters
_IOU = "iou_"  # before a category's name


@dataclass(frozen=True)
class Grid:
    """A table; the first column holds names, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grids(result: ScoringResult) -> list[Grid]:
    """The tables of all that was scored, the shortest first."""
    tables = [_summary(result)]
    if result.panoptic:
        tables.append(_panoptic(result.panoptic))
    if result.thing_sizes:
        tables.append(_thing_sizes(result.thing_sizes))
    if result.depth_panoptic:
        tables.append(_depth_panoptic("DPQ (%)", result.depth_panoptic))
    if result.video:
        tables.append(_depth_panoptic(f"DVPQ of {result.video.sequences} sequences (%)", result.video))
    if result.depth:
        tables.append(_depth(result))
    if result.panoptic or result.semantic:
        tables.append(_categories(result))
    return tables


def rich_table(grid: Grid) -> Table:
    """The table for a terminal."""
    table = Table(title=grid.title, title_justify="left")
    for position, column in enumerate(grid.columns):
        table.add_column(column, justify="right" if position else "left", no_wrap=not position)
    for row in grid.rows:
        table.add_row(*row)
    return table


def _summary(result: ScoringResult) -> Grid:
    rows = [("images", str(len(result.frames)))]
    if result.panoptic:
        rows.append(("PQ (%)", percent(result.panoptic.all.pq)))
    if result.semantic:
        rows += [
            ("mIoU (%)", percent(result.semantic.miou)),
            ("pixels of the right category (%)", percent(result.semantic.pixel_accuracy)),
        ]
    if result.depth_panoptic:
        rows.append(("DPQ (%)", percent(result.depth_panoptic.dpq.all)))
    if result.video:
        rows += [("DVPQ (%)", percent(result.video.dvpq.all)), ("VPQ (%)", percent(result.video.vpq.all))]
    if result.depth:
        overall = result.depth.overall
        scaled = ", median-scaled" if result.depth.settings.median_scaling else ""
        rows += [
            (f"abs rel{scaled}", decimal(overall.abs_rel)),
            (f"rmse (m){scaled}", decimal(overall.rmse, 2)),
            (f"delta < 1.25 (%){scaled}", percent(overall.delta_1)),
            ("pixels with true depth that were called sky (%)", percent(result.blank_share)),
        ]
    return Grid("summary", ("score", "value"), tuple(rows))


def _panoptic(result: PanopticResult) -> Grid:
    groups = (("all", result.all), ("things", result.things), ("stuff", result.stuff))
    rows = tuple(
        (name, percent(group.pq), percent(group.sq), percent(group.rq), str(group.num_categories))
        for name, group in groups
    )
    return Grid("panoptic quality (%)", ("", "PQ", "SQ", "RQ", "categories"), rows)


def _thing_sizes(sizes: ThingSizes) -> Grid:
    edges = [f"{100 * edge:g}" for edge in SIZE_EDGES]
    names = (f"below {edges[0]} %", *(f"{a} to {b} %" for a, b in pairwise(edges)), f"above {edges[-1]} %")
    rows = tuple(
        (name, str(true), _share(found, true), str(predicted), _share(right, predicted))
        for name, true, found, predicted, right in zip(
            names, *(n.tolist() for n in (sizes.true, sizes.found, sizes.predicted, sizes.right)), strict=True
        )
    )
    return Grid("things by their share of the image", ("size", "true", "found (%)", "predicted", "right (%)"), rows)


def _share(part: int, whole: int) -> str:
    return percent(part / whole) if whole else NOTHING


def _depth_panoptic(title: str, result: DepthPanopticResult) -> Grid:
    rows = []
    for threshold in (DEPTH_IGNORED, *result.settings.thresholds):
        within = f"within {100 * threshold:g} %" if threshold else "any depth"
        for window in result.settings.windows:
            at = result.at[threshold, window]
            frames = f", windows of {window}" if len(result.settings.windows) > 1 else ""
            rows.append((within + frames, percent(at.all.pq), percent(at.things.pq), percent(at.stuff.pq)))
    mean = result.dvpq
    rows.append(("mean, any depth left out", percent(mean.all), percent(mean.things), percent(mean.stuff)))
    title += f", protocol {result.settings.name}: pixels with another depth lose their label; "
    return Grid(title + _absent(result.settings), ("depth", "all", "things", "stuff"), tuple(rows))


def _absent(settings: DepthPanopticSettings) -> str:
    if settings.absent == "left_out":
        return "categories that do not occur are left out"
    if settings.absent == "zero":
        return "categories without a match count 0"
    if settings.epsilon:  # 0 / epsilon
        return f"categories without a match count 0, for {settings.epsilon:g} is added to denominators"
    return "categories without a match are 0/0, and so is a mean with one of them"


def _depth(result: ScoringResult) -> Grid:
    assert result.depth
    settings = result.depth.settings
    crop = settings.crop
    window = f", rows {crop.top:.3f}-{crop.bottom:.3f} and columns {crop.left:.3f}-{crop.right:.3f}" if crop else ""
    scaling = ", scaled by the median of the truth" if settings.median_scaling else ""
    title = f"depth, mean over {settings.averaging}s, truth below {settings.max_depth_m:g} m{window}{scaling}"
    errors = ("abs rel", "sq rel (m)", "rmse (m)", "rmse log", "silog", "delta 1 (%)", "delta 2 (%)", "delta 3 (%)")
    columns = ("true depth", "images", "pixels", *errors)
    ranges = [(f"{near:g}-{far:g} m", scores) for near, far, scores in result.depth.ranges]
    return Grid(title, columns, tuple(_depth_row(*row) for row in [("all", result.depth.overall), *ranges]))


def _depth_row(name: str, scores: DepthScores) -> tuple[str, ...]:
    errors = (scores.abs_rel, scores.sq_rel, scores.rmse, scores.rmse_log)
    return (
        name,
        str(scores.images),
        str(scores.pixels),
        *(decimal(error) for error in errors),
        decimal(scores.silog, 1),
        *(percent(share) for share in (scores.delta_1, scores.delta_2, scores.delta_3)),
    )


def _categories(result: ScoringResult) -> Grid:
    """One row for each category that occurs."""
    semantic, panoptic = result.semantic, result.panoptic
    assert semantic
    rows = []
    for k, name in enumerate(semantic.names):
        counts: tuple[str, ...] = ()
        if panoptic:
            ratios = (panoptic.pq[k], panoptic.sq[k], panoptic.rq[k])
            segments = (panoptic.tp[k], panoptic.fp[k], panoptic.fn[k])
            counts = (*(percent(float(ratio)) for ratio in ratios), *(str(int(count)) for count in segments))
        if not math.isnan(semantic.iou[k]) or (panoptic and not math.isnan(panoptic.pq[k])):
            rows.append((name, percent(float(semantic.iou[k])), *counts))
    columns = ("PQ", "SQ", "RQ", "matched", "invented", "missed") if panoptic else ()
    return Grid("categories (%)", ("category", "IoU", *columns), tuple(rows))


def percent(share: float) -> str:
    return NOTHING if math.isnan(share) else f"{100 * share:.1f}"


def decimal(value: float, digits: int = 3) -> str:
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}"


def flat(result: ScoringResult) -> dict[str, float | str]:
    """The scores that travel with a model; what was not scored is left out."""
    scores: dict[str, float] = {"images": len(result.frames)}
    if result.semantic:
        scores["miou"] = result.semantic.miou
    if result.panoptic:
        groups = result.panoptic
        scores |= {"pq": groups.all.pq, "pq_things": groups.things.pq, "pq_stuff": groups.stuff.pq}
    if result.depth:
        numbers = (result.depth.overall.abs_rel, result.depth.overall.delta_1)
        ending = _SCALED if result.depth.settings.median_scaling else ""
        scores |= {name + ending: number for name, number in zip(_DEPTH_NUMBERS, numbers, strict=True)}
    if result.depth_panoptic:
        dpq = result.depth_panoptic.dpq
        scores |= {"dpq": dpq.all, "dpq_things": dpq.things, "dpq_stuff": dpq.stuff}
    if result.semantic:
        named = zip(result.semantic.names, result.semantic.iou.tolist(), strict=True)
        scores |= {f"{_IOU}{name.replace(' ', '_')}": iou for name, iou in named}
    return {name: round(float(score), _DIGITS) for name, score in scores.items() if not math.isnan(score)}


def is_flat(name: str) -> bool:
    """Whether `flat` gives a score of this name, of some data set."""
    return name in _NUMBERS or name.removesuffix(_SCALED) in _DEPTH_NUMBERS or name.startswith(_IOU)


def table(scores: Mapping[str, float | str]) -> str:
    """Flat scores for a terminal."""
    lines = (
        f"{name:<18} {value:8.3f}" if isinstance(value, float) else f"{name:<18} {value}"
        for name, value in scores.items()
    )
    return "\n".join(lines)
