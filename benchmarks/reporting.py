# SPDX-License-Identifier: Apache-2.0
"""What every published figure needs beside it: the machine, the versions, the command; and tables that can be kept."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table

from panoptic_depth_ros import huge_pages

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
LIBRARIES = (
    "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13-bindings", "torch", "torchvision",
    "opencv-python-headless", "numpy",
)


@dataclass(frozen=True)
class Machine:
    """Where something was measured."""

    processor: str
    cores: int
    memory_gib: float
    gpu: str  # name, driver, memory; empty without one
    system: str
    libraries: tuple[str, ...]
    commit: str
    load: float  # processes that waited for a core when the measurement began

    def lines(self) -> list[str]:
        return [
            f"processor: {self.processor}, {self.cores} cores, {self.memory_gib:.0f} GiB",
            f"GPU: {self.gpu or 'none'}",
            f"system: {self.system}",
            f"libraries: {', '.join(self.libraries)}",
            f"commit: {self.commit}",
            f"busy before: {self.load:.1f} of {self.cores} cores",
        ]


@dataclass(frozen=True)
class Figures:
    """A table, for the terminal and for a file."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        table = Table(title=self.title, title_justify="left", caption="\n".join(self.notes), caption_justify="left")
        for name in self.header:
            table.add_column(name, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return "\n\n".join([f"**{self.title}**", table, *self.notes])


def this_machine() -> Machine:
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        gpu=_gpu(),
        system=f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}, "
        f"Python {platform.python_version()}",
        libraries=tuple(_versions()),
        commit=_output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12") or "unknown",
        load=os.getloadavg()[0],
    )


def save(device: str, machine: Machine, figures: list[Figures]) -> Path:
    """Add a section to results/<device>_<date>.md; returns the file. `device` is a GPU's or a processor's name."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    path = RESULTS / f"{name}_{time.strftime('%Y-%m-%d')}.md"
    pages = [f"{huge_pages.VARIABLE}={value}" for value in (os.environ.get(huge_pages.VARIABLE),) if value]
    command = shlex.join([*pages, "python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    section = [f"## {time.strftime('%H:%M')} `{command}`", "\n".join(f"- {line}" for line in machine.lines())]
    section += [table.markdown() for table in figures]
    RESULTS.mkdir(exist_ok=True)
    head = "" if path.exists() else f"# {device}\n\n"
    with path.open("a") as file:
        file.write(head + "\n\n".join(section) + "\n\n")
    return path


def _processor() -> str:
    """The processor's name; on a board without one in /proc/cpuinfo, as Arm's, that of the board."""
    for file, pattern in (("/proc/cpuinfo", r"^model name\s*:\s*(.+)$"), ("/proc/device-tree/model", r"^([^\0]+)")):
        if Path(file).exists() and (match := re.search(pattern, Path(file).read_text(), re.MULTILINE)):
            return match[1].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str:
    """The first GPU: name, driver, memory, power limit, highest clock."""
    fields = "name,driver_version,memory.total,power.limit,clocks.max.sm"
    return _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader").partition("\n")[0]


def _versions() -> list[str]:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def _output(*command: str) -> str:
    """What a command prints; empty where it does not exist or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
