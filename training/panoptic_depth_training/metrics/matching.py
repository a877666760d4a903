# SPDX-License-Identifier: Apache-2.0
"""Which true and which predicted segments are the same one (Kirillov et al., CVPR 2019).

Maps hold panoptic ids, ``category * 1000 + instance`` and 65535 for void. An image is read once, into a table of
how many pixels each pair of a true and a predicted segment shares; everything else follows from that table.
H, W: image; R: runs; P: pairs; K: categories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_PANOPTIC_ID

MATCH_IOU = 0.5  # above one half, a segment can match one other at most
IGNORED_SHARE = 0.5  # a prediction with more than this on unlabeled ground is not held against the network
_ID_BITS = 16


@dataclass(frozen=True)
class Matching:
    """The segments of an image that count, T true and G predicted ones, and the M pairs of them that match."""

    true_category: np.ndarray  # [T]
    true_area: np.ndarray  # [T] px
    found: np.ndarray  # [T] bool
    predicted_category: np.ndarray  # [G]
    predicted_area: np.ndarray  # [G] px
    right: np.ndarray  # [G] bool
    matched_category: np.ndarray  # [M]
    iou: np.ndarray  # [M]


def pair_runs(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of pixels with the same pair of ids, in reading order: the pairs [R] int64 and where they start [R].

    Labels change a few ten thousand times in an image of two million pixels; to look for the changes is ten times
    faster than to sort or to count pixels.
    """
    if prediction.shape != truth.shape or truth.size == 0:
        raise ValueError(
            f"prediction {prediction.shape} and truth {truth.shape}: expected maps of one size; resize the prediction"
        )
    flat_prediction = _as_uint16("prediction", prediction).ravel()
    flat_truth = _as_uint16("truth", truth).ravel()
    changes = flat_prediction[1:] != flat_prediction[:-1]
    changes |= flat_truth[1:] != flat_truth[:-1]
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    pairs = flat_truth[starts].astype(np.int64) << _ID_BITS | flat_prediction[starts]
    return pairs, starts


def _as_uint16(name: str, ids: np.ndarray) -> np.ndarray:
    if ids.dtype in (np.uint8, np.uint16):
        return ids.astype(np.uint16, copy=False)
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} has type {ids.dtype}; expected integer ids")
    if ids.min() < 0 or ids.max() > VOID_PANOPTIC_ID:
        raise ValueError(
            f"{name} holds ids {ids.min()} to {ids.max()}; expected category * {LABEL_DIVISOR} + instance "
            f"with {VOID_PANOPTIC_ID} for void"
        )
    return ids.astype(np.uint16)


def summed(pairs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair once, ascending [P], and the sums of its rows in values [R, C]: [P, C] int64."""
    order = np.argsort(pairs, kind="stable")
    pairs = pairs[order]
    starts = np.concatenate([[0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1])
    return pairs[starts], np.add.reduceat(values[order], starts, axis=0, dtype=np.int64)


def split(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted ids [P] of pairs."""
    return pairs >> _ID_BITS, pairs & VOID_PANOPTIC_ID


def check_categories(pairs: np.ndarray, num_categories: int) -> None:
    """Raise ValueError unless all ids of the pairs belong to a category or are void."""
    for name, ids in zip(("truth", "prediction"), split(pairs), strict=True):
        strange = ids[(ids >= num_categories * LABEL_DIVISOR) & (ids != VOID_PANOPTIC_ID)]
        if len(strange):
            raise ValueError(
                f"{name} holds id {strange[0]}, category {strange[0] // LABEL_DIVISOR}; expected categories below "
                f"{num_categories} or {VOID_PANOPTIC_ID} for void; map the data set's labels to the taxonomy first"
            )


def match_segments(
    pairs: np.ndarray, pixels: np.ndarray, num_categories: int, crowd_categories: tuple[int, ...] = ()
) -> Matching:
    """Match the segments of one image (or of a window of frames that share their ids).

    ``pairs`` [P], each once, with their ``pixels`` [P] > 0; in ``crowd_categories`` a true instance 0 is a crowd.
    """
    truth_ids, prediction_ids = split(pairs)
    truth_ids, truth = np.unique(truth_ids, return_inverse=True)  # from here on, truth and prediction are positions
    prediction_ids, prediction = np.unique(prediction_ids, return_inverse=True)
    truth_category = np.minimum(truth_ids // LABEL_DIVISOR, num_categories)  # void's 65 becomes K, 'no label'
    prediction_category = np.minimum(prediction_ids // LABEL_DIVISOR, num_categories)
    is_void = truth_ids == VOID_PANOPTIC_ID
    is_crowd = (truth_ids % LABEL_DIVISOR == 0) & np.isin(truth_category, crowd_categories)
    is_counted = ~is_void & ~is_crowd
    same_category = truth_category[truth] == prediction_category[prediction]

    truth_area = np.bincount(truth, pixels)
    prediction_area = np.bincount(prediction, pixels)
    on_void = np.bincount(prediction, pixels * is_void[truth])
    on_crowd = np.bincount(prediction, pixels * (is_crowd[truth] & same_category))

    candidate = np.flatnonzero(same_category & is_counted[truth])
    truth, prediction, shared = truth[candidate], prediction[candidate], pixels[candidate]
    iou = shared / (truth_area[truth] + prediction_area[prediction] - shared - on_void[prediction])
    matched = iou > MATCH_IOU
    found, right = np.zeros(len(truth_ids), bool), np.zeros(len(prediction_ids), bool)
    found[truth[matched]] = True
    right[prediction[matched]] = True
    judged = right | ((on_void + on_crowd) / prediction_area <= IGNORED_SHARE)
    return Matching(
        true_category=truth_category[is_counted],
        true_area=truth_area[is_counted],
        found=found[is_counted],
        predicted_category=prediction_category[judged],
        predicted_area=prediction_area[judged],
        right=right[judged],
        matched_category=truth_category[truth[matched]],
        iou=iou[matched],
    )
