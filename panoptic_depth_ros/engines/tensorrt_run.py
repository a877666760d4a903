# SPDX-License-Identifier: Apache-2.0
"""Runs a TensorRT plan: pinned memory, three streams, two slots, CUDA graphs.

Each slot has its own host and device buffers. An upload, a computation and a download have a stream each, tied by
events. In `infer_each`, while a frame computes in one slot, the other is emptied of the frame before and takes the
next::

    compute     frame k ..............................   frame k+1 ...
    other slot  outputs k-1 download, image k+1 uploads   outputs k ...

`infer`, which the node uses, has one frame under way: its answer is wanted before the next image is chosen. One frame
computes at a time, so that the slots' execution contexts share their scratch memory. Kernels are launched as a CUDA
graph where they can be captured, one by one where not. TensorRT asks for a context of its own for every graph: what is
changed in one, such as an address, invalidates the graphs that were captured from it.

Each of the three lies between two events of its own stream, the first behind whatever it waits for, so that the GPU's
clock tells how long it took, also beside other frames. That takes three more records a frame and no wait; nothing is
read from the clock unless somebody asks.

B, h, w: batch and size of the input. Not yet run on a GPU; see `panoptic_depth_ros.engines.cuda`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from panoptic_depth_ros.engines.cuda import Cuda
from panoptic_depth_ros.engines.errors import DeviceLostError, DeviceMemoryError, EngineError
from panoptic_depth_ros.engines.tensorrt_build import Report, failure, flavor, is_rtx, open_log
from panoptic_depth_ros.manifest import INPUT, OUTPUTS

_SLOTS = 2
_ALIGNMENT = 256  # bytes, as cudaMalloc's own
_REMEDY = "remove it from the cache and build it again"


@dataclass
class _Slot:
    """Buffers and order of one frame under way."""

    context: Any  # bound to the device's buffers
    images: np.ndarray  # pinned [B, h, w, 3] uint8
    outputs: dict[str, np.ndarray]  # views of downloads
    downloads: np.ndarray  # pinned, all outputs one after the other
    device_images: int
    device_outputs: int
    uploading: Any  # events, in the order of a frame
    uploaded: Any
    computing: Any
    computed: Any
    downloading: Any
    downloaded: Any
    graph: Any = None
    is_busy: bool = False


class PlanRunner:
    """A deserialized engine with its buffers. Calls come from one thread at a time."""

    def __init__(self, trt: Any, cuda: Cuda, plan: bytes | memoryview, report: Report, compiled: bytes = b"") -> None:
        """Raises EngineError where TensorRT does not take the plan, DeviceMemoryError where it does not fit.

        Args:
            compiled: the `runtime_cache` of an earlier runner of this plan; ignored where it does not fit.
        """
        self._trt, self._cuda = trt, cuda
        self._runtime_cache: Any = None  # of TensorRT-RTX
        self._owned = ExitStack()
        self._log = open_log(trt)
        self._log.errors = []
        self._next = 0
        self._answered: _Slot | None = None  # its events are those of the last answer
        self._streams: list[Any] = []
        try:
            self._engine = self._open(plan)
            self._streams = [self._own(cuda.stream(), cuda.destroy_stream) for _ in range(3)]
            self._upload, self._compute, self._download = self._streams
            self._slots = [self._slot(context) for context in self._contexts(compiled)]
            self.uses_graph = self._capture(report)
        except BaseException:
            self.close()
            raise

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for images uint8 [B, h, w, 3]; the second call after this one overwrites them."""
        return self._fetch(self._submit(images))

    def infer_each(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """The outputs for each batch in turn, two under way at a time; valid until the next is asked for."""
        before: _Slot | None = None
        for images in batches:
            slot = self._submit(images)
            if before is not None:
                yield self._fetch(before)
            before = slot
        if before is not None:
            yield self._fetch(before)

    @property
    def gpu_stages_ms(self) -> dict[str, float]:
        """Milliseconds of the last answer's upload, compute and download by the GPU's clock; see `TensorRtEngine`."""
        slot = self._answered
        if slot is None:
            return {}
        stages = {
            "upload": (slot.uploading, slot.uploaded),
            "compute": (slot.computing, slot.computed),
            "download": (slot.downloading, slot.downloaded),
        }
        return {stage: self._cuda.elapsed_ms(*events) for stage, events in stages.items()}

    def runtime_cache(self) -> bytes:
        """What TensorRT-RTX compiled for this GPU when the plan was opened; empty with TensorRT proper."""
        content = None if self._runtime_cache is None else self._runtime_cache.serialize()
        return b"" if content is None else bytes(content)

    def layers(self) -> dict[str, int]:
        """How many layers of which kind the optimized engine has; empty where TensorRT does not tell."""
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        try:
            layers = json.loads(text)["Layers"]
        except (ValueError, TypeError, KeyError):  # some releases leave characters in it that JSON does not have
            return {}
        kinds = (layer.get("LayerType", "unknown") for layer in layers if isinstance(layer, dict))
        return dict(Counter(kinds).most_common())

    def close(self) -> None:
        """Give the device's memory back; pinned arrays live on while somebody holds them."""
        streams, self._streams = self._streams, []
        for stream in streams:
            with suppress(EngineError):  # the device is lost
                self._cuda.join_stream(stream)
        self._owned.close()
        self._slots = []
        self._answered = self._runtime_cache = self._engine = None

    # ---- set-up ----

    def _open(self, plan: bytes | memoryview) -> Any:
        self._runtime = runtime = self._trt.Runtime(self._log)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise failure(self._log, f"{flavor(self._trt)} does not take the engine", _REMEDY)
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        if names != {INPUT, *OUTPUTS}:
            raise EngineError(f"the engine has the tensors {', '.join(sorted(names))}, not the contract's; {_REMEDY}")
        return engine

    def _contexts(self, compiled: bytes) -> Iterator[Any]:
        """An execution context for each slot, with the scratch memory that they share."""
        engine, size = self._engine, max(1, self._engine.device_memory_size_v2)
        scratch = self._own(self._cuda.allocate(size), self._cuda.free)
        batch, *shape = engine.get_tensor_shape(INPUT)
        settings = self._context_settings(compiled)
        for _ in range(_SLOTS):
            context = engine.create_execution_context(settings)
            if context is None:
                raise failure(self._log, f"{flavor(self._trt)} cannot run the engine", _REMEDY)
            context.set_device_memory(scratch, size)
            context.set_input_shape(INPUT, (abs(batch), *shape))  # an open batch axis is -1: one image
            yield context

    def _context_settings(self, compiled: bytes) -> Any:
        """What contexts are made with: scratch memory is ours; what TensorRT-RTX compiles for one serves the others."""
        ours = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not is_rtx(self._trt):
            return ours
        settings = self._engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(ours)
        self._runtime_cache = runtime_cache = settings.create_runtime_cache()
        if compiled:
            runtime_cache.deserialize(compiled)
        settings.set_runtime_cache(runtime_cache)
        return settings

    def _slot(self, context: Any) -> _Slot:
        cuda, trt = self._cuda, self._trt
        layout, size = {}, 0
        for name in OUTPUTS:
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            shape = tuple(context.get_tensor_shape(name))
            layout[name] = (size, dtype, shape)
            size += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        image_shape = tuple(context.get_tensor_shape(INPUT))
        images, downloads = cuda.pinned(math.prod(image_shape)).reshape(image_shape), cuda.pinned(size)
        device_images = self._own(cuda.allocate(images.nbytes), cuda.free)
        device_outputs = self._own(cuda.allocate(size), cuda.free)
        outputs = {
            name: downloads[at : at + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
            for name, (at, dtype, shape) in layout.items()
        }
        context.set_tensor_address(INPUT, device_images)
        for name, (at, _, _) in layout.items():
            context.set_tensor_address(name, device_outputs + at)
        events = (self._own(cuda.event(), cuda.destroy_event) for _ in range(6))
        return _Slot(context, images, outputs, downloads, device_images, device_outputs, *events)

    def _capture(self, report: Report) -> bool:
        """Record each slot's kernels as a graph; returns whether that worked."""
        for slot in self._slots:
            self._enqueue(slot)  # once without: TensorRT sets up what it needs on the first call
        self._cuda.join_stream(self._compute)
        capturable = getattr(self._slots[0].context, "is_stream_capturable", None)
        if capturable is not None and not capturable(int(self._compute)):
            report("TensorRT does not let this engine's kernels be captured; they are launched one by one")
            return False
        try:
            for slot in self._slots:
                graph = self._cuda.capture(self._compute, lambda slot=slot: self._enqueue(slot))  # type: ignore[misc]
                slot.graph = self._own(graph, self._cuda.destroy_graph)
        except (DeviceLostError, DeviceMemoryError):
            raise
        except EngineError as error:
            for slot in self._slots:
                slot.graph = None
            report(f"no CUDA graph ({error}); kernels are launched one by one")
            return False
        return True

    def _own(self, handle: Any, release: Callable[[Any], None]) -> Any:
        """Release a handle on closing, whatever became of the device."""

        def let_go() -> None:
            with suppress(EngineError):
                release(handle)

        self._owned.callback(let_go)
        return handle

    # ---- a frame ----

    def _submit(self, images: np.ndarray) -> _Slot:
        """Begin a frame in the next slot."""
        slot = self._slots[self._next]
        if slot.is_busy:
            raise RuntimeError("two frames are under way already; finish infer_each before another call")
        if images.shape != slot.images.shape or images.dtype != np.uint8:
            expected = list(slot.images.shape)
            raise ValueError(f"images are {images.dtype} {list(images.shape)}; the engine takes uint8 {expected}")
        self._answered = None
        cuda = self._cuda
        np.copyto(slot.images, images)
        cuda.record(slot.uploading, self._upload)
        cuda.upload(slot.device_images, slot.images, self._upload)
        cuda.record(slot.uploaded, self._upload)
        cuda.wait(self._compute, slot.uploaded)
        # These records stay out of the graph: of an event that a capture holds CUDA tells no time.
        cuda.record(slot.computing, self._compute)
        if slot.graph is None:
            self._enqueue(slot)
        else:
            cuda.launch(slot.graph, self._compute)
        cuda.record(slot.computed, self._compute)
        cuda.wait(self._download, slot.computed)
        cuda.record(slot.downloading, self._download)
        cuda.download(slot.downloads, slot.device_outputs, self._download)
        cuda.record(slot.downloaded, self._download)
        slot.is_busy = True
        self._next = (self._next + 1) % _SLOTS
        return slot

    def _fetch(self, slot: _Slot) -> dict[str, np.ndarray]:
        """Wait for a frame; its slot is free again, its outputs stay until the slot's next download."""
        slot.is_busy = False
        self._cuda.join(slot.downloaded)
        self._answered = slot
        return dict(slot.outputs)

    def _enqueue(self, slot: _Slot) -> None:
        """Put the network's kernels for a slot into the computing stream."""
        if not slot.context.execute_async_v3(int(self._compute)):
            error = failure(self._log, f"{flavor(self._trt)} could not run a frame", "start the program again")
            try:
                self._cuda.join_stream(self._compute)
            except DeviceLostError:  # what TensorRT, which has a CUDA runtime of its own, did not tell
                raise
            except EngineError:  # a stream that is being captured cannot be waited for
                pass
            raise error
