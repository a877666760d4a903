# SPDX-License-Identifier: Apache-2.0
"""PyTorch as an engine: copies for inference, half precision, and the order of a GPU's work on a simulated one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from panoptic_depth_ros.engines.parity import check, compare
from panoptic_depth_ros.manifest import OUTPUT_TYPES, ModelError
from panoptic_depth_ros.taxonomy import Category, Taxonomy
from panoptic_depth_training import gpu_runner, inference
from panoptic_depth_training.facts import ModelFacts
from panoptic_depth_training.gpu_runner import GpuRunner, HostBuffers
from panoptic_depth_training.inference import prepared
from panoptic_depth_training.torch_engine import TorchOptions, engine_for, open_model

HALF = TorchOptions(half=True)


@pytest.fixture(scope="module")
def facts(network) -> ModelFacts:
    things = network.config.thing_ids
    taxonomy = Taxonomy(tuple(Category(f"c{i}", i in things, (i, i, i)) for i in range(19)))
    return ModelFacts("compact", taxonomy, 64, 128, 100.0)


@pytest.fixture(scope="module")
def reference(network, facts, images) -> dict[str, np.ndarray]:
    return engine_for(network, facts, "n").infer(images.numpy())


def test_a_copy_for_inference_answers_as_its_network_and_leaves_it_alone(network, facts, images, reference):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    strides = [parameter.stride() for parameter in network.parameters()]
    copy = prepared(network, half=False)
    answer = engine_for(copy, facts, "n").infer(images.numpy())
    np.testing.assert_array_equal(answer["segment_ids"], reference["segment_ids"])
    np.testing.assert_allclose(answer["depth"], reference["depth"], rtol=1e-3)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copy.modules())
    kernels = [m.weight for m in copy.modules() if isinstance(m, nn.Conv2d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert [parameter.stride() for parameter in network.parameters()] == strides
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_in_half_precision_outputs_keep_their_types_and_stay_near(network, facts, images, reference, monkeypatch):
    monkeypatch.setitem(inference.HALF, "cpu", torch.float16)  # as on a GPU
    answer = engine_for(network, facts, "n", options=HALF).infer(images.numpy())
    assert {name: str(values.dtype) for name, values in answer.items()} == OUTPUT_TYPES
    check(compare([reference], [answer]), "float16")
    assert not np.array_equal(answer["depth"], reference["depth"])


def test_maps_are_computed_in_half_precision_and_handed_on_in_single(network, images):
    copy = prepared(network, half=True)
    seen = []
    for module in (copy.location_head.tower[0][0], copy.embedding_head.mask[0][0]):
        module.register_forward_hook(lambda module, inputs, output: seen.append((module.weight.dtype, output.dtype)))
    with torch.inference_mode():
        maps = copy(copy.normalized(images))
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    handed_on = [maps.mask_embedding, maps.depth_embedding, *(part for level in maps.levels for part in level)]
    assert {part.dtype for part in handed_on} == {torch.float32}
    assert {parameter.dtype for parameter in copy.embed_things.parameters()} == {torch.float32}


def test_areas_beyond_the_largest_number_of_half_precision_are_exact(network, facts, monkeypatch):
    monkeypatch.setitem(inference.HALF, "cpu", torch.float16)
    image = np.full((1, 512, 512, 3), 90, np.uint8)
    answer = engine_for(network, facts, "n", (512, 512), HALF).infer(image)
    pixels = np.bincount(answer["segment_ids"].ravel(), minlength=256)[1:]
    assert pixels.max() > torch.finfo(torch.float16).max
    np.testing.assert_array_equal(answer["segment_area"][0], pixels[: answer["segment_area"].shape[1]])


def test_the_whole_network_compiles_as_one_graph(network, facts, images, reference, monkeypatch):
    # Without generating code, which takes minutes: what could fail here is following Python through the network.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    answer = engine_for(network, facts, "n", options=TorchOptions(compile=True)).infer(images.numpy())
    np.testing.assert_array_equal(answer["segment_ids"], reference["segment_ids"])


def test_a_cuda_graph_needs_a_gpu(network, facts):
    with pytest.raises(ModelError, match="network is on cpu; take device cuda"):
        engine_for(network, facts, "n", options=TorchOptions(graph=True))


def test_options_of_weights_are_refused_for_an_exported_model():
    with pytest.raises(ModelError, match="decided at export"):
        open_model(Path("model.onnx"), options=HALF)


def test_the_description_says_how_it_computes(network, facts):
    assert engine_for(network, facts, "n", options=HALF).description.endswith("on CPU, bfloat16")
    assert engine_for(network, facts, "n").description.endswith("on CPU")


class SimulatedGpu:
    """What is launched inside a capture runs at each replay; an event keeps the number of kernels before it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu = self
        self.captured: list[Callable[[], None]] = []
        self.is_capturing = False
        self.kernels = 0

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at = 0

            def record(self) -> None:
                self.at = gpu.kernels

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: Event) -> float:
                return float(end.at - self.at)

        class Stream:
            def __init__(self, device: torch.device | None = None) -> None:
                pass

            def wait_stream(self, other: Stream) -> None:
                pass

            def synchronize(self) -> None:
                pass

        class Graph:
            def replay(self) -> None:
                for kernel in gpu.captured:
                    gpu.execute(kernel)

        @contextmanager
        def capture(graph: Graph, stream: Stream) -> Iterator[None]:
            gpu.is_capturing = True
            yield
            gpu.is_capturing = False

        for name, value in (
            ("Event", Event), ("Stream", Stream), ("CUDAGraph", Graph), ("graph", capture),
            ("stream", lambda stream: nullcontext()), ("current_stream", Stream),
        ):
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(gpu_runner, "pinned", lambda shape, dtype: torch.empty(shape, dtype=dtype))

    def launch(self, kernel: Callable[[], None]) -> None:
        if self.is_capturing:
            self.captured.append(kernel)
        else:
            self.execute(kernel)

    def execute(self, kernel: Callable[[], None]) -> None:
        self.kernels += 1
        kernel()

    def sums(self, images: Tensor) -> list[Tensor]:
        """A network of two kernels: the sum of all bytes, and twice that."""
        once, twice = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        self.launch(lambda: once.copy_(images.sum()))
        self.launch(lambda: twice.copy_(2 * once))
        return [once, twice]


@pytest.mark.parametrize("as_graph", [False, True])
def test_every_frame_gets_its_own_answer_which_lasts_over_the_next_call(monkeypatch, as_graph):
    gpu = SimulatedGpu(monkeypatch)
    runner, buffers = GpuRunner(gpu.sums, torch.device("cpu"), as_graph), HostBuffers(torch.device("cpu"))
    frames = [np.full((1, 2, 2, 3), value, np.uint8) for value in (1, 2, 3)]
    first = buffers.fetch(runner(frames[0]))
    assert [int(output[0]) for output in first] == [12, 24]
    second = buffers.fetch(runner(frames[1]))
    assert [int(output[0]) for output in (*first, *second)] == [12, 24, 24, 48]
    assert [int(output[0]) for output in buffers.fetch(runner(frames[2]))] == [36, 72]
    assert int(second[0][0]) == 24
    assert runner.elapsed_ms == 2  # both kernels lie between the events, and nothing else does
    assert len(gpu.captured) == (2 if as_graph else 0)


def test_a_captured_graph_refuses_another_batch(monkeypatch):
    gpu = SimulatedGpu(monkeypatch)
    runner = GpuRunner(gpu.sums, torch.device("cpu"), as_graph=True)
    runner(np.zeros((1, 2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\[2, 2, 2, 3\]; the CUDA graph was captured for \[1, 2, 2, 3\]"):
        runner(np.zeros((2, 2, 2, 3), np.uint8))
