# SPDX-License-Identifier: Apache-2.0
"""Does every engine take every graph, and does it answer as PyTorch does?

    python benchmarks/acceptance.py                                             # untrained, 256x512; some minutes
    python benchmarks/acceptance.py --weights vehicle=runs/vehicle/weights.pt --images camvid:/data/camvid:val

Exports compact, vehicle and paper in every precision they take (paper has its deformable convolutions as plain
operators, and no int8), and holds ONNX Runtime and OpenVINO against PyTorch in float32, with the weights as the file
stores them, on rendered streets and, with --images, real ones.
TensorRT-RTX builds each graph for a GPU that need not be here. Exit status 1 where one of it fails: an export, an
engine, a plugin layer in TensorRT, or an answer further from PyTorch's than rounding explains (marked with !).

Weights that nobody trained decide by hairs: a preset without --weights is left out in int8, and judged by its answers
in float32 only. Ctrl-C ends it with the table of what was done.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from reporting import Figures, save, this_machine
from rich.console import Console
from untrained import untrained

from panoptic_depth_model.weights import load_weights, save_weights
from panoptic_depth_ros.arguments import count
from panoptic_depth_ros.engines import Engine
from panoptic_depth_ros.engines.errors import EngineError
from panoptic_depth_ros.engines.parity import Outputs, Parity, check, compare
from panoptic_depth_ros.engines.tensorrt_build import BuildOptions, build, import_tensorrt, is_rtx
from panoptic_depth_ros.interrupt import INTERRUPTED
from panoptic_depth_ros.manifest import PRECISIONS
from panoptic_depth_ros.preprocess import fit
from panoptic_depth_training.datasets.cityscapes import CITYSCAPES
from panoptic_depth_training.export.file import export
from panoptic_depth_training.export.graph import storable
from panoptic_depth_training.export.options import ExportOptions
from panoptic_depth_training.export.pictures import open_pictures
from panoptic_depth_training.facts import ModelFacts
from panoptic_depth_training.torch_engine import engine_for

PRESETS = ("compact", "vehicle", "paper")
PORTABLE = ("paper",)  # whose operators not every engine has
NO_INT8 = ("paper",)
ARITHMETIC = {"float32": "float32", "fp16": "float16", "int8": "int8", "int8-fp16": "int8"}  # as parity names it
GPU = "sm86"
RENDERED = "streets:700000"  # and how many, and their size
CALIBRATION = "streets:800000:32"
FILE_WIDTH = 180  # characters, where output is no terminal


@dataclass(frozen=True)
class Subject:
    """A preset's network, and what PyTorch in float32 says on the images, with weights rounded as an export does."""

    preset: str
    weights: Path
    is_trained: bool
    images: np.ndarray  # [M, 1, h, w, 3] uint8
    answers: list[Outputs]


def images_for(sources: Sequence[str], count: int, height: int, width: int) -> np.ndarray:
    """`count` images of every source, fitted into the network's input: [M, 1, h, w, 3] uint8."""
    found = [picture.rgb for source in sources for picture in open_pictures(source, count)]
    return np.stack([fit(rgb, height, width)[0][None] for rgb in found])


def subject(preset: str, weights: Path | None, images: np.ndarray, folder: Path) -> Subject:
    path = weights or folder / f"{preset}.pt"
    height, width = images.shape[2:4]
    if weights is None:
        facts = ModelFacts(preset, CITYSCAPES, height, width, 1.1 * width)
        save_weights(path, untrained(preset, torch.from_numpy(images[:, 0])), facts.to_dict())
    network, stored = load_weights(path)
    engine = engine_for(storable(network), ModelFacts.from_dict(stored), preset, (height, width))
    return Subject(preset, path, weights is not None, images, [engine.infer(batch) for batch in images])


def onnxruntime_engine(path: Path) -> Engine:
    from panoptic_depth_ros.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path)


def openvino_engine(path: Path) -> Engine:
    from panoptic_depth_ros.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(path, use_cache=False)


def agreement(open_it: Callable[[Path], Engine], path: Path, subject: Subject, precision: str) -> str:
    """How an engine's answers compare; with ! where they should not differ so. Raises what the engine raises."""
    engine = open_it(path)
    try:
        parity = compare(subject.answers, map(engine.infer, subject.images))
    finally:
        engine.close()
    text = f"{parity.equal_pixels:.2%}, {parity.depth_median:.1e}, {parity.depth_p99:.1e}"
    judged = subject.is_trained or precision == "float32"
    return f"{text} !" if judged and not is_alike(parity, ARITHMETIC[precision]) else text


def is_alike(parity: Parity, arithmetic: str) -> bool:
    try:
        check(parity, arithmetic)
    except EngineError:
        return False
    return parity.segments > 0  # where nothing was found, nothing was compared


def tensorrt_build(path: Path) -> str:
    """Seconds, layers and plugin layers, which every other TensorRT would have to have as well."""
    trt = import_tensorrt()
    built = build(trt, path.read_bytes(), BuildOptions(targets=(GPU,) if is_rtx(trt) else ()), report=lambda _: None)
    text = f"{built.seconds:.1f} s, {sum(built.layers.values())} layers, {built.plugins} plugins"
    return f"{text} !" if built.plugins else text


def row(subject: Subject, precision: str, calibration: str, folder: Path, problems: list[str]) -> tuple[str, ...]:
    """Export, run, compare and build one graph. What fails goes on in words among the problems."""
    name = f"{subject.preset} {precision}"
    if is_int8(precision) and not subject.is_trained:
        return (subject.preset, precision, "needs --weights", "", "", "")
    path = folder / f"{name.replace(' ', '_')}.onnx"
    height, width = subject.images.shape[2:4]
    options = ExportOptions(
        height=height,
        width=width,
        name=name,
        version="1",
        precision=precision,
        portable=subject.preset in PORTABLE,
        calibration=calibration if is_int8(precision) else None,
    )
    steps: list[tuple[str, Callable[[], str]]] = [
        ("ONNX Runtime", lambda: agreement(onnxruntime_engine, path, subject, precision)),
        ("OpenVINO", lambda: agreement(openvino_engine, path, subject, precision)),
        ("TensorRT", lambda: tensorrt_build(path)),
    ]
    try:
        export(subject.weights, path, options, report=lambda _: None)
    except Exception as error:  # whatever it is, the other graphs are still worth knowing about
        problems.append(f"export of {name}: {error}")
        return (subject.preset, precision, "not exported !", *("" for _ in steps))
    cells = [f"{path.stat().st_size / 1e6:.1f}"]
    for engine, step in steps:
        try:
            cells.append(step() if is_installed(engine) else "not installed")
        except Exception as error:  # as above
            problems.append(f"{name} in {engine}: {error}")
            cells.append("fails !")
    return (subject.preset, precision, *cells)


def is_int8(precision: str) -> bool:
    return ARITHMETIC[precision] == "int8"


def is_installed(engine: str) -> bool:
    modules = {"OpenVINO": ("openvino",), "TensorRT": ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")}
    return engine not in modules or any(importlib.util.find_spec(module) for module in modules[engine])


class Acceptance:
    """What is known so far: the table's rows, and what failed in words."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.size = f"{options.height}x{options.width}"
        self.sources = (f"{RENDERED}:{options.count}:{self.size}", *options.images)
        self.weights = dict(pair.split("=", 1) for pair in options.weights)
        self.image_count = 0
        self.rows: list[tuple[str, ...]] = []
        self.problems: list[str] = []

    def run(self, folder: Path, console: Console) -> None:
        options = self.options
        if strange := set(self.weights) - set(options.presets):
            raise ValueError(f"--weights names {', '.join(sorted(strange))}; tested are {', '.join(options.presets)}")
        images = images_for(self.sources, options.count, options.height, options.width)
        self.image_count = len(images)
        calibration = options.calibration or f"{CALIBRATION}:{self.size}"
        for preset in options.presets:
            console.print(f"{preset} in PyTorch ...", highlight=False)
            weights = Path(self.weights[preset]) if preset in self.weights else None
            tested = subject(preset, weights, images, folder)
            for precision in (p for p in options.precisions if preset not in NO_INT8 or not is_int8(p)):
                console.print(f"{preset} {precision} ...", highlight=False)
                self.rows.append(row(tested, precision, calibration, folder, self.problems))

    def figures(self, is_whole: bool) -> Figures:
        header = ("preset", "precision", "MB", "ONNX Runtime", "OpenVINO", f"TensorRT for {GPU}")
        title = (
            f"{self.image_count} images {self.size} of {', '.join(self.sources)}; "
            f"trained: {', '.join(self.weights) or 'none'}{'' if is_whole else '; not ended'}"
        )
        note = "engines against PyTorch in float32: equal pixels; relative difference of depth, median and 99 %"
        return Figures(title, header, self.rows, (note,))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=PRESETS, metavar="PRESET", help=f"default {' '.join(PRESETS)}")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--height", type=count, default=256)
    parser.add_argument("--width", type=count, default=512)
    parser.add_argument("--weights", nargs="+", default=(), metavar="PRESET=FILE", help="trained ones")
    parser.add_argument("--images", nargs="+", default=(), metavar="SOURCE", help="folders, recordings, KIND:PATH")
    parser.add_argument("--count", type=count, default=4, help="images of every source (default %(default)s)")
    parser.add_argument("--calibration", metavar="SOURCE", help="images for int8 (default: rendered ones)")
    parser.add_argument("--save", action="store_true", help="add the table to benchmarks/results/<device>_<date>.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options, machine = parse_arguments(arguments), this_machine()
    console, progress = Console(width=None if sys.stdout.isatty() else FILE_WIDTH), Console(stderr=True)
    acceptance, status = Acceptance(options), INTERRUPTED
    try:
        with tempfile.TemporaryDirectory() as folder:
            acceptance.run(Path(folder), progress)
        status = int(any("!" in cell for cells in acceptance.rows for cell in cells))
    except (ValueError, OSError) as error:
        print(f"acceptance: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        pass  # what was done is still worth knowing
    if acceptance.rows:
        figures = acceptance.figures(is_whole=status < 2)
        console.print("\n".join(machine.lines()), highlight=False)
        console.print(figures.table())
        console.print("\n".join(acceptance.problems), highlight=False)
        if options.save:
            console.print(f"added to {save(machine.processor, machine, [figures])}")
    return status


if __name__ == "__main__":
    sys.exit(main())
