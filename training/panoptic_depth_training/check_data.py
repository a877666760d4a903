# SPDX-License-Identifier: Apache-2.0
"""Read a data set from end to end: what is in it, what it looks like, and every file that cannot be used.

    python -m panoptic_depth_training.check_data camvid:/data/camvid:train --out camvid_check
    python -m panoptic_depth_training.check_data recording /data/drive

Prints a table of categories and of depth, writes OUT/contact_sheet.png (image, labels, depth), and exits with 1 when
something is wrong, after it has looked at everything.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from panoptic_depth_ros.arguments import count
from panoptic_depth_ros.interrupt import INTERRUPTED
from panoptic_depth_ros.taxonomy import LABEL_DIVISOR, VOID_PANOPTIC_ID, Taxonomy
from panoptic_depth_ros.visualize import depth_color
from panoptic_depth_training.colors import label_colors, widened
from panoptic_depth_training.datasets.labeled import DataError, LabeledImage, LabeledImages
from panoptic_depth_training.datasets.sources import KINDS, SYNTAX, list_images, parse_source
from panoptic_depth_training.output_files import make_writable, write_whole

SHEET_IMAGES = 8
TILE_WIDTH_PX = 480
MAX_DEPTH_M = 80.0  # where the colors of depth end


@dataclass
class Census:
    """What the images of a data set hold."""

    taxonomy: Taxonomy
    num_images: int = 0
    num_pixels: int = 0
    images: np.ndarray = field(init=False)  # [K] in which the category occurs
    pixels: np.ndarray = field(init=False)  # [K]
    instances: np.ndarray = field(init=False)  # [K] told apart
    crowd_pixels: np.ndarray = field(init=False)  # [K] of things that are not told apart
    void_pixels: int = 0
    depth_pixels: int = 0
    depths: list[np.ndarray] = field(default_factory=list)  # per image its smallest, median and largest [m]
    focal_lengths: set[float] = field(default_factory=set)  # [px]; 0: no calibration

    def __post_init__(self) -> None:
        k = len(self.taxonomy)
        self.images, self.pixels, self.instances, self.crowd_pixels = (np.zeros(k, np.int64) for _ in range(4))

    def add(self, image: LabeledImage) -> None:
        """Count one image."""
        self.num_images += 1
        self.num_pixels += image.panoptic_ids.size
        counts = np.bincount(image.panoptic_ids.ravel(), minlength=VOID_PANOPTIC_ID + 1)
        self.void_pixels += int(counts[VOID_PANOPTIC_ID])
        by_category = counts[: len(self.taxonomy) * LABEL_DIVISOR].reshape(-1, LABEL_DIVISOR)
        self.images += by_category.any(axis=1)
        self.pixels += by_category.sum(axis=1)
        self.instances += np.count_nonzero(by_category[:, 1:], axis=1)
        self.crowd_pixels += by_category[:, 0] * [category.is_thing for category in self.taxonomy]
        depth = image.depth[image.depth > 0]
        self.depth_pixels += depth.size
        if depth.size:
            self.depths.append(np.quantile(depth, (0, 0.5, 1)))
        self.focal_lengths.add(round(image.camera.fx, 1) if image.camera else 0.0)

    def table(self) -> Table:
        """Categories and what there is of them."""
        table = Table("category", "images", "pixels", "instances", "not told apart", title="labels")
        for column in table.columns[1:]:
            column.justify = "right"
        for k, category in enumerate(self.taxonomy):
            table.add_row(
                category.name,
                str(self.images[k]),
                _share(self.pixels[k], self.num_pixels),
                str(self.instances[k]) if category.is_thing else "",
                _share(self.crowd_pixels[k], self.pixels[k]) if category.is_thing else "",
            )
        table.add_row("void", "", _share(self.void_pixels, self.num_pixels), "", "")
        return table

    def depth_line(self) -> str:
        """Depth and calibration in a sentence."""
        if not self.num_images:
            return "no depth, no calibration"
        lengths = sorted(self.focal_lengths)
        cameras = "no calibration" if lengths == [0.0] else f"focal length {lengths[0]:g} to {lengths[-1]:g} px"
        if not self.depths:
            return f"depth: none; {cameras}"
        nearest, median, farthest = np.array(self.depths).T
        return (
            f"depth: {_share(self.depth_pixels, self.num_pixels)} of pixels, {nearest.min():.1f} to "
            f"{farthest.max():.1f} m, median {np.median(median):.1f} m; {cameras}"
        )


def _share(part: float, whole: float) -> str:
    return f"{100 * part / max(whole, 1):.2f} %"


def inconsistencies(image: LabeledImage, taxonomy: Taxonomy) -> list[str]:
    """What contradicts itself in an image that could be read."""
    shape = image.rgb.shape[:2]
    faults = [
        f"{name} is {values.dtype} {values.shape}; expected {np.dtype(dtype)} {shape}"
        for name, values, dtype in (("panoptic_ids", image.panoptic_ids, np.uint16), ("depth", image.depth, np.float32))
        if values.shape != shape or values.dtype != dtype
    ]
    if not (np.isfinite(image.depth).all() and (image.depth >= 0).all()):
        faults.append("depth has negative or infinite values; expected meters, 0 where unknown")
    present = np.flatnonzero(np.bincount(image.panoptic_ids.ravel(), minlength=VOID_PANOPTIC_ID + 1))
    present = present[present != VOID_PANOPTIC_ID]
    category, instance = present // LABEL_DIVISOR, present % LABEL_DIVISOR
    if (category >= len(taxonomy)).any():
        faults.append(f"categories up to {category.max()}; the taxonomy has {len(taxonomy)}")
    elif (stuff := np.isin(category, taxonomy.stuff_ids) & (instance > 0)).any():
        faults.append(f"{taxonomy[int(category[stuff][0])].name} is stuff, but has instances")
    camera = image.camera
    if camera and ((camera.height, camera.width) != shape or not np.isfinite(camera.matrix).all()):
        faults.append(f"camera {camera} does not describe an image of {shape[1]}x{shape[0]} px")
    return faults


@dataclass(frozen=True)
class Report:
    """What a walk over a data set found."""

    census: Census
    sheet: np.ndarray | None  # [H, W, 3] uint8; None when no image could be read
    faults: tuple[str, ...]  # one sentence each


def check(images: LabeledImages, limit: int | None = None, progress: Progress | None = None) -> Report:
    """Read the first `limit` images (None: all), and go on past those that are broken.

    With `progress` faults are printed when they are found, so that an interrupted check has not been in vain.
    """
    count = len(images) if limit is None else min(limit, len(images))
    shown = set(np.linspace(0, count - 1, min(SHEET_IMAGES, count)).round().astype(int).tolist())
    census, rows, faults = Census(images.taxonomy), [], []
    for index in progress.track(range(count), description="reading") if progress else range(count):
        image, found = examine(images, index)
        faults.extend(found)
        if progress:
            for fault in found:
                progress.console.print(fault, markup=False, highlight=False, soft_wrap=True)
        if image:
            census.add(image)
        if image and index in shown:
            rows.append(sheet_row(image, images.taxonomy))
    return Report(census, stacked(rows) if rows else None, tuple(faults))


def examine(images: LabeledImages, index: int) -> tuple[LabeledImage | None, list[str]]:
    """An image, and what is wrong with it; None where it cannot be used."""
    missing = [file for file in images.files_of(index) if not file.exists()]
    try:
        image = images[index]
    except DataError as error:
        # The error names the first file that is not there.
        return None, [str(error), *(f"{file}: missing as well" for file in missing if str(file) not in str(error))]
    faults = [f"{image.name}: {contradiction}" for contradiction in inconsistencies(image, images.taxonomy)]
    return (None if faults else image), faults


def sheet_row(image: LabeledImage, taxonomy: Taxonomy) -> tuple[np.ndarray, ...]:
    """Image, labels over it and depth over it, each [h, TILE_WIDTH_PX, 3]; what there is none of is black."""
    void = image.panoptic_ids == VOID_PANOPTIC_ID
    labels = cv2.addWeighted(image.rgb, 0.5, label_colors(image.panoptic_ids, taxonomy), 0.5, 0)
    depth = widened(image.depth)
    height = round(TILE_WIDTH_PX * image.rgb.shape[0] / image.rgb.shape[1])
    tiles = (
        image.rgb,
        np.where(void[..., None], 0 if void.all() else image.rgb, labels),
        np.where((depth > 0)[..., None], depth_color(depth, MAX_DEPTH_M), image.rgb // 3 if depth.any() else 0),
    )
    small = [cv2.resize(tile.astype(np.uint8), (TILE_WIDTH_PX, height), interpolation=cv2.INTER_AREA) for tile in tiles]
    cv2.rectangle(small[0], (0, 0), (9 * len(image.name) + 8, 20), (0, 0, 0), cv2.FILLED)
    cv2.putText(small[0], image.name, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return tuple(small)


def stacked(rows: Sequence[tuple[np.ndarray, ...]]) -> np.ndarray:
    """Rows of tiles as one picture, without the columns that no row has anything in."""
    columns = [column for column in zip(*rows, strict=True) if any(tile.any() for tile in column)]
    return np.hstack([np.vstack(column) for column in columns])


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m panoptic_depth_training.check_data",
        description=__doc__,
        epilog="kinds:\n" + "\n".join(f"  {kind}:{place}" for kind, place in KINDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help=f"{SYNTAX}, or KIND alone with PATH after it")
    parser.add_argument("path", nargs="?", help="PATH[:SPLIT][@FIRST:LAST]")
    parser.add_argument("--limit", type=count, help="images to read (default: all)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where contact_sheet.png goes (default: nowhere)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what the command line names; 1 when something is wrong."""
    options = parse_arguments(arguments)
    text = f"{options.source}:{options.path}" if options.path else options.source
    try:
        images = list_images(parse_source(text))
        if options.out:
            make_writable(options.out)
        with Progress(console=Console(stderr=True)) as progress:
            report = check(images, options.limit, progress)
        sheet = written(report.sheet, options.out) if options.out and report.sheet is not None else None
    except (ValueError, OSError) as error:
        print(f"check_data: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("check_data: stopped", file=sys.stderr)
        return INTERRUPTED
    if report.census.pixels.any():
        Console().print(report.census.table())
    print(f"{report.census.num_images} of {len(images)} images read; {report.census.depth_line()}")
    if sheet:
        print(f"wrote {sheet}")
    if report.faults:
        print(f"check_data: {len(report.faults)} faults in {text}", file=sys.stderr)
    return 1 if report.faults else 0


def written(sheet: np.ndarray, folder: Path) -> Path:
    """The contact sheet in a file."""
    path = folder / "contact_sheet.png"
    write_whole(path, cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
    return path


if __name__ == "__main__":
    sys.exit(main())
