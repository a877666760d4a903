# SPDX-License-Identifier: Apache-2.0
"""A computation on a GPU between page-locked buffers, as single launches or as one CUDA graph.

It needs to know no network: images go in, tensors come out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

_WARM_UP_PASSES = 3  # in which libraries choose kernels and get their memory, as they must not during a capture


class GpuRunner:
    """Computes on a GPU what comes from page-locked memory, from which alone transfers are fast."""

    def __init__(self, run: Callable[[Tensor], Sequence[Tensor]], device: torch.device, as_graph: bool) -> None:
        self._run = run
        self._device = device
        self._as_graph = as_graph
        self._graph: torch.cuda.CUDAGraph | None = None
        self._host_images = torch.empty(0, dtype=torch.uint8)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, images: np.ndarray) -> Sequence[Tensor]:
        """Outputs on the GPU, which may still compute them, for images [B, h, w, 3] uint8.

        With a graph B is that of the first call, and the next call overwrites the outputs.
        """
        if self._host_images.shape != images.shape:
            if self._graph is not None:
                expected, got = list(self._host_images.shape), list(images.shape)
                raise ValueError(f"images are {got}; the CUDA graph was captured for {expected}")
            self._set_up(images.shape)
        self._end.synchronize()  # the upload before this one has left the buffer
        self._host_images.copy_(torch.from_numpy(images))
        self._images.copy_(self._host_images, non_blocking=True)
        self._start.record()
        if self._graph is None:
            outputs = self._compute()
        else:
            self._graph.replay()
            outputs = self._outputs
        self._end.record()
        return outputs

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds of the last call by the GPU's clock, without transfers; waits for its end."""
        self._end.synchronize()
        return self._start.elapsed_time(self._end)

    def _set_up(self, shape: tuple[int, ...]) -> None:
        self._host_images = pinned(shape, torch.uint8)
        self._images = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        if self._as_graph:
            self._capture()

    def _capture(self) -> None:
        """Record a frame's kernels. They read `_images` and write `_outputs` for good."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_PASSES):
                self._compute()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._outputs = self._compute()
        self._graph = graph

    def _compute(self) -> Sequence[Tensor]:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):  # the shape stays, so the search pays
            return self._run(self._images)


class HostBuffers:
    """Outputs in page-locked memory. There are two sets, in turn: the second call after one overwrites its answer."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sets: list[list[Tensor]] = [[], []]

    def fetch(self, outputs: Sequence[Tensor]) -> list[np.ndarray]:
        self._sets.reverse()
        if [host.shape for host in self._sets[0]] != [output.shape for output in outputs]:
            self._sets[0] = [pinned(output.shape, output.dtype) for output in outputs]
        for host, output in zip(self._sets[0], outputs, strict=True):
            host.copy_(output, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return [host.numpy() for host in self._sets[0]]


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Page-locked host memory."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)
