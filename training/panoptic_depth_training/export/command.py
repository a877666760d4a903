# SPDX-License-Identifier: Apache-2.0
"""From trained weights to the one ONNX file that the vehicle runs.

    python -m panoptic_depth_training.export WEIGHTS.pt MODEL.onnx --height 256 --width 512
    python -m panoptic_depth_training.export WEIGHTS.pt MODEL.onnx --height 512 --width 1024 --precision fp16
    python -m panoptic_depth_training.export WEIGHTS.pt MODEL.onnx --height 512 --width 1024 \\
        --precision int8-fp16 --calibration /data/drive

The file is written only if ONNX Runtime answers as PyTorch does in float32, up to the rounding of its precision; a
table says how far they are apart on pictures of a drive, and what that costs in panoptic quality.

Precisions: float32 for any machine; fp16 for GPUs; int8, with float32 around the integer layers, for CPUs (OpenVINO);
int8-fp16, with float16 around them, for TensorRT. half_precision.py and quantization.py say what is kept from rounding.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from panoptic_depth_ros.interrupt import INTERRUPTED, interrupt_once
from panoptic_depth_ros.manifest import PRECISIONS
from panoptic_depth_training.export.agreement import table
from panoptic_depth_training.export.file import ExportError, export
from panoptic_depth_training.export.options import DEFAULT_PICTURES, ExportOptions


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m panoptic_depth_training.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("weights", type=Path, help="weights written by panoptic_depth_training.train")
    add("model", type=Path, help="ONNX file to write")
    add("--height", type=int, required=True, help="network input height [px], a multiple of 32")
    add("--width", type=int, required=True, help="network input width [px], a multiple of 32")
    add("--batch", type=int, default=1, help="images a call (default %(default)s)")
    add("--name", default="panoptic_depth", help="the model's name in its manifest")
    add("--version", default="1", help="the model's version in its manifest")
    add("--precision", choices=PRECISIONS, default="float32", help="of the arithmetic (default %(default)s); see above")
    add("--portable", action="store_true", help="lower deformable convolutions to operators that every engine has")
    add(
        "--output-stride", type=int, choices=(1, 2, 4),
        help="pixel grid on which segments are told apart: less memory traffic, coarser edges (default: the network's)",
    )
    pictures = "a folder of pictures, a recording, or KIND:PATH as in --data of train and evaluate"
    add("--images", metavar="SOURCE", help=f"what to compare on: {pictures} (default: {DEFAULT_PICTURES} of our drive)")
    add("--calibration", metavar="SOURCE", help=f"what int8 takes its ranges from: {pictures}")
    add(
        "--calibration-count", type=int, default=ExportOptions.calibration_count, metavar="N",
        help="pictures to calibrate on, spread over the source (default %(default)s)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Export what the command line names; the exit status."""
    options = vars(parse_arguments(arguments))
    weights, path = options.pop("weights"), options.pop("model")
    interrupt_once()
    try:
        comparison = export(weights, path, ExportOptions(**options), lambda text: print(text, file=sys.stderr))
    except (ExportError, ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"export: stopped; {path} was not written", file=sys.stderr)
        return INTERRUPTED
    print(table(comparison))
    size, megabytes = f"{options['height']}x{options['width']}", path.stat().st_size / 1e6
    print(f"\n{path}: {megabytes:.1f} MB, {size}, {options['precision']}")
    return 0
