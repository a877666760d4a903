# SPDX-License-Identifier: Apache-2.0
"""Scores as one HTML page without scripts or fonts from elsewhere; only the frames' pictures lie beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from panoptic_depth_training.evaluate.scoring import ScoringResult
from panoptic_depth_training.evaluate.tables import Grid, decimal, grids, percent

HISTOGRAM_BINS = 20
_BAR_WIDTH_PX, _BAR_HEIGHT_PX, _LABEL_WIDTH_PX = 420, 13, 190
_COLORS = ("#2b6cb0", "#dd8a2e", "#4b9b5f")
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1500px; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; margin: 0.6em 0 1.4em; }
th, td { padding: 0.15em 0.8em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
caption { text-align: left; font-weight: 600; padding: 0.3em 0; }
.facts td { text-align: left; overflow-wrap: anywhere; }
.warning { background: #fde8e8; border-left: 5px solid #c53030; padding: 0.6em 1em; }
figure { margin: 1em 0; } figure img { width: 100%; } svg { display: block; margin: 0.6em 0; }
svg text { font: 12px system-ui, sans-serif; fill: #222; }
"""


@dataclass(frozen=True)
class FramePicture:
    """A picture of one frame."""

    title: str
    file: str  # relative to the page


def page(
    result: ScoringResult,
    title: str,
    facts: Mapping[str, str],
    best: Sequence[FramePicture],
    worst: Sequence[FramePicture],
    warning: str = "",
) -> str:
    """The page, which is well-formed XML as well.

    `facts` say what was scored and how; `warning`, if any, what is missing from the scores.
    """
    body = [f"<h1>{escape(title)}</h1>"]
    if warning:
        body.append(f'<p class="warning">{escape(warning)}</p>')
    if result.faults:
        body.append(_list(f"{len(result.faults)} images could not be scored", result.faults))
    if result.left_out_sequences:
        body.append(_list("sequences that are not in DVPQ", result.left_out_sequences))
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in facts.items())
    body.append(f'<table class="facts">{rows}</table>')
    body += [html_table(grid) for grid in grids(result)]
    body += _plots(result)
    for heading, pictures in (("worst frames", worst), ("best frames", best)):
        if pictures:
            body.append(f"<h2>{heading}</h2>")
            body += [_figure(picture) for picture in pictures]
    content = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en">\n<head><meta charset="utf-8"/>'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{content}\n</body>\n</html>\n"
    )


def html_table(grid: Grid) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in grid.columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in grid.rows)
    return f"<table><caption>{escape(grid.title)}</caption>\n<tr>{head}</tr>\n{rows}</table>"


def _plots(result: ScoringResult) -> list[str]:
    plots = []
    if result.semantic:
        series = {"IoU": result.semantic.iou}
        if result.panoptic:
            series["PQ"] = result.panoptic.pq
        plots += ["<h2>categories (%)</h2>", bars(result.semantic.names, series, 1.0, percent)]
    if result.depth and result.depth.ranges:
        names = [f"{near:g}-{far:g} m" for near, far, _ in result.depth.ranges]
        errors = np.array([scores.abs_rel for _, _, scores in result.depth.ranges])
        outside = np.array([1 - scores.delta_1 for _, _, scores in result.depth.ranges])
        longest = max([1e-3, *errors[np.isfinite(errors)].tolist(), *outside[np.isfinite(outside)].tolist()])
        series = {"abs rel": errors, "share off by more than 1.25 times": outside}
        plots += ["<h2>depth error by true depth</h2>", bars(names, series, longest, decimal)]
    for name, values in _frame_values(result).items():
        if len(values) > 1:
            plots += [f"<h2>{escape(name)} of each frame</h2>", histogram(values, name)]
    return plots


def _frame_values(result: ScoringResult) -> dict[str, list[float]]:
    """What is counted in histograms, by its name."""
    columns = {
        "PQ (%)": [frame.pq for frame in result.frames],
        "abs rel": [frame.abs_rel for frame in result.frames],
    }
    if not result.panoptic:
        columns = {"mIoU (%)": [frame.miou for frame in result.frames]} | columns
    numbers = {name: [value for value in values if value is not None] for name, values in columns.items()}
    return {name: [100 * v if "%" in name else v for v in values] for name, values in numbers.items() if values}


def bars(names: Sequence[str], series: Mapping[str, np.ndarray], longest: float, text: Callable[[float], str]) -> str:
    """Horizontal bars as SVG: a group for each name that has a value, a bar in it for each series."""
    shown = [k for k in range(len(names)) if any(not math.isnan(values[k]) for values in series.values())]
    parts, y = _legend(list(series)), 24
    for k in shown:
        middle = y + _BAR_HEIGHT_PX * len(series) / 2 + 4
        parts.append(f'<text x="{_LABEL_WIDTH_PX - 8}" y="{middle:g}" text-anchor="end">{escape(names[k])}</text>')
        for color, values in zip(_COLORS, series.values(), strict=False):
            value = float(values[k])
            length = 0.0 if math.isnan(value) else min(value / longest, 1) * _BAR_WIDTH_PX
            parts.append(
                f'<rect x="{_LABEL_WIDTH_PX}" y="{y}" width="{length:.1f}" height="{_BAR_HEIGHT_PX - 1}" '
                f'fill="{color}"/>'
                f'<text x="{_LABEL_WIDTH_PX + length + 5:.1f}" y="{y + 10}">{text(value)}</text>'
            )
            y += _BAR_HEIGHT_PX
        y += 6
    return _svg(_LABEL_WIDTH_PX + _BAR_WIDTH_PX + 60, y, parts)


def histogram(values: Sequence[float], name: str) -> str:
    """How many frames have which value, as SVG."""
    counts, edges = np.histogram(values, HISTOGRAM_BINS)
    height, left, step = 140, 40, 24
    parts = [f'<text x="{left - 6}" y="24" text-anchor="end">{counts.max()}</text>']
    for k, count in enumerate(counts.tolist()):
        tall = height * count / counts.max()
        parts.append(
            f'<rect x="{left + k * step}" y="{14 + height - tall:.1f}" width="{step - 2}" height="{tall:.1f}" '
            f'fill="{_COLORS[0]}"><title>{count} frames: {edges[k]:.3g} to {edges[k + 1]:.3g}</title></rect>'
        )
    for k in range(0, len(edges), 4):
        parts.append(f'<text x="{left + k * step}" y="{height + 30}" text-anchor="middle">{edges[k]:.3g}</text>')
    parts.append(f'<text x="{left}" y="{height + 48}">{escape(name)}; frames per bar upwards</text>')
    return _svg(left + HISTOGRAM_BINS * step + 30, height + 56, parts)


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], _LABEL_WIDTH_PX
    for color, name in zip(_COLORS, names, strict=False):
        parts.append(f'<rect x="{x}" y="4" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{x + 15}" y="13">{escape(name)}</text>')
        x += 40 + 7 * len(name)
    return parts


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}">\n{inside}\n</svg>'
    )


def _figure(picture: FramePicture) -> str:
    title = escape(picture.title)
    return (
        f'<figure><figcaption>{title}</figcaption><a href="{escape(picture.file)}">'
        f'<img src="{escape(picture.file)}" alt="{title}"/></a></figure>'
    )


def _list(heading: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="warning"><p>{escape(heading)}</p><ul>{items}</ul></div>'
