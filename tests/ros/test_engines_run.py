# SPDX-License-Identifier: Apache-2.0
"""Running a TensorRT plan on a simulated GPU whose streams advance at random: only events keep their order, as on a
real one. Its clock knows how long each piece of work takes. What a real GPU computes, and how fast, this does not show.
"""

from __future__ import annotations

import ctypes
import enum
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from panoptic_depth_ros.engines.cuda import Cuda
from panoptic_depth_ros.engines.errors import DeviceLostError, DeviceMemoryError, EngineError
from panoptic_depth_ros.engines.tensorrt_run import PlanRunner
from panoptic_depth_ros.manifest import INPUT, OUTPUT_TYPES, OUTPUTS

H, W, ROWS = 4, 6, 3
SCRATCH_BYTES = H * W * 3
SHAPES = {INPUT: (1, H, W, 3), **{name: (1, H, W) if name in OUTPUTS[:2] else (1, ROWS) for name in OUTPUTS}}


class CudaError(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900


UPLOAD_MS, READ_MS, WRITE_MS, DOWNLOAD_MS = 3.0, 5.0, 2.5, 1.25  # what work takes on the simulated GPU
STAGES_MS = {"upload": UPLOAD_MS, "compute": READ_MS + WRITE_MS, "download": DOWNLOAD_MS}


class SimulatedRuntime:
    """The part of cuda.bindings.runtime that `Cuda` uses. Work waits in its stream until the host waits for something;
    then streams advance in a random order, as far as events let them. Each stream has its own time, which only waiting
    for an event moves to another's: as on a GPU that has room for all that may happen at once.
    """

    cudaError_t = CudaError
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking, cudaEventDisableTiming, cudaEventBlockingSync, cudaHostAllocDefault = 1, 2, 1, 0

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, list[Any]] = {}
        self.clocks_ms: dict[int, float] = {}  # how far each stream is
        self.host_ms = 0.0  # until when the host has waited
        self.download_ms = DOWNLOAD_MS
        self.events: dict[int, list[float | None]] = {}  # when each record so far was reached, if it was
        self.untimed: set[int] = set()  # events made without a clock
        self.captured: set[int] = set()  # events that a graph has instead of a stream
        self.calls: list[str] = []
        self.graphs: dict[int, list[Any]] = {}
        self.capturing: dict[int, list[Any]] = {}
        self.handle = 1000
        self.fail: dict[str, CudaError] = {}
        self.launches = 0

    def _new(self, table: dict[int, Any], value: Any) -> tuple[CudaError, int]:
        self.handle += 1
        table[self.handle] = value
        return CudaError.cudaSuccess, self.handle

    def _result(self, function: str, *values: Any) -> tuple[Any, ...]:
        self.calls.append(function)
        error = self.fail.get(function, CudaError.cudaSuccess)
        return (error, *([None] * len(values) if error else values))

    def put(self, stream: int, work: Callable[[], bool], ms: float = 0.0) -> None:
        """Queue work that returns whether it is done, or must be tried again later, and what time it takes."""
        (self.capturing if stream in self.capturing else self.streams)[stream].append((work, ms, self.host_ms))

    def run_until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            stream = int(self.random.choice([stream for stream, work in self.streams.items() if work]))
            work, ms, queued_ms = self.streams[stream][0]
            self.clocks_ms[stream] = max(self.clocks_ms[stream], queued_ms)
            if work():
                self.clocks_ms[stream] += ms
                self.streams[stream].pop(0)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        buffer = (ctypes.c_uint8 * size)(*self.random.integers(0, 256, size).tolist())
        if "cudaMalloc" not in self.fail:
            self.memory[ctypes.addressof(buffer)] = buffer
        return self._result("cudaMalloc", ctypes.addressof(buffer))

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.memory[address]
        return self._result("cudaFree")

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        buffer = (ctypes.c_uint8 * size)()
        self.pinned[ctypes.addressof(buffer)] = buffer
        return self._result("cudaHostAlloc", ctypes.addressof(buffer))

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        del self.pinned[address]
        return (CudaError.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:
        device = to if kind == 1 else source
        assert any(at <= device and device + size <= at + len(buffer) for at, buffer in self.memory.items())
        self.put(stream, lambda: bool(ctypes.memmove(to, source, size)), UPLOAD_MS if kind == 1 else self.download_ms)
        return self._result("cudaMemcpyAsync")

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        error, stream = self._new(self.streams, [])
        self.clocks_ms[stream] = 0.0
        return error, stream

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        self.calls.append("cudaEventCreateWithFlags")
        error, event = self._new(self.events, [])
        if flags & self.cudaEventDisableTiming:
            self.untimed.add(event)
        return error, event

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        reached = self.events[event]
        at = len(reached)
        reached.append(None)
        if stream in self.capturing:
            self.captured.add(event)

        def reach() -> bool:
            reached[at] = self.clocks_ms[stream]
            return True

        self.put(stream, reach)
        return self._result("cudaEventRecord")

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        reached, at = self.events[event], len(self.events[event]) - 1

        def follow() -> bool:
            ended_ms = reached[at] if at >= 0 else 0.0
            self.clocks_ms[stream] = max(self.clocks_ms[stream], ended_ms or 0.0)
            return ended_ms is not None

        self.put(stream, follow)
        return self._result("cudaStreamWaitEvent")

    def cudaEventSynchronize(self, event: int) -> tuple[Any, ...]:
        self.run_until(lambda: not self.events[event] or self.events[event][-1] is not None)
        if self.events[event]:
            self.host_ms = max(self.host_ms, self.events[event][-1])
        return self._result("cudaEventSynchronize")

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[Any, ...]:
        error = self.fail.get("cudaEventElapsedTime") or self._untellable(self.events[start], self.events[end])
        if {start, end} & self.untimed:
            error = CudaError.cudaErrorInvalidResourceHandle
        elif {start, end} & self.captured:
            error = CudaError.cudaErrorInvalidValue
        self.calls.append("cudaEventElapsedTime")
        return (error, None) if error else (CudaError.cudaSuccess, self.events[end][-1] - self.events[start][-1])

    @staticmethod
    def _untellable(*records: list[float | None]) -> CudaError:
        """Why there is no time between the last records of events, if there is none."""
        if not all(records):
            return CudaError.cudaErrorInvalidResourceHandle
        return CudaError.cudaErrorNotReady if None in [record[-1] for record in records] else CudaError.cudaSuccess

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        self.run_until(lambda: not self.streams[stream])
        self.host_ms = max(self.host_ms, self.clocks_ms[stream])
        return self._result("cudaStreamSynchronize")

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:
        self.capturing[stream] = []
        return self._result("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        return self._new(self.graphs, self.capturing.pop(stream))

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        return self._new(self.graphs, self.graphs[graph])

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        del self.graphs[graph]
        return (CudaError.cudaSuccess,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:
        self.launches += 1
        for work, ms, _ in self.graphs[graph]:
            self.put(stream, work, ms)
        return self._result("cudaGraphLaunch")

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        del self.streams[stream]
        return (CudaError.cudaSuccess,)

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        del self.events[event]
        return (CudaError.cudaSuccess,)

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return self._result("cudaGetLastError")

    def cudaGetErrorString(self, error: CudaError) -> tuple[Any, ...]:
        return CudaError.cudaSuccess, b"the text"

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return CudaError.cudaSuccess, 1 << 30, 8 << 30

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return CudaError.cudaSuccess, getattr(self, "driver", 12060)

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return CudaError.cudaSuccess, 13050

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return self._result("cudaGetDeviceCount", getattr(self, "count", 1))

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        return self._result("cudaSetDevice")

    def cudaGetDeviceProperties(self, index: int) -> tuple[Any, ...]:
        name = b"Some GPU".ljust(256, b"\0")
        properties = SimpleNamespace(name=name, major=8, minor=7, multiProcessorCount=16, totalGlobalMem=32 << 30)
        return CudaError.cudaSuccess, properties


class SimulatedContext:
    """A network in two kernels with scratch memory between them, as the real one has: frames must not interleave.
    A graph is good for as long as the context that it was captured from stays as it was.
    """

    def __init__(self, runtime: SimulatedRuntime, succeeds: Callable[[int], bool]) -> None:
        self.runtime, self.succeeds = runtime, succeeds
        self.scratch = 0
        self.addresses: dict[str, int] = {}
        self.changes = 0

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == SCRATCH_BYTES
        assert size <= len(self.runtime.memory[address])
        self.scratch = address
        self.changes += 1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return (name, shape) == (INPUT, SHAPES[INPUT])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return SHAPES[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        self.changes += 1
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if not self.succeeds(stream):
            return False
        addresses, changes = dict(self.addresses), self.changes
        scratch = array_at(self.scratch, INPUT, "uint8")

        def read() -> bool:
            assert self.changes == changes, "the context was changed after its kernels were captured"
            scratch[:] = array_at(addresses[INPUT], INPUT, "uint8")
            return True

        def write() -> bool:
            for name, values in answer(scratch).items():
                array_at(addresses[name], name, OUTPUT_TYPES[name])[:] = values
            return True

        self.runtime.put(stream, read, READ_MS)
        self.runtime.put(stream, write, WRITE_MS)
        return True


def array_at(address: int, name: str, dtype: str) -> np.ndarray:
    size = int(np.prod(SHAPES[name])) * np.dtype(dtype).itemsize
    assert address % np.dtype(dtype).itemsize == 0
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(SHAPES[name])


def answer(images: np.ndarray) -> dict[str, np.ndarray]:
    """What the simulated network says about images: something different for each pixel and each output."""
    row = images[:, 0, :ROWS, 2].astype(np.int32)
    values = {"segment_ids": images[..., 0], "depth": images[..., 1] / 3, "segment_category": row + 1000}
    values |= {"segment_score": row / 7, "segment_area": row * 300, "segment_depth": row / 11}
    return {name: values[name].astype(OUTPUT_TYPES[name]) for name in OUTPUTS}


class SimulatedTensorRt:
    """The part of the module tensorrt that `PlanRunner` uses."""

    __name__, __version__ = "tensorrt", "10.3.0"
    LayerInformationFormat = SimpleNamespace(JSON=1)
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=2)

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    def __init__(self, runtime: SimulatedRuntime) -> None:
        self.contexts: list[SimulatedContext] = []
        self.succeeds: Callable[[int], bool] = lambda stream: True  # whether kernels can be launched
        self.capturable: bool | None = None  # what contexts say; None: older ones, which say nothing
        names = [*OUTPUTS, INPUT]

        def create_execution_context(strategy: int) -> SimulatedContext:
            assert strategy == self.ExecutionContextAllocationStrategy.USER_MANAGED
            self.contexts.append(SimulatedContext(runtime, lambda stream: self.succeeds(stream)))
            if self.capturable is not None:
                self.contexts[-1].is_stream_capturable = lambda _: self.capturable  # type: ignore[attr-defined]
            return self.contexts[-1]

        self.engine = SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=lambda i: names[i],
            get_tensor_shape=lambda name: (-1, *SHAPES[name][1:]),
            get_tensor_dtype=lambda name: OUTPUT_TYPES[name],
            create_execution_context=create_execution_context,
            device_memory_size_v2=SCRATCH_BYTES,
            create_engine_inspector=lambda: SimpleNamespace(
                get_engine_information=lambda _: '{"Layers": [{"LayerType": "gemm"}, {"LayerType": "gemm"}]}'
            ),
        )
        self.log: Any = None

    def nptype(self, dtype: str) -> str:
        return dtype

    def Runtime(self, log: Any) -> Any:
        self.log = log

        def deserialize(plan: bytes) -> Any:
            if plan != b"plan":
                log.log(self.ILogger.Severity.ERROR, "magic tag does not match\n")
                return None
            return self.engine

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


@pytest.fixture(params=range(12))
def runtime(request: pytest.FixtureRequest) -> SimulatedRuntime:
    return SimulatedRuntime(seed=request.param)


@pytest.fixture
def one_runtime() -> SimulatedRuntime:
    return SimulatedRuntime(seed=0)


def make_runner(
    runtime: SimulatedRuntime, report: Callable[[str], None] = lambda text: None
) -> tuple[PlanRunner, SimulatedTensorRt]:
    trt = SimulatedTensorRt(runtime)
    return PlanRunner(trt, Cuda(runtime), b"plan", report), trt


def pictures(count: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(5)
    for _ in range(count):
        yield generator.integers(0, 256, SHAPES[INPUT], np.uint8)


def assert_same(outputs: dict[str, np.ndarray], images: np.ndarray) -> None:
    for name, values in answer(images).items():
        assert outputs[name].dtype == values.dtype
        np.testing.assert_array_equal(outputs[name], values, err_msg=name)


def test_every_frame_gets_its_own_answer_in_whatever_order_streams_advance(runtime: SimulatedRuntime) -> None:
    runner, _ = make_runner(runtime)
    assert runner.uses_graph
    for images in pictures(5):
        assert_same(runner.infer(images), images)
    assert runtime.launches == 5


def test_frames_under_way_together_do_not_mix(runtime: SimulatedRuntime) -> None:
    runner, _ = make_runner(runtime)
    batches = list(pictures(9))
    answers = runner.infer_each(iter(batches))
    for images, outputs in zip(batches, answers, strict=True):
        assert_same(outputs, images)


def test_each_slot_has_a_context_of_its_own_and_all_have_one_scratch_memory(one_runtime: SimulatedRuntime) -> None:
    _, trt = make_runner(one_runtime)
    assert len(trt.contexts) == 2
    assert len({context.scratch for context in trt.contexts}) == 1
    assert len({context.addresses[INPUT] for context in trt.contexts}) == 2


@pytest.mark.parametrize("fits", [True, False])
def test_tensorrt_rtx_compiles_once_for_all_contexts_and_starts(one_runtime: SimulatedRuntime, fits: bool) -> None:
    class Cache:
        def __init__(self) -> None:
            self.kernels = b""

        def deserialize(self, kernels: bytes) -> bool:
            self.kernels = kernels if fits else b""
            return fits

        def serialize(self) -> bytearray:
            return bytearray(self.kernels)

    class Settings:
        def create_runtime_cache(self) -> Cache:
            return Cache()

        def set_runtime_cache(self, cache: Cache) -> bool:
            self.cache = cache
            return True

        def set_execution_context_allocation_strategy(self, strategy: int) -> None:
            self.strategy = strategy

    class Rtx(SimulatedTensorRt):
        __name__ = "tensorrt_rtx"
        compilations = 0

        def __init__(self, runtime: SimulatedRuntime) -> None:
            super().__init__(runtime)
            create = self.engine.create_execution_context
            self.engine.create_runtime_config = Settings

            def create_execution_context(settings: Settings) -> SimulatedContext:
                if not settings.cache.kernels:
                    self.compilations += 1
                    settings.cache.kernels = b"compiled"
                return create(settings.strategy)

            self.engine.create_execution_context = create_execution_context

    trt = Rtx(one_runtime)
    compiled = PlanRunner(trt, Cuda(one_runtime), b"plan", lambda text: None).runtime_cache()
    assert (compiled, trt.compilations) == (b"compiled", 1)
    runner = PlanRunner(trt, Cuda(one_runtime), b"plan", lambda text: None, compiled)
    assert trt.compilations == (1 if fits else 2)
    (images,) = pictures(1)
    assert_same(runner.infer(images), images)
    assert make_runner(one_runtime)[0].runtime_cache() == b""  # TensorRT proper


# ---- the GPU's clock ----


@pytest.mark.parametrize("captures", [True, False])
def test_the_gpus_clock_tells_how_long_a_frame_uploads_computes_and_downloads(
    runtime: SimulatedRuntime, captures: bool
) -> None:
    trt = SimulatedTensorRt(runtime)
    trt.capturable = captures
    runner = PlanRunner(trt, Cuda(runtime), b"plan", lambda text: None)
    assert runner.uses_graph == captures
    for images in pictures(5):
        runner.infer(images)
        assert runner.gpu_stages_ms == STAGES_MS


def test_a_stages_time_is_its_own_also_where_it_waits_for_other_frames(runtime: SimulatedRuntime) -> None:
    runner, _ = make_runner(runtime)
    began_ms = runtime.host_ms
    for _ in runner.infer_each(pictures(9)):
        assert runner.gpu_stages_ms == STAGES_MS
    # All uploads but the first and all downloads but the last happen beside computation.
    assert runtime.host_ms - began_ms == UPLOAD_MS + 9 * STAGES_MS["compute"] + DOWNLOAD_MS


def test_a_download_does_not_count_its_waiting_for_the_one_before(runtime: SimulatedRuntime) -> None:
    runtime.download_ms = 4 * STAGES_MS["compute"]
    runner, _ = make_runner(runtime)
    for _ in runner.infer_each(pictures(5)):
        assert runner.gpu_stages_ms == {**STAGES_MS, "download": runtime.download_ms}


def test_a_frame_waits_once_makes_no_event_and_reads_no_clock_unless_asked(one_runtime: SimulatedRuntime) -> None:
    runner, _ = make_runner(one_runtime)
    (images,) = pictures(1)
    del one_runtime.calls[:]
    runner.infer(images)
    calls = Counter(one_runtime.calls)
    assert [calls[name] for name in ("cudaEventSynchronize", "cudaStreamSynchronize")] == [1, 0]
    assert set(calls) == {
        *("cudaEventRecord", "cudaStreamWaitEvent", "cudaEventSynchronize"),
        *("cudaMemcpyAsync", "cudaGraphLaunch"),
    }
    del one_runtime.calls[:]
    assert runner.gpu_stages_ms
    assert one_runtime.calls == ["cudaEventElapsedTime"] * len(STAGES_MS)


def test_there_are_no_times_without_an_answer_that_they_are_of(one_runtime: SimulatedRuntime) -> None:
    runner, _ = make_runner(one_runtime)
    (images,) = pictures(1)
    assert runner.gpu_stages_ms == {}
    runner.infer(images)
    one_runtime.fail["cudaGraphLaunch"] = CudaError.cudaErrorInvalidValue
    with pytest.raises(EngineError, match=r"CUDA failed \(cudaErrorInvalidValue: the text\)"):
        runner.infer(images)
    assert runner.gpu_stages_ms == {}
    one_runtime.fail.clear()
    runner.infer(images)
    assert runner.gpu_stages_ms == STAGES_MS
    runner.close()
    assert runner.gpu_stages_ms == {}


def test_a_clock_that_cannot_be_read_is_an_error_as_any_other_call(one_runtime: SimulatedRuntime) -> None:
    runner, _ = make_runner(one_runtime)
    (images,) = pictures(1)
    runner.infer(images)
    one_runtime.fail["cudaEventElapsedTime"] = CudaError.cudaErrorLaunchFailure
    with pytest.raises(DeviceLostError, match=r"the GPU stopped working \(cudaErrorLaunchFailure: the text\)"):
        _ = runner.gpu_stages_ms


# ---- what stays and what goes ----


def test_an_answer_outlives_the_next_call(one_runtime: SimulatedRuntime) -> None:
    runner, _ = make_runner(one_runtime)
    first_images, second_images = pictures(2)
    first = runner.infer(first_images)
    runner.infer(second_images)
    assert_same(first, first_images)


@pytest.mark.parametrize("captures", [0, 1])
def test_kernels_that_cannot_be_captured_are_launched_one_by_one(
    one_runtime: SimulatedRuntime, captures: int
) -> None:
    reports: list[str] = []
    trt = SimulatedTensorRt(one_runtime)
    good = iter(range(captures))  # as many captures succeed
    trt.succeeds = lambda stream: stream not in one_runtime.capturing or next(good, None) is not None
    runner = PlanRunner(trt, Cuda(one_runtime), b"plan", reports.append)
    assert not runner.uses_graph
    assert len(reports) == 1
    assert reports[0].startswith("no CUDA graph (TensorRT 10.3.0 could not run a frame")
    assert reports[0].endswith("kernels are launched one by one")
    for images in pictures(4):
        assert_same(runner.infer(images), images)
    assert one_runtime.launches == 0


def test_a_context_that_says_it_cannot_be_captured_is_believed(one_runtime: SimulatedRuntime) -> None:
    trt = SimulatedTensorRt(one_runtime)
    trt.capturable = False
    runner = PlanRunner(trt, Cuda(one_runtime), b"plan", lambda text: None)
    assert not runner.uses_graph
    (images,) = pictures(1)
    assert_same(runner.infer(images), images)


def test_closing_gives_everything_back_but_answers_that_are_still_held(one_runtime: SimulatedRuntime) -> None:
    runner, _ = make_runner(one_runtime)
    (images,) = pictures(1)
    outputs = runner.infer(images)
    runner.close()
    runner.close()
    tables = (one_runtime.memory, one_runtime.streams, one_runtime.events, one_runtime.graphs)
    assert [len(table) for table in tables] == [0, 0, 0, 0]
    assert_same(outputs, images)
    assert len(one_runtime.pinned) == 1
    del outputs
    assert not one_runtime.pinned


def test_exhausted_memory_is_told_with_what_is_free_and_leaves_nothing_behind(one_runtime: SimulatedRuntime) -> None:
    one_runtime.fail["cudaMalloc"] = CudaError.cudaErrorMemoryAllocation
    with pytest.raises(DeviceMemoryError, match=r"memory is exhausted \(1\.0 of 8\.0 GiB are free\)"):
        make_runner(one_runtime)
    assert not one_runtime.memory
    assert not one_runtime.streams


def test_a_lost_device_is_told_apart_and_can_be_closed(one_runtime: SimulatedRuntime) -> None:
    runner, _ = make_runner(one_runtime)
    (images,) = pictures(1)
    one_runtime.fail = dict.fromkeys(
        ("cudaEventSynchronize", "cudaStreamSynchronize", "cudaFree", "cudaGetLastError"),
        CudaError.cudaErrorLaunchFailure,
    )
    with pytest.raises(DeviceLostError, match=r"the GPU stopped working \(cudaErrorLaunchFailure: the text\)"):
        runner.infer(images)
    runner.close()


def test_a_frame_that_tensorrt_refuses_is_an_error_with_its_reason(one_runtime: SimulatedRuntime) -> None:
    runner, trt = make_runner(one_runtime)
    for slot in runner._slots:
        slot.graph = None
    trt.succeeds = lambda stream: bool(trt.log.log(trt.ILogger.Severity.ERROR, "address not set"))
    (images,) = pictures(1)
    with pytest.raises(EngineError, match=r"TensorRT 10.3.0 could not run a frame \(address not set\)"):
        runner.infer(images)


def test_a_device_that_is_lost_behind_tensorrts_back_is_told_apart(one_runtime: SimulatedRuntime) -> None:
    runner, trt = make_runner(one_runtime)
    for slot in runner._slots:
        slot.graph = None
    trt.succeeds = lambda stream: False
    one_runtime.fail["cudaStreamSynchronize"] = CudaError.cudaErrorLaunchFailure
    (images,) = pictures(1)
    with pytest.raises(DeviceLostError, match="the GPU stopped working"):
        runner.infer(images)


def test_a_plan_that_tensorrt_does_not_take_is_an_error_with_its_reason(one_runtime: SimulatedRuntime) -> None:
    with pytest.raises(EngineError, match=r"does not take the engine \(magic tag does not match\); remove it"):
        PlanRunner(SimulatedTensorRt(one_runtime), Cuda(one_runtime), b"junk", print)


def test_images_of_another_size_are_refused(one_runtime: SimulatedRuntime) -> None:
    runner, _ = make_runner(one_runtime)
    with pytest.raises(ValueError, match=r"images are uint8 \[1, 4, 8, 3\]; the engine takes uint8 \[1, 4, 6, 3\]"):
        runner.infer(np.zeros((1, 4, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="images are float32"):
        runner.infer(np.zeros(SHAPES[INPUT], np.float32))


def test_a_third_frame_at_once_is_refused(one_runtime: SimulatedRuntime) -> None:
    runner, _ = make_runner(one_runtime)
    (images,) = pictures(1)
    runner._submit(images)
    runner._submit(images)
    with pytest.raises(RuntimeError, match="two frames are under way already"):
        runner.infer(images)


def test_the_optimized_engines_layers_are_counted(one_runtime: SimulatedRuntime) -> None:
    assert make_runner(one_runtime)[0].layers() == {"gemm": 2}


@pytest.mark.parametrize("text", ["", "null", "[]", '{"Layers": [{"Name": "a \x02"}]}'])
def test_layers_that_tensorrt_tells_in_no_json_are_not_counted(one_runtime: SimulatedRuntime, text: str) -> None:
    runner, trt = make_runner(one_runtime)
    trt.engine.create_engine_inspector = lambda: SimpleNamespace(get_engine_information=lambda _: text)
    assert runner.layers() == {}


def test_plugins_are_registered_for_engines_from_the_cache_too(one_runtime: SimulatedRuntime) -> None:
    """Once, with the one logger that lives as long as they do."""

    class WithPlugins(SimulatedTensorRt):
        given: list[Any]

        def init_libnvinfer_plugins(self, log: Any, namespace: str) -> None:
            self.given.append(log)

    trt = WithPlugins(one_runtime)
    trt.given = []
    for _ in range(2):
        PlanRunner(trt, Cuda(one_runtime), b"plan", lambda text: None)
        assert trt.given == [trt.log]


# ---- the GPU ----


def test_the_gpu_is_described_for_fingerprints(one_runtime: SimulatedRuntime) -> None:
    gpu = Cuda(one_runtime).gpu()
    assert (gpu.name, gpu.compute_capability, gpu.multiprocessors) == ("Some GPU", "8.7", 16)
    assert gpu.driver


@pytest.mark.parametrize(
    ("state", "error", "text"),
    [
        ({"driver": 0}, CudaError.cudaErrorInsufficientDriver, "no NVIDIA driver is running here"),
        (
            {"driver": 12060},
            CudaError.cudaErrorInsufficientDriver,
            r"the driver knows CUDA 12\.6, cuda-bindings needs 13\.5; pip install 'cuda-bindings<13'",
        ),
        ({}, CudaError.cudaErrorNoDevice, "there is no GPU, or CUDA_VISIBLE_DEVICES hides it"),
        ({"count": 0}, CudaError.cudaSuccess, "there is no GPU, or CUDA_VISIBLE_DEVICES hides it"),
    ],
)
def test_a_machine_without_a_usable_gpu_is_told_what_it_lacks(
    one_runtime: SimulatedRuntime, state: dict[str, int], error: CudaError, text: str
) -> None:
    vars(one_runtime).update(state)
    if error:
        one_runtime.fail["cudaGetDeviceCount"] = error
    with pytest.raises(EngineError, match=text):
        Cuda(one_runtime).gpu()


# ---- the real bindings ----


def real_runtime() -> Any:
    return pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")


def test_the_real_bindings_have_every_function_that_is_simulated() -> None:
    runtime = real_runtime()
    simulated = [name for name, _ in inspect.getmembers(SimulatedRuntime) if name.startswith("cuda")]
    assert len(simulated) > 25
    assert [name for name in simulated if not hasattr(runtime, name)] == []
    assert runtime.cudaMemcpyKind.cudaMemcpyHostToDevice == SimulatedRuntime.cudaMemcpyKind.cudaMemcpyHostToDevice
    assert runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost == SimulatedRuntime.cudaMemcpyKind.cudaMemcpyDeviceToHost
    for error in CudaError:
        assert getattr(runtime.cudaError_t, error.name) == error


def test_the_real_bindings_take_every_call_and_report_the_missing_driver() -> None:
    runtime = real_runtime()
    if runtime.cudaGetDeviceCount()[0] == 0:
        pytest.skip("this machine has a GPU, on which made-up addresses would be used")
    cuda, array = Cuda(runtime), np.zeros(4, np.uint8)
    calls: list[Callable[[], Any]] = [
        lambda: cuda.allocate(16),
        lambda: cuda.free(0),
        lambda: cuda.pinned(16),
        lambda: cuda.upload(0, array, 0),
        lambda: cuda.download(array, 0, 0),
        cuda.stream,
        cuda.event,
        lambda: cuda.record(0, 0),
        lambda: cuda.wait(0, 0),
        lambda: cuda.join(0),
        lambda: cuda.elapsed_ms(0, 0),
        lambda: cuda.join_stream(0),
        lambda: cuda.destroy_stream(0),
        lambda: cuda.destroy_event(0),
        lambda: cuda.capture(0, lambda: None),
        lambda: cuda.launch(0, 0),
        lambda: cuda.destroy_graph(0),
        cuda.gpu,
    ]
    for call in calls:
        with pytest.raises(EngineError, match="driver"):
            call()
