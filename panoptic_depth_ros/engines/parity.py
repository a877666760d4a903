# SPDX-License-Identifier: Apache-2.0
"""Do two engines say the same? Compilers have got networks wrong in silence, so every built engine has to show it.

Engines round differently, and where two segments have almost the same score their rows, hence their ids, may swap.
So segments are matched by category and overlap first; what is compared then are pixels, depths, scores.
Shapes: h, w the network's size; N rows of the segment table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np

from panoptic_depth_ros.engines.errors import EngineError

Outputs = dict[str, np.ndarray]

PROBES = 4
_SHAPES_PER_PROBE = 14


@dataclass(frozen=True)
class Parity:
    """How two engines compare over all probes."""

    segments: int  # that the reference found
    equal_pixels: float  # share of pixels that both give to the same segment
    depth_median: float  # relative difference of depth where the segments agree
    depth_p99: float
    score_difference: float  # median over matched segments
    area_difference: float  # of the table's areas, relative; median over matched segments
    mean_depth_difference: float  # of the table's depths, likewise


# What rounding may do, by the graph's arithmetic. Sums in another order differ in the last bits; of float16 graphs ONNX
# Runtime computes much in float32 on the CPU; int8 graphs flip the last of eight bits here and there. For scale: the
# compact model in bfloat16, which is eight times coarser than float16, keeps 98.3 % of the pixels with a median depth
# difference of 0.5 %. A miscompiled layer is far outside: whole segments vanish.
LIMITS = {
    "float32": Parity(0, 0.995, 1e-3, 2e-2, 1e-2, 1e-2, 1e-2),
    "float16": Parity(0, 0.97, 1e-2, 0.15, 5e-2, 0.05, 0.05),
    "int8": Parity(0, 0.93, 3e-2, 0.4, 0.1, 0.1, 0.1),
}


def probe_images(batch: int, height: int, width: int) -> np.ndarray:
    """Pictures [PROBES, batch, h, w, 3] uint8, the same every time: a sky, a road, and shapes that stand on it."""
    generator = np.random.default_rng(20_22)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = y / height, x / width
    pictures = [_picture(generator, y, x) for _ in range(PROBES * batch)]
    return np.stack(pictures).reshape(PROBES, batch, height, width, 3)


def _picture(generator: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """One picture [h, w, 3] uint8; ``y`` and ``x`` [h, w] run from 0 to 1."""
    horizon = generator.uniform(0.35, 0.5)
    picture = np.where((y < horizon)[..., None], 150 + 90 * (1 - y[..., None]), 60 + 80 * y[..., None])
    picture = picture * generator.uniform(0.85, 1.0, 3)
    road = np.abs(x - 0.5) < 0.05 + 0.9 * (y - horizon)
    picture[road] = [90, 88, 92]
    for _ in range(_SHAPES_PER_PROBE):
        foot = generator.uniform(horizon + 0.02, 0.95)
        tall = (foot - horizon) * generator.uniform(0.4, 1.6)
        broad = tall * generator.uniform(0.15, 0.9)
        left = generator.uniform(-0.05, 0.95)
        inside = (y < foot) & (y > foot - tall) & (x > left) & (x < left + broad)
        picture[inside] = generator.uniform(0, 230, 3) * (0.6 + 0.4 * (foot - y[inside, None]) / tall)
    return np.clip(picture + generator.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


def compare(reference: Iterable[Outputs], other: Iterable[Outputs]) -> Parity:
    """The figures over batches of outputs; each pair is compared before the next one is asked for."""
    equal, total, segments = 0, 0, 0
    depth, scores, areas, mean_depths = [], [], [], []
    for ours, theirs in zip(reference, other, strict=True):
        for row in range(len(ours["segment_ids"])):
            a, b = ({name: values[row] for name, values in outputs.items()} for outputs in (ours, theirs))
            matches = match_segments(a, b)
            same = matches[a["segment_ids"]] == b["segment_ids"].astype(np.int32)
            equal, total = equal + int(same.sum()), total + same.size
            depth.append(_relative(a["depth"][same], b["depth"][same]))
            rows = np.flatnonzero(matches[1 : 1 + len(a["segment_score"])] > 0)
            rows_b = matches[rows + 1] - 1
            segments += len(np.setdiff1d(a["segment_ids"], [0]))
            scores.append(np.abs(a["segment_score"][rows] - b["segment_score"][rows_b]))
            areas.append(_relative(a["segment_area"][rows], b["segment_area"][rows_b]))
            mean_depths.append(_relative(a["segment_depth"][rows], b["segment_depth"][rows_b]))
    differences = np.concatenate(depth)
    return Parity(
        segments=segments,
        equal_pixels=equal / max(total, 1),
        depth_median=_quantile(differences, 0.5),
        depth_p99=_quantile(differences, 0.99),
        score_difference=_quantile(np.concatenate(scores), 0.5),
        area_difference=_quantile(np.concatenate(areas), 0.5),
        mean_depth_difference=_quantile(np.concatenate(mean_depths), 0.5),
    )


def match_segments(a: Outputs, b: Outputs) -> np.ndarray:
    """For each segment id of ``a`` [256] int32 the id of ``b`` that is the same segment, -1 for none; void is void.

    Pairs are taken by falling overlap; both must have one category, and each segment is used once.
    """
    pairs = a["segment_ids"].astype(np.int64) * 256 + b["segment_ids"]
    overlap = np.bincount(pairs.ravel(), minlength=256 * 256)
    matches = np.full(256, -1, np.int32)
    matches[0] = 0
    taken = {0}
    for pair in np.argsort(-overlap, kind="stable")[: np.count_nonzero(overlap)]:
        i, j = divmod(int(pair), 256)
        if matches[i] >= 0 or j in taken or i == 0:
            continue
        if _category(a, i) == _category(b, j) is not None:
            matches[i] = j
            taken.add(j)
    return matches


def _category(outputs: Outputs, segment_id: int) -> int | None:
    categories = outputs["segment_category"]
    return int(categories[segment_id - 1]) if segment_id <= len(categories) else None


def check(parity: Parity, arithmetic: str) -> None:
    """Refuse an engine that differs from the reference by more than rounding of this arithmetic explains.

    Raises:
        EngineError: with the figures that are outside.
    """
    limits = asdict(LIMITS[arithmetic])
    outside = []
    for name, value in asdict(parity).items():
        if name == "segments":
            continue
        too_far = value < limits[name] if name == "equal_pixels" else value > limits[name]
        if too_far or np.isnan(value):
            outside.append(f"{name} {value:.4g} (limit {limits[name]:g})")
    if outside:
        raise EngineError(
            f"the built engine differs from ONNX Runtime on the probe images: {', '.join(outside)}; it was not kept. "
            "Take another TensorRT release, or device:=cuda or cpu"
        )


def measure(
    reference: Callable[[np.ndarray], Outputs], other: Callable[[np.ndarray], Outputs], images: np.ndarray
) -> Parity:
    """Run the probe images through both."""
    return compare(map(reference, images), map(other, images))


def _relative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| / |a|; NaN, which is no agreement, becomes infinite unless both are NaN."""
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    difference = np.abs(a - b) / np.maximum(np.abs(a), 1e-6)
    return np.where(np.isnan(a) & np.isnan(b), 0.0, np.nan_to_num(difference, nan=np.inf))


def _quantile(values: np.ndarray, share: float) -> float:
    """Infinite values are legal; of nothing it is 0."""
    return float(np.sort(values)[int(share * (len(values) - 1))]) if len(values) else 0.0
