# SPDX-License-Identifier: Apache-2.0
"""The light of a rendered street: sun, sky, air, what surfaces send on, and the sensor's own marks.

N is the number of points that are lit at once. Colors are linear RGB until `expose`; vectors and colors have their
channels first, [3, N].
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from panoptic_depth_training.datasets import street_noise
from panoptic_depth_training.datasets.street_paint import BRIGHTEST, DARKEST, Paint
from panoptic_depth_training.datasets.street_surface import dot

NO_SUN = 0.05  # a sun that is weaker casts no shadow that shows


@dataclass(frozen=True)
class Light:
    """Sun, sky, air, and what the rain left."""

    to_sun: np.ndarray  # [3] unit
    sun: np.ndarray  # [3]
    zenith: np.ndarray  # [3]
    horizon: np.ndarray  # [3]
    clouds: float  # 0 clear .. 1 overcast
    haze: float  # share lost in a meter
    cloud_shift: np.ndarray  # [2] where in the noise the clouds are cut from
    wet: float = 0.0  # 0 dry .. 1 soaked ground

    @classmethod
    def random(cls, rng: np.random.Generator) -> Light:
        clouds = float(rng.choice([rng.uniform(0, 0.5), rng.uniform(0.8, 1.0)], p=[0.6, 0.4]))
        elevation, azimuth = np.radians(rng.uniform(14, 62)), rng.uniform(0, 2 * np.pi)
        to_sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
        warm = np.clip(1.3 - np.degrees(elevation) / 45, 0, 1)
        sun = np.array([1.0, 0.95 - 0.15 * warm, 0.88 - 0.35 * warm]) * rng.uniform(2.2, 3.2)
        overcast = np.clip((clouds - 0.6) / 0.3, 0, 1)
        blue, gray = np.array([0.22, 0.42, 0.85]), np.full(3, 0.85) * rng.uniform(0.8, 1.1)
        pale = np.array([0.75, 0.85, 0.98]) * rng.uniform(0.85, 1.1)
        return cls(
            to_sun=to_sun.astype(np.float32),
            sun=(sun * (1 - 0.96 * overcast)).astype(np.float32),
            zenith=(blue * (1 - overcast) + gray * overcast).astype(np.float32),
            horizon=(pale * (1 - overcast) + gray * 1.1 * overcast).astype(np.float32),
            clouds=clouds,
            haze=float(rng.choice([rng.uniform(0.0003, 0.0015), rng.uniform(0.002, 0.007)], p=[0.75, 0.25])),
            cloud_shift=rng.uniform(0, street_noise.SIZE, 2).astype(np.float32),
            wet=float(rng.uniform(0.3, 1.0)) if overcast > 0 and rng.random() < 0.4 else 0.0,
        )

    @property
    def has_sun(self) -> bool:
        return bool(self.sun.max() > NO_SUN)

    def sky(self, directions: np.ndarray) -> np.ndarray:
        """Color [3, N] of the sky in unit directions [3, N]."""
        x, y, z = directions
        up = np.clip(z, 0.0, 1.0)
        spread = 28 / (up + 0.12)
        amount = 0.5 + 0.5 * street_noise.sample(
            street_noise.billows(), x * spread + self.cloud_shift[0], y * spread + self.cloud_shift[1]
        )
        cover = np.clip((amount - 0.75 + 0.75 * self.clouds) * 2.2, 0, 1) * np.clip(up * 5 + 0.2, 0, 1)
        near_sun = np.clip(dot(self.to_sun, directions), 0, 1)
        glow = (0.12 * _power(near_sun, 4) + 2.0 * _power(near_sun, 10)) * (1 - 0.7 * cover)
        height, cloud = up**0.45, 1.15 - 0.35 * amount
        color = np.empty_like(directions)
        for channel in range(3):
            horizon = self.horizon[channel]
            clear = horizon + (self.zenith[channel] - horizon) * height
            color[channel] = clear + (horizon * cloud - clear) * cover + self.sun[channel] * glow
        return color


def light_up(
    paint: Paint, normal: np.ndarray, view: np.ndarray, light: Light, sunlit: np.ndarray, open_sky: np.ndarray
) -> np.ndarray:
    """Color [3, N] that leaves painted points with normals [3, N]. View [3, N] is the unit direction of sight;
    sunlit [N] is 0 in shadow; open_sky [N] is the share of the sky that a point sees."""
    direct = np.clip(dot(light.to_sun, normal), 0, 1) * sunlit
    upward = 0.5 + 0.5 * normal[2]
    above, below = 1.15 * open_sky * upward, 1.15 * open_sky * (1 - upward)
    color = np.clip(paint.albedo, DARKEST, BRIGHTEST)
    for channel in range(3):
        sky = 0.55 * light.zenith[channel] + 0.45 * light.horizon[channel]
        color[channel] *= light.sun[channel] * direct + sky * above + 0.22 * light.horizon[channel] * below + paint.glow
    if np.any(paint.gloss):
        _varnish(color, normal, np.asarray(paint.gloss, np.float32), view, light, open_sky)
    return color


def _varnish(
    color: np.ndarray, normal: np.ndarray, gloss: np.ndarray, view: np.ndarray, light: Light, open_sky: np.ndarray
) -> None:
    """Mix what a varnished surface mirrors into the color [3, N]: sky above, street below."""
    cosine = np.clip(-dot(normal, view), 0, 1)
    mirror = gloss * (0.25 + 0.75 * _power(1 - cosine, 2))
    up = view[2] + 2 * cosine * normal[2]
    toward_sun = dot(light.to_sun, view) + 2 * cosine * dot(light.to_sun, normal)
    height, share = np.clip(up, 0, 1), np.clip(up * 6 + 0.3, 0, 1)
    glint = 1.5 * _power(np.clip(toward_sun, 0, 1), 8)
    seen = 0.3 + 0.7 * open_sky
    for channel in range(3):
        horizon = light.horizon[channel]
        above = horizon + (light.zenith[channel] - horizon) * height
        mirrored = (0.9 * above - 0.12 * horizon) * share + 0.12 * horizon + light.sun[channel] * glint
        color[channel] += (mirrored * seen - color[channel]) * mirror


def _power(base: np.ndarray, doublings: int) -> np.ndarray:
    """The base to the power 2, 4, 8, 16 ..."""
    result = np.square(base)
    for _ in range(doublings - 1):
        np.square(result, out=result)
    return result


def through_air(color: np.ndarray, distance: np.ndarray, light: Light) -> None:
    """Haze takes the color [3, N] of far points toward the horizon's, in place."""
    clear = np.exp(-light.haze * distance)
    for channel in range(3):
        color[channel] -= light.horizon[channel]
        color[channel] *= clear
        color[channel] += light.horizon[channel]


# The sensor


@dataclass(frozen=True)
class Sensor:
    """How a camera turns light into numbers."""

    brightness: float
    white: np.ndarray  # [3] gains
    contrast: float
    noise: float  # in 8-bit steps
    blur: float  # [px] at 512 columns
    vignette: float
    jpeg_quality: int  # 1 .. 100

    @classmethod
    def random(cls, rng: np.random.Generator) -> Sensor:
        return cls(
            brightness=float(rng.uniform(0.75, 1.3)),
            white=np.array([rng.uniform(0.92, 1.08), 1.0, rng.uniform(0.9, 1.1)], np.float32),
            contrast=float(rng.uniform(0.9, 1.15)),
            noise=float(rng.uniform(0.5, 4.0)),
            blur=float(rng.choice([0.0, rng.uniform(0.3, 0.8)])),
            vignette=float(rng.uniform(0.0, 0.25)),
            jpeg_quality=int(rng.integers(60, 100)),
        )

    def expose(self, light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """RGB [H, W, 3] uint8 from linear light [H, W, 3] float32, before compression."""
        height, width = light.shape[:2]
        gain = 0.30 * self.brightness / max(float(np.minimum(light[height // 3 :], 3.0).mean()), 1e-3)
        exposed = cv2.multiply(light, self._gains(height, width, gain))
        if self.blur:
            exposed = cv2.GaussianBlur(exposed, (0, 0), self.blur * width / 512)
        # Film-like: highlights bend, and twice white is still below the limit.
        tone = exposed * (1.15 + (1.15 / 4) * exposed)
        tone /= 1 + exposed
        np.clip(tone, 0, 1, out=tone)
        tone = np.asarray(cv2.pow(tone, self.contrast / 2.2), np.float32)
        noise = rng.standard_normal(light.shape, dtype=np.float32)
        noise *= (1.2 * self.noise) - (0.6 * self.noise) * tone
        tone *= 255
        tone += noise
        tone += 0.5
        return np.clip(tone, 0, 255).astype(np.uint8)

    def compress(self, rgb: np.ndarray) -> np.ndarray:
        """RGB [H, W, 3] uint8 after a JPEG as many cameras send it."""
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality])[1]
        decoded = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))
        return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)

    def _gains(self, height: int, width: int, gain: float) -> np.ndarray:
        """[H, W, 3]: white balance, darker toward the corners."""
        v, u = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
        vignette = gain * (1 - (self.vignette / 2) * (np.square(v)[:, None] + np.square(u)))
        return cv2.merge([vignette.astype(np.float32) * white for white in self.white])
