# SPDX-License-Identifier: Apache-2.0
"""What benchmarks count, cut, take turns at, and write down. Times themselves are no matter of tests."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from panoptic_depth_ros.camera import PinholeCamera
from panoptic_depth_ros.manifest import OUTPUT_TYPES, OUTPUTS, Manifest, read_manifest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from panoptic_depth_model.panoptic_depth import Choice  # noqa: E402
from panoptic_depth_ros.engines.tensorrt import TensorRtEngine  # noqa: E402
from panoptic_depth_training.inference import with_decisions  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch):
    """A function that imports a module as the commands in benchmarks/ do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def picture(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value, np.uint8)


class Recorder:
    """A run that notes the pictures it gets and takes as many milliseconds as it is told."""

    def __init__(self, *engine_ms: float, stop_at: int = -1) -> None:
        self.pictures: list[int] = []
        self._engine_ms, self._stop_at = engine_ms, stop_at

    def __call__(self, rgb: np.ndarray) -> dict[str, float]:
        if len(self.pictures) == self._stop_at:
            raise KeyboardInterrupt
        self.pictures.append(int(rgb[0, 0, 0]))
        return {"engine": self._engine_ms[(len(self.pictures) - 1) % len(self._engine_ms)]}


def candidates_with(bench, *runs: Recorder) -> list:
    candidate = bench("candidates").Candidate
    return [candidate(f"m{i}", "compact", (4, 4), "ONNX Runtime", "float32", "whole", r) for i, r in enumerate(runs)]


def test_all_candidates_see_the_same_pictures(bench):
    latency = bench("latency")
    slow, fast = Recorder(4.0), Recorder(2.0)
    times, rounds = latency.measure(candidates_with(bench, slow, fast), [picture(i) for i in range(3)], 7)
    assert rounds == 7
    assert slow.pictures == fast.pictures
    assert set(slow.pictures) == {0, 1, 2}
    assert len(slow.pictures) == latency.WARM_UP + 7
    assert [t.of("engine", 50, 99) for t in times] == [[4.0, 4.0], [2.0, 2.0]]


def test_ctrl_c_ends_the_rounds_and_keeps_those_that_were_done_without_warming_up(bench):
    latency = bench("latency")
    run = Recorder(*[100.0] * latency.WARM_UP, 1.0, 1.0, stop_at=latency.WARM_UP + 2)
    times, rounds = latency.measure(candidates_with(bench, run), [picture(0)], 100)
    assert rounds == 2
    assert times[0].of("engine", 50) == [1.0]


def test_ratios_compare_what_is_alike_but_for_one_thing(bench):
    latency, candidates = bench("latency"), bench("candidates")
    percentiles = bench("panoptic_depth_ros.timing").Percentiles
    rows = []
    for engine, precision, part, size, ms in (
        ("PyTorch CPU", "float32", "whole", (4, 4), 30.0),
        ("ONNX Runtime", "float32", "whole", (4, 4), 20.0),
        ("ONNX Runtime", "float32", "before top-K", (4, 4), 15.0),
        ("ONNX Runtime", "int8", "whole", (4, 4), 8.0),
        ("ONNX Runtime", "int8", "whole", (8, 8), 1.0),  # nothing of its size to compare with
    ):
        times = percentiles()
        times.add({"engine": ms})
        rows.append((candidates.Candidate("m", "compact", size, engine, precision, part, Recorder(ms)), times))
    table = latency.ratio_table(*zip(*rows, strict=True))
    assert [cells[1:] for cells in table.rows] == [
        ("ONNX Runtime float32 against PyTorch CPU float32", "1.50"),
        ("ONNX Runtime: float32 whole against before top-K", "1.33 (25.0% of the whole)"),
        ("ONNX Runtime int8 against PyTorch CPU float32", "3.75"),
        ("ONNX Runtime: int8 against float32", "2.50"),
    ]


def test_the_gpus_own_times_have_columns_where_an_engine_tells_them(bench):
    latency, candidates = bench("latency"), bench("candidates")
    percentiles = bench("panoptic_depth_ros.timing").Percentiles

    def table(*rows: tuple[str, dict[str, float]]):
        entries = []
        for engine, laps in rows:
            times = percentiles()
            times.add(laps)
            entries.append((candidates.Candidate("m", "compact", (4, 4), engine, "fp16", "whole", Recorder()), times))
        figures = latency.latency_table(*zip(*entries, strict=True), "title")
        named = [dict(zip(figures.header, cells, strict=True)) for cells in figures.rows]
        return [{name: text for name, text in row.items() if name.endswith(" p50 p99")} for row in named]

    cpu = ("ONNX Runtime", {"engine": 20.0})
    torch_gpu = ("PyTorch CUDA", {"engine": 6.0, "GPU": 5.0})
    tensorrt = ("TensorRT", {"engine": 4.0, "upload": 0.25, "GPU": 3.0, "download": 0.5})
    assert table(cpu) == [{}]
    assert table(cpu, torch_gpu) == [{"GPU p50 p99": ""}, {"GPU p50 p99": "5.00 5.00"}]
    assert table(torch_gpu, tensorrt) == [
        {"upload p50 p99": "", "GPU p50 p99": "5.00 5.00", "download p50 p99": ""},
        {"upload p50 p99": "0.25 0.25", "GPU p50 p99": "3.00 3.00", "download p50 p99": "0.50 0.50"},
    ]


class ClockedEngine(TensorRtEngine):
    """TensorRT without a GPU: it finds no segment in any image, and its clock tells a new time with each."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest, self._frames = manifest, 0

    @property
    def gpu_stages_ms(self) -> dict[str, float]:
        return {"upload": self._frames + 0.25, "compute": self._frames + 0.5, "download": self._frames + 0.75}

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self._frames += 1
        shapes = {name: images.shape[:3] if name in ("segment_ids", "depth") else (1, 2) for name in OUTPUTS}
        return {name: np.zeros(shape, OUTPUT_TYPES[name]) for name, shape in shapes.items()}


def test_of_exported_models_tensorrt_alone_tells_the_gpus_own_times(bench, monkeypatch):
    candidates = bench("candidates")
    path = ROOT / "model" / "compact.onnx"
    engine = ClockedEngine(read_manifest(path))
    monkeypatch.setattr(candidates, "open_engine", lambda path, device, *_, **__: engine)
    camera = PinholeCamera(100, 200, 160.0, 160.0, 100.0, 50.0)
    [attempt] = candidates.attempts(str(path), candidates.Setting(camera, ("tensorrt",)))
    candidate = attempt.open()
    for frame in (1, 2):
        laps = candidate.run(np.zeros((100, 200, 3), np.uint8))
        assert set(laps) == {"preprocess", "engine", "prediction", "maps", "frame", "upload", "GPU", "download"}
        assert (laps["upload"], laps["GPU"], laps["download"]) == (frame + 0.25, frame + 0.5, frame + 0.75)
    assert candidates.gpu_clock(Answering({})) is None


def test_a_model_is_timed_from_picture_to_maps(bench, capsys):
    model = str(ROOT / "model" / "compact.onnx")
    arguments = [model, "--device", "cpu", "--threads", "1", "--frames", "2", "--camera", "400x640"]
    assert bench("latency").main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 frames of each, 13 pictures 640x400, 1 threads" in printed
    assert "compact.onnx" in printed
    assert "arithmetic ms" in printed


def test_a_graph_is_cut_before_its_first_choice_and_behind_the_last_convolution_of_other_branches(bench):
    kernel = np.random.default_rng(0).normal(size=(2, 2, 1, 1)).astype(np.float32)
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                node("Cast", ["image"], ["x"], to=onnx.TensorProto.FLOAT),
                node("Conv", ["x", "kernel"], ["trunk"]),
                node("Relu", ["trunk"], ["features"]),
                node("Conv", ["features", "kernel"], ["left"]),
                node("Conv", ["features", "kernel"], ["right"]),
                node("Conv", ["features", "kernel"], ["apart"]),
                node("Add", ["left", "right"], ["sum"]),
                node("Sigmoid", ["sum"], ["score"]),
                node("TopK", ["score", "count"], ["best", "place"], axis=3),
                node("TopK", ["best", "count"], ["very_best", "rank"], axis=3),  # from what is chosen already
                node("Mul", ["apart", "very_best"], ["chosen"]),
                node("Conv", ["chosen", "kernel"], ["answer"]),  # behind a choice
            ],
            "two heads",
            [value("image", onnx.TensorProto.UINT8, [1, 2, 3, 3])],
            [value("answer", onnx.TensorProto.FLOAT, [1, 2, 3, 3])],
            [onnx.numpy_helper.from_array(kernel, "kernel"), onnx.numpy_helper.from_array(np.array([1]), "count")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    cut = bench("before_choices").cut_before_choices(model)
    assert [output.name for output in cut.graph.output] == ["apart", "score"]
    assert {n.op_type for n in cut.graph.node} == {"Cast", "Conv", "Relu", "Add", "Sigmoid"}
    image = np.arange(18, dtype=np.uint8).reshape(1, 2, 3, 3)
    features = np.maximum(np.einsum("oi,bihw->bohw", kernel[..., 0, 0], image.astype(np.float32)), 0)
    session = onnxruntime.InferenceSession(cut.SerializeToString(), providers=["CPUExecutionProvider"])
    apart, score = session.run(None, {"image": image})
    expected = np.einsum("oi,bihw->bohw", kernel[..., 0, 0], features)
    np.testing.assert_allclose(apart, expected, rtol=1e-5)
    np.testing.assert_allclose(score, 1 / (1 + np.exp(-2 * expected)), rtol=1e-5)


class ConvolutionAndProduct(nn.Module):
    """3 to 8 channels by a 3x3 convolution; then the channels' products with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)

    def infer(self, image: torch.Tensor) -> torch.Tensor:
        flat = self.convolution(image).relu().flatten(2)
        return flat @ flat.mT


def test_arithmetic_and_traffic_are_those_of_convolutions_and_products(bench):
    arithmetic = bench("arithmetic")
    network = ConvolutionAndProduct().to("meta")
    pixels = 16 * 32
    macs = arithmetic.multiply_accumulates(network, 16, 32)["Global"]
    assert macs * 1e9 == pytest.approx(pixels * 8 * 3 * 9 + 8 * 8 * pixels)
    convolution = 3 * pixels + (8 * 3 * 9 + 8) + 8 * pixels
    product = 2 * 8 * pixels + 8 * 8
    assert arithmetic.traffic(network, 16, 32) == convolution + product


def test_results_of_one_day_and_device_are_sections_of_one_file(bench, monkeypatch, tmp_path):
    reporting = bench("reporting")
    monkeypatch.setattr(reporting, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    machine = reporting.Machine("Some CPU", 2, 16.0, "", "Linux", ("numpy 2",), "abc", 0.5)
    figures = reporting.Figures("title", ("a", "b"), [("1", "x|y")], ("note",))
    path = reporting.save("NVIDIA H200 (SXM)", machine, [figures])
    assert path == reporting.save("NVIDIA H200 (SXM)", machine, [figures])
    assert path.name.startswith("nvidia-h200-sxm_")
    text = path.read_text()
    assert text.count("# NVIDIA H200 (SXM)\n") == 1
    assert text.count("| a | b |\n| --- | --- |\n| 1 | x\\|y |\n\nnote") == 2
    assert "- commit: abc" in text
    assert "`GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python " in text


class Answering:
    """An engine that always says the same."""

    def __init__(self, outputs: dict[str, np.ndarray]) -> None:
        self._outputs = outputs

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return self._outputs

    def close(self) -> None:
        pass


def half_and_half(border: int) -> dict[str, np.ndarray]:
    """Two segments on either side of a column of 100."""
    ids = np.ones((1, 10, 100), np.uint8)
    ids[..., border:] = 2
    areas = np.array([[10 * border, 1000 - 10 * border]], np.int32)
    return {
        "segment_ids": ids,
        "depth": np.full(ids.shape, 5.0, np.float32),
        "segment_category": np.array([[3, 4]], np.int32),
        "segment_score": np.ones((1, 2), np.float32),
        "segment_area": areas,
        "segment_depth": np.full((1, 2), 5.0, np.float32),
    }


def test_an_engine_that_answers_otherwise_is_marked_unless_nobody_trained_the_network(bench):
    pytest.importorskip("open3d")
    acceptance = bench("acceptance")
    images = np.zeros((1, 1, 10, 100, 3), np.uint8)

    def mark(border: int, precision: str, is_trained: bool) -> str:
        subject = acceptance.Subject("compact", Path("w.pt"), is_trained, images, [half_and_half(50)])
        return acceptance.agreement(lambda _: Answering(half_and_half(border)), Path("m"), subject, precision)

    assert mark(50, "float32", True) == "100.00%, 0.0e+00, 0.0e+00"
    assert mark(60, "float32", False).endswith("!")
    assert mark(60, "fp16", True).endswith("!")
    assert not mark(60, "fp16", False).endswith("!")
    nothing = {name: np.zeros_like(values) for name, values in half_and_half(50).items()}
    subject = acceptance.Subject("compact", Path("w.pt"), True, images, [nothing])
    assert acceptance.agreement(lambda _: Answering(nothing), Path("m"), subject, "float32").endswith("!")


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (ValueError("no such weights"), 2)])
def test_what_was_accepted_before_an_end_is_shown(bench, monkeypatch, capsys, error, status):
    pytest.importorskip("open3d")
    acceptance = bench("acceptance")
    monkeypatch.setattr(acceptance, "images_for", lambda *_: np.zeros((3, 1, 64, 64, 3), np.uint8))

    def subject(preset: str, *_: object) -> str:
        if preset == "paper":
            raise error
        return preset

    monkeypatch.setattr(acceptance, "subject", subject)
    monkeypatch.setattr(acceptance, "row", lambda preset, precision, *_: (preset, precision, "25.6", "", "", ""))
    assert acceptance.main(["--presets", "compact", "paper", "--precisions", "fp16"]) == status
    printed = capsys.readouterr()
    assert "3 images 256x512" in printed.out
    assert "not ended" in printed.out
    assert "compact" in printed.out
    assert ("no such weights" in printed.err) == (status == 2)


def test_weights_of_a_preset_that_is_not_tested_are_refused(bench, capsys):
    pytest.importorskip("open3d")
    assert bench("acceptance").main(["--presets", "compact", "--weights", "vehicel=v.pt"]) == 2
    assert "--weights names vehicel; tested are compact" in capsys.readouterr().err


@torch.inference_mode()
def test_tables_as_large_as_their_usage_lose_nothing(bench, soft_patterns):
    decisions = bench("decisions")
    patterns = soft_patterns(128, 256)
    network = bench("untrained").untrained("compact", patterns).eval()
    sizes = network.config.decisions
    tiny = replace(sizes, centers_per_level=2, max_centers=3, max_things=2, merge_rounds=1)
    tight = with_decisions(network, tiny)
    for image in patterns.split(1):
        needed = decisions.usage(tight, image)
        assert needed == decisions.usage(network, image)  # however large its own tables are
        levels = network(network.normalized(image)).levels

        def things(centers: int, count: int, *, levels: list = levels, level: int = needed.centers_per_level) -> list:
            given = replace(sizes, centers_per_level=level, max_centers=centers, max_things=count)
            score = with_decisions(network, given).segments(levels).things.score
            return sorted(score[score > 0].tolist())

        fitting = things(needed.centers, needed.things)
        assert fitting == pytest.approx(things(900, 900, level=900), abs=1e-6)
        assert len(fitting) == needed.things > 2
        assert len(things(needed.centers, needed.things - 1)) == needed.things - 1


def test_rounds_are_those_after_which_nothing_changes(bench, monkeypatch, images):
    decisions = bench("decisions")
    network = bench("untrained").untrained("compact", images).eval()
    settled_after = 3

    def choose(merging, segments, *_: object) -> Choice:  # drops a thing a round, the last first
        size, round = segments.things.score.shape[1], merging.config.decisions.merge_rounds
        stay = torch.arange(size) < size - min(round, settled_after)
        score = torch.cat([stay, torch.ones(9)])[None]  # with stuff
        return Choice(score, score)

    monkeypatch.setattr(type(network), "choose", choose)
    with torch.inference_mode():
        needed = decisions.usage(network, images[:1])
    assert needed.rounds == settled_after
    assert needed.last_thing == needed.centers - settled_after  # as large is the table that is looked at


def test_the_table_says_which_images_want_more_than_there_is(bench, monkeypatch, tmp_path, images, capsys):
    decisions = bench("decisions")
    network = bench("untrained").untrained("compact", images).eval()
    for number, image in enumerate(images):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image.numpy())
    found = iter([decisions.Usage(100, 129, 31, 21, 0), decisions.Usage(101, 140, 20, 20, 5)])
    monkeypatch.setattr(decisions, "usage", lambda *_: next(found))
    monkeypatch.setattr(decisions, "network_of", lambda *_: (network, None))
    monkeypatch.setenv("COLUMNS", "200")
    assert decisions.main(["w.pt", "--images", str(tmp_path), "--size", "64x128"]) == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    cells = {name.strip(): (limit.strip(), cell.strip()) for name, limit, cell in rows}
    assert cells["centers per level"] == ("100", "100, 101, 101; 1")
    assert cells["centers"] == ("128", "134, 140, 140; 2")
    assert cells["things"] == ("21", "26, 31, 31; 1")
    assert cells["last thing"] == ("21", "20, 21, 21; 0")
    assert cells["rounds"] == ("4", "2, 5, 5; 1")


def test_decisions_of_what_is_no_source_are_refused(bench, capsys):
    assert bench("decisions").main(["preset:compact", "--images", "nowhere"]) == 1
    assert capsys.readouterr().err.startswith("decisions: nowhere: neither a folder of pictures nor a recording")


def test_torchvisions_deformable_convolution_runs_where_it_is_asked_for(bench, monkeypatch):
    from panoptic_depth_model import convolutions

    theirs = Mock(wraps=convolutions.deform_conv2d)
    monkeypatch.setattr(convolutions, "deform_conv2d", theirs)
    candidates = bench("candidates")
    camera = PinholeCamera(32, 64, 100.0, 100.0, 32.0, 16.0)
    setting = candidates.Setting(camera, ("cpu",), size=(32, 64), deform_conv2d=True)
    own, published = candidates.attempts("preset:paper", setting)
    own.open().run(np.zeros((32, 64, 3), np.uint8))
    theirs.assert_not_called()
    published.open().run(np.zeros((32, 64, 3), np.uint8))
    theirs.assert_called()
    assert published.engine == candidates.PUBLISHED
