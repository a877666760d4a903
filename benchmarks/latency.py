# SPDX-License-Identifier: Apache-2.0
"""How long a frame takes: models in every engine that runs here, stage by stage.

    python benchmarks/latency.py model/compact.onnx
    python benchmarks/latency.py compact.onnx compact_int8.onnx runs/compact/weights.pt --cut --save
    python benchmarks/latency.py preset:vehicle preset:paper --device cuda --half --graph --size 1024x2048

A model is an exported .onnx, weights (.pt), or preset:NAME, which has random weights: shapes are static, so that time
depends on none. Every frame is another picture of a camera's size, and engines take turns in an order of chance, so
that whatever else the machine does hits all of them. Time a GPU without the CPU's engines (--device tensorrt cuda): it
lowers its clock while it waits for them.

Stages: preprocess fits the picture into the network's input; engine, in which segments are merged, too; prediction is
the segment table and metric depth; maps are category, panoptic id and depth at the camera's size. PyTorch on a GPU and
TensorRT tell times by the GPU's own clock as well: GPU is computation alone, and TensorRT's upload and download are the
copies before and behind it; all are part of engine. PyTorch's float32 convolutions are TF32 there. --cut times networks
up to their first top-K, too: without choosing, fusing and merging segments. What ROS messages cost,
benchmarks/messages.py says.

GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before the command gives it huge pages, as the launch file gives them to the node.
ONNX Runtime is some per cent faster then, and its times depend less on where its memory happens to lie.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence

import cv2
import numpy as np
from candidates import CUT, DEVICES, GPU_STAGES, PUBLISHED, WHOLE, Candidate, Setting, attempts
from reporting import Figures, Machine, save, this_machine
from rich.console import Console
from rich.progress import Progress

from panoptic_depth_ros.arguments import count, image_size, natural
from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.interrupt import INTERRUPTED
from panoptic_depth_ros.manifest import ModelError
from panoptic_depth_ros.messages import RGB_DECODERS
from panoptic_depth_ros.recording import Recording
from panoptic_depth_ros.share import share_path
from panoptic_depth_ros.timing import Percentiles

PICTURES = 16
WARM_UP = 3  # rounds that do not count
STAGES = ("preprocess", "engine", "prediction", "maps", "frame")
FILE_WIDTH = 180  # characters, where output is no terminal


def pictures(source: str, height: int, width: int) -> list[np.ndarray]:
    """Different images [height, width, 3] uint8: of any source, or of the drive that comes along."""
    if source:
        from panoptic_depth_training.export.pictures import open_pictures

        found = [picture.rgb for picture in open_pictures(source, PICTURES)]
    else:
        with Recording(share_path("samples", "street_drive")) as recording:
            topic, _ = recording.camera_topics()
            frames = list(recording.messages([topic]))
            decode = RGB_DECODERS[recording.topics[topic]]
            found = [decode(recording.decode(frame)) for frame in frames[:: -(-len(frames) // PICTURES)]]
    return [cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR) for rgb in found]


def opened(models: Sequence[str], setting: Setting, rgb: np.ndarray) -> tuple[list[Candidate], list[str]]:
    """What runs, and why the rest does not. Raises ModelError or OSError where a model is none."""
    candidates, refusals = [], []
    for attempt in [attempt for model in models for attempt in attempts(model, setting)]:
        try:
            candidate = attempt.open()
            candidate.run(rgb)
            candidates.append(candidate)
        except Exception as error:  # engines raise whatever they like, and the others are still worth timing
            refusals.append(f"{attempt.model} in {attempt.engine} ({attempt.part}): {error}")
    return candidates, refusals


def measure(
    candidates: Sequence[Candidate], images: Sequence[np.ndarray], rounds: int
) -> tuple[list[Percentiles], int]:
    """Times of every candidate, and how many rounds were done when the last had ended or somebody pressed Ctrl-C."""
    times = [Percentiles(rounds) for _ in candidates]
    chance = np.random.default_rng(0)
    number = -WARM_UP
    with Progress(console=Console(stderr=True), transient=True) as progress:
        try:
            for number in progress.track(range(-WARM_UP, rounds), description="rounds"):
                for index in chance.permutation(len(candidates)):
                    laps = candidates[index].run(images[number % len(images)])
                    if number >= 0:
                        times[index].add(laps)
        except KeyboardInterrupt:
            return times, max(number, 0)
    return times, rounds


def latency_table(candidates: Sequence[Candidate], times: Sequence[Percentiles], title: str) -> Figures:
    """One row for each candidate; how much faster its engine is than the first one's."""
    first_ms = times[0].of("engine", 50)[0]
    on_gpu = [stage for stage in GPU_STAGES if any(stage in t.names for t in times)]
    rows = []
    for c, t in zip(candidates, times, strict=True):
        cells = [" ".join(f"{ms:.1f}" for ms in t.of(s, 50, 95, 99)) if s in t.names else "" for s in STAGES]
        gpu = [" ".join(f"{ms:.2f}" for ms in t.of(s, 50, 99)) if s in t.names else "" for s in on_gpu]
        name = f"{c.engine}{f', {CUT}' if c.part == CUT else ''}"
        ratio = f"{first_ms / t.of('engine', 50)[0]:.2f}"
        rows.append((c.model, f"{c.size[0]}x{c.size[1]}", name, c.precision, *cells, *gpu, ratio))
    header = ("model", "input", "engine", "precision", *STAGES, *(f"{s} p50 p99" for s in on_gpu), "speed")
    return Figures(title, header, rows, ("ms: p50 p95 p99; speed: of the engine, in that of the first row",))


def ratio_table(candidates: Sequence[Candidate], times: Sequence[Percentiles]) -> Figures:
    """What choosing segments costs, what lower precision gives, and how engines compare with PyTorch."""
    ms = {c: t.of("engine", 50)[0] for c, t in zip(candidates, times, strict=True)}
    rows = []
    for c in candidates:
        alike = [o for o in candidates if (o.preset, o.size, o.on_gpu) == (c.preset, c.size, c.on_gpu) and o is not c]
        whole = [o for o in alike if o.part == WHOLE]
        where = f"{c.preset} {c.size[0]}x{c.size[1]}"
        if c.part == CUT:
            for o in (o for o in whole if (o.model, o.engine, o.precision) == (c.model, c.engine, c.precision)):
                ratio = f"{ms[o] / ms[c]:.2f} ({1 - ms[c] / ms[o]:.1%} of the whole)"
                rows.append((where, f"{c.engine}: {c.precision} whole against {CUT}", ratio))
            continue
        for o in (o for o in whole if o.precision == "float32"):
            if o.engine == c.engine and c.precision != "float32":
                rows.append((where, f"{c.engine}: {c.precision} against float32", f"{ms[o] / ms[c]:.2f}"))
            if o.engine in ("PyTorch CPU", PUBLISHED, "PyTorch CUDA") and not c.engine.startswith("PyTorch"):
                rows.append((where, f"{c.engine} {c.precision} against {o.engine} float32", f"{ms[o] / ms[c]:.2f}"))
    return Figures("ratios of the engines' medians", ("network", "", "ratio"), rows)


def floor_table(candidates: Sequence[Candidate]) -> Figures | None:
    """What arithmetic and memory of this device allow; None without PyTorch or a known network."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch
    from arithmetic import floor_of, measured_peak

    from panoptic_depth_model.config import PRESETS

    known = dict.fromkeys((c.preset, c.size) for c in candidates if c.preset in PRESETS)
    if not known:
        return None
    on_gpu = torch.cuda.is_available() and any(c.on_gpu for c in candidates)
    device, dtype = (torch.device("cuda"), torch.float16) if on_gpu else (torch.device("cpu"), torch.float32)
    peak = measured_peak(device, dtype)
    rows = []
    for preset, (height, width) in known:
        floor = floor_of(preset, height, width, dtype, peak)
        numbers = (f"{floor.gmac:.1f}", f"{floor.gbytes:.2f}", f"{floor.arithmetic_ms:.2f}", f"{floor.memory_ms:.2f}")
        rows.append((preset, f"{height}x{width}", *numbers))
    form = str(dtype).removeprefix("torch.")
    note = f"at {peak.tflops:.3g} TFLOP/s in {form} products and {peak.gbytes_per_s:.0f} GB/s, as PyTorch reached here"
    return Figures("floors", ("network", "input", "GMAC", f"GB in {form}", "arithmetic ms", "memory ms"), rows, (note,))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="file.onnx, file.pt or preset:NAME")
    parser.add_argument("--device", nargs="+", choices=tuple(DEVICES), default=(), help="default: all that run here")
    parser.add_argument("--threads", type=natural, default=0, help="on the CPU (default: each engine's own choice)")
    parser.add_argument("--frames", type=count, default=100, help="of each engine (default %(default)s)")
    parser.add_argument("--size", type=image_size, metavar="HEIGHTxWIDTH", help="input of .pt and presets")
    parser.add_argument("--camera", type=image_size, default=(1200, 1920), metavar="HEIGHTxWIDTH", help="1200x1920")
    parser.add_argument("--images", default="", metavar="SOURCE", help="default: the drive that comes along")
    parser.add_argument("--half", action="store_true", help="as well: PyTorch and OpenVINO in half precision")
    parser.add_argument("--graph", action="store_true", help="as well: PyTorch with one CUDA graph a frame")
    parser.add_argument("--compile", action="store_true", help="as well: PyTorch with torch.compile, which takes long")
    parser.add_argument("--cut", action="store_true", help="as well: cut before top-K, in ONNX Runtime and PyTorch")
    parser.add_argument(
        "--deform-conv2d", action="store_true", help="as well: PyTorch on the CPU with torchvision's instead of our own"
    )
    parser.add_argument("--save", action="store_true", help="add the tables to benchmarks/results/<device>_<date>.md")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, machine: Machine, console: Console) -> int:
    height, width = options.camera
    camera = PinholeCamera(height, width, 0.8 * width, 0.8 * width, width / 2, height / 2)
    own = ("threads", "size", "half", "graph", "compile", "cut", "deform_conv2d")
    setting = Setting(camera, tuple(options.device), *(getattr(options, name) for name in own))
    images = pictures(options.images, height, width)
    candidates, refusals = opened(options.models, setting, images[0])
    console.print("\n".join([*machine.lines(), *(f"does not run: {text}" for text in refusals)]), highlight=False)
    if not candidates:
        return 1
    times, rounds = measure(candidates, images, options.frames)
    if not rounds:
        return INTERRUPTED
    title = f"{rounds} frames of each, {len(images)} pictures {width}x{height}, {options.threads or 'default'} threads"
    tables = [latency_table(candidates, times, title), ratio_table(candidates, times), floor_table(candidates)]
    figures = [table for table in tables if table and table.rows]
    for table in figures:
        console.print(table.table())
    if options.save:
        gpu = machine.gpu.partition(",")[0] if any(c.on_gpu for c in candidates) else ""
        console.print(f"added to {save(gpu or machine.processor, machine, figures)}")
    return 0 if rounds == options.frames else INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        return run(options, this_machine(), Console(width=None if sys.stdout.isatty() else FILE_WIDTH))
    except (ModelError, ValueError, OSError) as error:
        print(f"latency: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
