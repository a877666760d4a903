# SPDX-License-Identifier: Apache-2.0
"""From an image to a prediction. Start reading here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.prediction import Prediction, predict
from panoptic_depth_ros.preprocess import fit
from panoptic_depth_ros.timing import Stopwatch

if TYPE_CHECKING:
    from panoptic_depth_ros.engines import Engine


class Pipeline:
    """Runs one engine on single images of any size."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.manifest = engine.manifest

    def __call__(self, rgb: np.ndarray, camera: PinholeCamera | None, stopwatch: Stopwatch) -> Prediction:
        """Segments and depth of an image [H, W, 3] uint8 RGB; without a camera there is no metric depth."""
        with stopwatch.lap("preprocess"):
            image, placement = fit(rgb, self.manifest.height, self.manifest.width)
        with stopwatch.lap("engine"):
            outputs = self.engine.infer(image[None])
        with stopwatch.lap("prediction"):
            first = {name: values[0] for name, values in outputs.items()}
            return predict(first, self.manifest, placement, camera)

    def warm_up(self) -> None:
        """Run once on a blank image, so that the first real one does not pay for lazy set-up."""
        self.engine.infer(np.zeros((1, self.manifest.height, self.manifest.width, 3), np.uint8))
