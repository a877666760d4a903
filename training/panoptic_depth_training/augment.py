# SPDX-License-Identifier: Apache-2.0
"""From labeled images of any camera to training samples of one size and one focal length.

An image is resampled once, whatever is done to it: scale, crop or padding and mirror make one `View`. Its camera
follows the pixels, so depth stays in meters; only at the end `depth_at_focal_length` converts it to what an image
of the network's own focal length would show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from panoptic_depth_ros.camera import FISHEYE_MODEL, PinholeCamera
from panoptic_depth_ros.preprocess import PADDING_COLOR, place, resized
from panoptic_depth_ros.taxonomy import VOID_PANOPTIC_ID
from panoptic_depth_training.datasets.labeled import LabeledImage, is_sparse

MAX_LONGEST_EDGE_PX = 4096  # of a scaled image

_HUES = 180  # in 8 bits OpenCV counts hue in steps of 2 degrees
# Lens terms that change sign in a mirror: p2, s1, s2 and the tilt about y (k1 k2 p1 p2 k3 k4 k5 k6 s1 .. s4 tx ty).
_MIRRORED_TERMS = (3, 8, 9, 13)


@dataclass(frozen=True)
class ColorJitter:
    """How far colors may move, each kind of change with probability 1/2 (Liu et al., SSD, ECCV 2016)."""

    brightness: float = 32.0  # of 255, added or subtracted
    contrast: tuple[float, float] = (0.5, 1.5)  # factor
    saturation: tuple[float, float] = (0.5, 1.5)  # factor
    hue: int = 18  # steps of 2 degrees, either way


@dataclass(frozen=True)
class Augmentation:
    """How much a training image may differ from the recorded one."""

    # The image's shortest edge over the network input's height, one by chance; empty: as large as fits the input.
    sizes: tuple[float, ...] = ()
    scale: tuple[float, float] = (1.0, 1.0)  # a further factor, every ratio as likely as its inverse
    # Where a larger image is cropped and a smaller one lies in its padding: share of the room, both axes.
    shift: tuple[float, float] = (0.5, 0.5)
    mirror: float = 0.5  # probability
    color: ColorJitter = ColorJitter()


VEHICLE = Augmentation(scale=(0.9, 1.3), shift=(0.3, 0.7))
# The three steps of PanopticDepth's training, for inputs of 512x1024, 1024x2048 and 1024x2048.
_CROP_EDGES = (512, 768, 1024, 1152, 1216, 1344, 1408, 1536, 1664, 1728, 1856, 1920, 2048)
PAPER_CROP = Augmentation(sizes=tuple(edge / 512 for edge in _CROP_EDGES), shift=(0.0, 1.0))
PAPER_FULL_SCALE = Augmentation(sizes=tuple(edge / 1024 for edge in range(1024, 1537, 64)), shift=(0.0, 1.0))
FULL_FRAME = Augmentation()  # whole frames, as the released configuration has it
FULL_FRAME_SCALED = Augmentation(scale=(0.8, 1.2))  # as the paper has it: scaled, then cropped at the center

AUGMENTATIONS = {
    "vehicle": VEHICLE,
    "paper_crop": PAPER_CROP,
    "paper_full_scale": PAPER_FULL_SCALE,
    "full_frame": FULL_FRAME,
    "full_frame_scaled": FULL_FRAME_SCALED,
}


@dataclass(frozen=True)
class View:
    """Where a scaled image lies in an output of another size [px], and whether that is mirrored in the end."""

    height: int  # of the output
    width: int
    scaled_height: int  # of the whole image
    scaled_width: int
    top: int  # of the scaled image's corner in the output; negative: cropped
    left: int
    mirrored: bool = False

    @property
    def rows(self) -> slice:
        """What the image covers of the output."""
        return slice(max(self.top, 0), min(self.top + self.scaled_height, self.height))

    @property
    def columns(self) -> slice:
        """What the image covers of the output."""
        first, last = max(self.left, 0), min(self.left + self.scaled_width, self.width)
        return slice(self.width - last, self.width - first) if self.mirrored else slice(first, last)

    def camera(self, camera: PinholeCamera) -> PinholeCamera:
        """The camera of the output."""
        scaled = camera.resized(self.scaled_height, self.scaled_width)
        cx = scaled.cx + self.left
        return replace(
            scaled,
            height=self.height,
            width=self.width,
            cx=self.width - 1 - cx if self.mirrored else cx,
            cy=scaled.cy + self.top,
            distortion=_mirrored_lens(scaled) if self.mirrored else scaled.distortion,
        )

    def sampled(self, values: np.ndarray, beyond: int) -> np.ndarray:
        """A map [H, W] of the image, nearest pixels, in the output; `beyond` where the image does not reach."""
        output = np.full((self.height, self.width), beyond, values.dtype)
        rows, columns = self._source(*values.shape)
        output[self.rows, self.columns] = values.take(rows, axis=0).take(columns, axis=1)  # 5 times as fast as indexing
        return output

    def _source(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The image's row and column under the center of each output row and column that it covers."""
        v = np.arange(self.rows.start, self.rows.stop) - self.top
        u = np.arange(self.columns.start, self.columns.stop)
        u = (self.width - 1 - u if self.mirrored else u) - self.left
        return (2 * v + 1) * height // (2 * self.scaled_height), (2 * u + 1) * width // (2 * self.scaled_width)

    def scattered(self, depth: np.ndarray) -> np.ndarray:
        """Sparse depth [H, W] of the image in a smaller output: no point is lost but to a nearer one in its pixel."""
        height, width = depth.shape
        v, u = np.nonzero(depth)
        z = depth[v, u]
        v = (2 * v + 1) * self.scaled_height // (2 * height) + self.top
        u = (2 * u + 1) * self.scaled_width // (2 * width) + self.left
        u = self.width - 1 - u if self.mirrored else u
        seen = np.flatnonzero((v >= 0) & (v < self.height) & (u >= 0) & (u < self.width))
        seen = seen[np.argsort(-z[seen], kind="stable")]  # the nearest is written last
        output = np.zeros((self.height, self.width), depth.dtype)
        output[v[seen], u[seen]] = z[seen]
        return output


def augmented(
    example: LabeledImage, height: int, width: int, settings: Augmentation, rng: np.random.Generator
) -> LabeledImage:
    """A random view of the example at network size: scaled, cropped or padded, mirrored, recolored."""
    view = random_view(example.rgb.shape[0], example.rgb.shape[1], height, width, settings, rng)
    return viewed(example, view, settings.color, rng)


def viewed(example: LabeledImage, view: View, color: ColorJitter, rng: np.random.Generator) -> LabeledImage:
    """The example as a view shows it, recolored; void and unknown depth in the padding."""
    return LabeledImage(
        rgb=_padded(jittered(_covered(example.rgb, view), color, rng), view),
        panoptic_ids=view.sampled(example.panoptic_ids, beyond=VOID_PANOPTIC_ID),
        depth=_seen_depth(example.depth, view),
        camera=view.camera(example.camera) if example.camera else None,
        name=example.name,
    )


def random_view(
    image_height: int, image_width: int, height: int, width: int, settings: Augmentation, rng: np.random.Generator
) -> View:
    """A view of an image at network size."""
    if settings.sizes:
        edge = settings.sizes[rng.integers(len(settings.sizes))] * height
        scale = edge / min(image_height, image_width)
        whole = image_height * scale, image_width * scale
    else:
        placement = place(image_height, image_width, height, width)
        whole = float(placement.height), float(placement.width)
    scale = float(np.exp(rng.uniform(*np.log(settings.scale))))
    scale *= min(1.0, MAX_LONGEST_EDGE_PX / (scale * max(whole)))
    scaled_height, scaled_width = (max(1, int(length * scale + 0.5)) for length in whole)
    return View(
        height,
        width,
        scaled_height,
        scaled_width,
        top=_offset(height - scaled_height, settings.shift, rng),
        left=_offset(width - scaled_width, settings.shift, rng),
        mirrored=bool(rng.random() < settings.mirror),
    )


def _offset(room: int, shift: tuple[float, float], rng: np.random.Generator) -> int:
    """How far [px] an image moves in the room that its frame leaves (or that it has beyond the frame)."""
    first, last = (int(abs(room) * share) for share in shift)
    return int(rng.integers(first, last + 1)) * (1 if room > 0 else -1)


def jittered(rgb: np.ndarray, settings: ColorJitter, rng: np.random.Generator) -> np.ndarray:
    """The image in other colors: brightness, contrast, saturation and hue, with contrast last half of the time."""
    brightness = rng.uniform(-settings.brightness, settings.brightness) if rng.random() < 0.5 else 0.0
    contrast_is_first = rng.random() < 0.5
    contrast = rng.uniform(*settings.contrast) if rng.random() < 0.5 else 1.0
    saturation = rng.uniform(*settings.saturation) if rng.random() < 0.5 else 1.0
    hue = int(rng.integers(-settings.hue, settings.hue + 1)) if rng.random() < 0.5 else 0

    levels = _levels(np.arange(256), 1, brightness)
    if contrast_is_first:
        levels = _levels(levels, contrast, 0)
    rgb = cv2.LUT(rgb, levels)
    if saturation != 1 or hue:
        tables = np.stack([(np.arange(256) + hue) % _HUES, _levels(np.arange(256), saturation, 0), np.arange(256)], -1)
        hsv = cv2.LUT(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV), tables.astype(np.uint8)[None])
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return rgb if contrast_is_first else cv2.LUT(rgb, _levels(np.arange(256), contrast, 0))


def _levels(values: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """factor * values + offset within what 8 bits hold, [256] uint8."""
    return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def depth_at_focal_length(example: LabeledImage, focal_length_px: float) -> np.ndarray:
    """The depth [H, W] that would make the same image with another focal length: what a network can learn.

    Unknown (0) everywhere where the camera is.
    """
    if example.camera is None:
        return np.zeros_like(example.depth)
    return example.depth * np.float32(focal_length_px / example.camera.fx)


def _seen_depth(depth: np.ndarray, view: View) -> np.ndarray:
    """What the view shows of depth: nearest pixels, which would miss most points of a lidar when shrinking."""
    shrinks = view.scaled_height < depth.shape[0]
    return view.scattered(depth) if shrinks and is_sparse(depth) else view.sampled(depth, beyond=0)


def _covered(rgb: np.ndarray, view: View) -> np.ndarray:
    """The colors of the part of the output that the image covers, mean of areas when shrinking, else bilinear."""
    height, width = rgb.shape[:2]
    top, left = max(-view.top, 0), max(-view.left, 0)  # of that part in the scaled image
    rows, columns = view.rows.stop - view.rows.start, view.columns.stop - view.columns.start
    if view.scaled_height < height:
        part = resized(rgb, view.scaled_height, view.scaled_width)[top : top + rows, left : left + columns]
    elif (view.scaled_height, view.scaled_width) == (height, width):
        part = rgb[top : top + rows, left : left + columns]
    else:
        sy, sx = height / view.scaled_height, width / view.scaled_width
        # In pixel centers: u_image + 0.5 = sx * (u_part + left + 0.5).
        matrix = np.array([[sx, 0, sx * (left + 0.5) - 0.5], [0, sy, sy * (top + 0.5) - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        part = cv2.warpAffine(rgb, matrix, (columns, rows), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return cv2.flip(part, 1) if view.mirrored else part


def _padded(part: np.ndarray, view: View) -> np.ndarray:
    """The output's colors: the covered part, and the vehicle's padding around it."""
    above, below = view.rows.start, view.height - view.rows.stop
    left, right = view.columns.start, view.width - view.columns.stop
    return cv2.copyMakeBorder(part, above, below, left, right, cv2.BORDER_CONSTANT, value=PADDING_COLOR)


def _mirrored_lens(camera: PinholeCamera) -> tuple[float, ...]:
    """The distortion coefficients of the lens seen in a mirror."""
    if camera.distortion_model == FISHEYE_MODEL:
        return camera.distortion  # depends on the angle to the axis alone
    return tuple(-value if i in _MIRRORED_TERMS else value for i, value in enumerate(camera.distortion))
