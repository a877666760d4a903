# SPDX-License-Identifier: Apache-2.0
"""The little of CUDA that running an engine takes, with errors that say what to do.

Streams, events, graphs and device addresses are CUDA's own handles. Every call of the bindings returns a tuple that
begins with an error code; `Cuda` raises instead. None of it has run on a GPU yet: the calls are checked against the
real bindings, and the order of operations against a simulated device.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panoptic_depth_ros.engines.errors import DeviceLostError, DeviceMemoryError, EngineError

_DRIVER_VERSION_FILE = Path("/sys/module/nvidia/version")  # absent on Jetson

# After one of these every later call of the process fails, too.
_LOST = {
    "cudaErrorAssert",
    "cudaErrorContained",
    "cudaErrorContextIsDestroyed",
    "cudaErrorDeviceUninitialized",
    "cudaErrorECCUncorrectable",
    "cudaErrorExternalDevice",
    "cudaErrorHardwareStackError",
    "cudaErrorIllegalAddress",
    "cudaErrorIllegalInstruction",
    "cudaErrorInvalidAddressSpace",
    "cudaErrorInvalidPc",
    "cudaErrorLaunchFailure",
    "cudaErrorLaunchTimeout",
    "cudaErrorMisalignedAddress",
    "cudaErrorMpsClientTerminated",
    "cudaErrorNvlinkUncorrectable",
    "cudaErrorTensorMemoryLeak",
    "cudaErrorUnknown",
}


@dataclass(frozen=True)
class Gpu:
    """The GPU that this process sees first (CUDA_VISIBLE_DEVICES chooses)."""

    name: str
    compute_capability: str  # such as 8.6
    multiprocessors: int
    memory_bytes: int
    driver: str


class Cuda:
    """CUDA's runtime, as ``cuda.bindings.runtime`` offers it."""

    def __init__(self, runtime: Any) -> None:
        self._rt = runtime

    def gpu(self) -> Gpu:
        """The first GPU.

        Raises:
            EngineError: there is none, or its driver does not fit; with the remedy.
        """
        driver = self._call(*self._rt.cudaDriverGetVersion())
        needed = self._call(*self._rt.cudaRuntimeGetVersion())
        if driver == 0:
            raise EngineError("no NVIDIA driver is running here (nvidia-smi shows one); device:=cpu needs none")
        error, count = self._rt.cudaGetDeviceCount()
        if error == self._rt.cudaError_t.cudaErrorInsufficientDriver:
            raise EngineError(
                f"the driver knows CUDA {_version(driver)}, cuda-bindings needs {_version(needed)}; "
                f"pip install 'cuda-bindings<{needed // 1000}', or update the driver"
            )
        if error == self._rt.cudaError_t.cudaErrorNoDevice or (error == 0 and count == 0):
            raise EngineError("there is no GPU, or CUDA_VISIBLE_DEVICES hides it; device:=cpu needs none")
        self._call(error)
        self._call(*self._rt.cudaSetDevice(0))
        properties = self._call(*self._rt.cudaGetDeviceProperties(0))
        return Gpu(
            name=bytes(properties.name).split(b"\0")[0].decode(),
            compute_capability=f"{properties.major}.{properties.minor}",
            multiprocessors=properties.multiProcessorCount,
            memory_bytes=properties.totalGlobalMem,
            driver=_driver_release() or f"CUDA {_version(driver)}",
        )

    def runtime_version(self) -> str:
        return _version(self._call(*self._rt.cudaRuntimeGetVersion()))

    # ---- memory ----

    def allocate(self, size: int) -> int:
        """Device memory of this many bytes; its address."""
        return int(self._call(*self._rt.cudaMalloc(size)))

    def free(self, address: int) -> None:
        self._call(*self._rt.cudaFree(address))

    def pinned(self, size: int) -> np.ndarray:
        """Page-locked host memory [size] uint8. It lives as long as an array that shows it, whatever is closed."""
        address = int(self._call(*self._rt.cudaHostAlloc(size, self._rt.cudaHostAllocDefault)))
        owner = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(owner, self._rt.cudaFreeHost, address).atexit = False
        return np.ctypeslib.as_array(owner)

    def upload(self, address: int, array: np.ndarray, stream: Any) -> None:
        """Begin to copy a pinned array to the device."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(*self._rt.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, stream))

    def download(self, array: np.ndarray, address: int, stream: Any) -> None:
        """Begin to copy from the device into a pinned array."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(*self._rt.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, stream))

    # ---- order ----

    def stream(self) -> Any:
        """A stream that does not wait for the default one."""
        return self._call(*self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking))

    def event(self) -> Any:
        """An event that keeps the GPU's time. On it a thread sleeps: one that spins takes a core from the camera."""
        return self._call(*self._rt.cudaEventCreateWithFlags(self._rt.cudaEventBlockingSync))

    def record(self, event: Any, stream: Any) -> None:
        self._call(*self._rt.cudaEventRecord(event, stream))

    def wait(self, stream: Any, event: Any) -> None:
        """Let a stream wait for an event; the host goes on."""
        self._call(*self._rt.cudaStreamWaitEvent(stream, event, 0))

    def join(self, event: Any) -> None:
        """Let the host wait for an event."""
        self._call(*self._rt.cudaEventSynchronize(event))

    def elapsed_ms(self, began: Any, ended: Any) -> float:
        """Milliseconds between two events by the GPU's clock, to about 0.5 us; raises where one is still to come."""
        return float(self._call(*self._rt.cudaEventElapsedTime(began, ended)))

    def join_stream(self, stream: Any) -> None:
        self._call(*self._rt.cudaStreamSynchronize(stream))

    def destroy_stream(self, stream: Any) -> None:
        self._call(*self._rt.cudaStreamDestroy(stream))

    def destroy_event(self, event: Any) -> None:
        self._call(*self._rt.cudaEventDestroy(event))

    # ---- graphs ----

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """What ``work`` puts into a stream, as a graph that launches at once. The stream is usable afterwards."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(*self._rt.cudaStreamBeginCapture(stream, mode))
        try:
            work()
        except BaseException:
            error, *begun = self._rt.cudaStreamEndCapture(stream)  # fails where the work made the capture invalid
            if error == self._rt.cudaError_t.cudaSuccess:
                self._rt.cudaGraphDestroy(*begun)
            self._rt.cudaGetLastError()  # forgets that
            raise
        graph = self._call(*self._rt.cudaStreamEndCapture(stream))
        try:
            return self._call(*self._rt.cudaGraphInstantiate(graph, 0))
        finally:
            self._call(*self._rt.cudaGraphDestroy(graph))

    def launch(self, graph: Any, stream: Any) -> None:
        self._call(*self._rt.cudaGraphLaunch(graph, stream))

    def destroy_graph(self, graph: Any) -> None:
        self._call(*self._rt.cudaGraphExecDestroy(graph))

    # ---- errors ----

    def _call(self, error: Any, *values: Any) -> Any:
        if error == self._rt.cudaError_t.cudaSuccess:
            return values[0] if values else None
        raise self._explained(error)

    def _explained(self, error: Any) -> EngineError:
        name = getattr(error, "name", str(error))
        if name == "cudaErrorMemoryAllocation":
            return DeviceMemoryError(f"the GPU's memory is exhausted{self._memory()}; end other programs that use it")
        text = self._rt.cudaGetErrorString(error)[1]
        text = text.decode() if isinstance(text, bytes) else str(text)
        if name in _LOST:
            return DeviceLostError(
                f"the GPU stopped working ({name}: {text}); start the process again; dmesg tells more (Xid)"
            )
        return EngineError(f"CUDA failed ({name}: {text})")

    def _memory(self) -> str:
        error, *sizes = self._rt.cudaMemGetInfo()
        if error != self._rt.cudaError_t.cudaSuccess:
            return ""
        free, total = (size / 2**30 for size in sizes)
        return f" ({free:.1f} of {total:.1f} GiB are free)"


def open_cuda() -> Cuda:
    """CUDA's runtime.

    Raises:
        EngineError: its Python bindings are not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError:
        try:
            from cuda import cudart as runtime  # before 12.6
        except ImportError as error:
            raise EngineError("CUDA's Python bindings are not installed; pip install cuda-bindings") from error
    return Cuda(runtime)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _driver_release() -> str:
    try:
        return _DRIVER_VERSION_FILE.read_text().strip()
    except OSError:
        return ""
