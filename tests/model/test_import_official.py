# SPDX-License-Identifier: Apache-2.0
"""Official checkpoints become our networks, whole or not at all, and no file runs code."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch

from panoptic_depth_model.config import PRESETS, SOME_THING, segmentation_only
from panoptic_depth_model.import_official import ImportFailed, import_state, main, our_name, read_checkpoint
from panoptic_depth_model.weights import load_weights

SMALL = 200_000  # elements; larger tensors stay out of the files that tests write


@pytest.fixture(scope="module")
def checkpoints(official_shapes) -> dict[str, OrderedDict[str, torch.Tensor]]:
    """Random tensors under official names; expanded values where the file's content does not matter."""
    torch.manual_seed(0)
    return {
        network: OrderedDict((name, filled(name, shape)) for name, shape in shapes.items())
        for network, shapes in official_shapes.items()
    }


def filled(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if np.prod(shape) > SMALL:
        return 0.02 * torch.rand(1).expand(shape)  # one number in memory and in a file
    return 0.02 * torch.rand(shape)


@pytest.fixture(scope="module")
def depth_file(tmp_path_factory, checkpoints):
    """As detectron2's trainer writes it."""
    path = tmp_path_factory.mktemp("official") / "model_final.pth"
    rest = {"optimizer": {"state": {0: {"step": 3}}}, "scheduler": {"last_epoch": 3}, "iteration": 3}
    torch.save({"model": checkpoints["depth"], **rest}, path)
    return path


def run_main(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["import_official", *map(str, arguments)])
    main()


@pytest.mark.parametrize(
    ("network", "count", "config"),
    [
        ("depth", 383, PRESETS["paper"]),
        ("segmentation", 352, segmentation_only(PRESETS["paper"])),
        ("segmentation with counters", 405, segmentation_only(PRESETS["paper"])),
    ],
)
def test_a_panoptic_depth_checkpoint_fills_the_paper_preset(checkpoints, network, count, config):
    state = checkpoints[network]
    assert len(state) == count
    imported = import_state(state)
    assert imported.config == config
    assert not imported.training
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            assert_at_its_place(name, tensor, imported.state_dict())


def assert_at_its_place(official: str, tensor: torch.Tensor, ours: dict[str, torch.Tensor]) -> None:
    """By a few landmarks that are written out, and for the others that the values are where the name says."""
    stored = ours[LANDMARKS.get(official, our_name(official))]
    expected = tensor.flip(1) if official == "backbone.bottom_up.stem.conv1.weight" else tensor
    assert torch.equal(stored, expected.reshape(stored.shape)), official


# One of each kind of name, so that a mistake in the table of names shows.
LANDMARKS = {
    "backbone.bottom_up.stem.conv1.weight": "backbone.stem.0.weight",
    "backbone.bottom_up.stem.conv1.norm.running_var": "backbone.stem.1.running_var",
    "backbone.bottom_up.res2.0.shortcut.weight": "backbone.stages.0.0.downsample.0.weight",
    "backbone.bottom_up.res2.0.shortcut.norm.bias": "backbone.stages.0.0.downsample.1.bias",
    "backbone.bottom_up.res5.2.conv3.weight": "backbone.stages.3.2.conv3.weight",
    "backbone.bottom_up.res4.5.conv2.norm.running_mean": "backbone.stages.2.5.bn2.running_mean",
    "backbone.fpn_lateral2.weight": "pyramid.laterals.0.weight",
    "backbone.fpn_output5.bias": "pyramid.outputs.3.bias",
    "backbone.top_block.p6.weight": "pyramid.p6.weight",
    "backbone.top_block.p7.bias": "pyramid.p7.bias",
    "semantic_fpn.p2.0.weight": "semantic_pyramid.branches.0.0.weight",
    "semantic_fpn.p2.0.norm.bias": "semantic_pyramid.branches.0.1.bias",
    "semantic_fpn.p4.2.weight": "semantic_pyramid.branches.2.1.0.0.weight",
    "semantic_fpn.p5.4.norm.weight": "semantic_pyramid.branches.3.2.0.1.weight",
    "position_head.position_head.position_head_head_1.offset_mask_conv.bias": "location_head.tower.0.0.offsets.bias",
    "position_head.position_head.position_head_head_3.dcnv2.weight": "location_head.tower.2.0.weight",
    "position_head.position_head.position_head_head_2.dcnv2.norm.bias": "location_head.tower.1.1.bias",
    "position_head.out_inst.weight": "location_head.centers.weight",
    "position_head.out_sem.bias": "location_head.regions.bias",
    "kernel_head.kernel_head.kernel_head_head_1.weight": "mask_kernel_head.tower.0.0.weight",
    "kernel_head.kernel_head.kernel_head_head_3.norm.weight": "mask_kernel_head.tower.2.1.weight",
    "kernel_head.out_conv.bias": "mask_kernel_head.kernels.bias",
    "feature_encoder.encode_head.encode_head_head_2.dcnv2.bias": "embedding_head.mask.1.0.bias",
    "depth_encode_head.encode_head.depth_encode_head_head_3.dcnv2.bias": "embedding_head.depth_tower.2.0.bias",
    "depth_encode_head.embed_extractor.weight": "embedding_head.depth.weight",
    "depth_kernel_head.depth_kernel_head.depth_kernel_head_head_1.dcnv2.norm.bias": "depth_kernel_head.tower.0.1.bias",
    "depth_kernel_head.out_depth_kernel.bias": "depth_kernel_head.kernels.bias",
    "thing_generator.embed_extractor.weight": "embed_things.weight",
    "stuff_generator.embed_extractor.bias": "embed_stuff.bias",
}


@pytest.mark.parametrize(
    ("network", "width", "deformable"), [("PanopticFCN", 64, False), ("PanopticFCN Star", 256, True)]
)
def test_panoptic_fcn_brings_its_own_rules(checkpoints, network, width, deformable):
    imported = import_state(checkpoints[network])
    config, decisions = imported.config, imported.config.decisions
    assert config.depth is None
    assert (config.embedding.width, config.embedding.deformable) == (width, deformable)
    assert imported.embed_things.weight.shape == (width, 256)
    assert config.num_categories == 133
    assert config.thing_ids == tuple(range(80))
    assert config.regions == (SOME_THING, *range(80, 133))
    assert not config.adaptive_fusion
    assert decisions.allow_void
    assert (decisions.centers_per_level, decisions.min_center_score, decisions.min_region_score) == (50, 0.05, 0.05)
    assert (decisions.min_similarity, decisions.min_mask_probability) == (0.9, 0.4)
    assert (decisions.min_thing_score, decisions.max_overlap, decisions.min_stuff_area_px) == (0.2, 0.5, 4096)
    with torch.inference_mode():
        image = torch.zeros(1, 3, 32, 64)
        assert imported.infer(image).labels.shape == (1, 32, 64)


def test_the_command_writes_a_network_that_loads(tmp_path, monkeypatch, capsys, depth_file, checkpoints):
    run_main(monkeypatch, depth_file, tmp_path / "ours.pt")
    assert "383 tensors, none left over; 19 categories, 8 of them things, with depth" in capsys.readouterr().out
    network, facts = load_weights(tmp_path / "ours.pt")
    assert facts["imported_from"] == "model_final.pth"
    assert network.config == PRESETS["paper"]
    assert torch.equal(
        network.location_head.centers.bias, checkpoints["depth"]["position_head.out_inst.bias"]
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["ours.pt"]


def test_the_command_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "panoptic_depth_model.import_official", "absent.pth", str(tmp_path / "ours.pt")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 1
    assert "import_official: [Errno 2] No such file or directory: 'absent.pth'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path, monkeypatch, depth_file):
    with pytest.raises(SystemExit, match="nowhere is not a folder; create it first"):
        run_main(monkeypatch, depth_file, tmp_path / "nowhere" / "ours.pt")


def small_arrays(checkpoint) -> dict[str, np.ndarray]:
    """Part of a checkpoint as NumPy arrays, enough to tell whether a file was read."""
    return {name: tensor.numpy() for name, tensor in checkpoint.items() if tensor.numel() < 5000}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_numpy_arrays_is_read(tmp_path, checkpoints, protocol):
    arrays = small_arrays(checkpoints["depth"])
    contents = {"model": arrays, "__author__": "detectron2", "matching_heuristics": True}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(contents, protocol=protocol))
    state = read_checkpoint(tmp_path / "model.pkl")
    assert state.keys() == arrays.keys()
    assert all(np.array_equal(state[name].numpy(), arrays[name]) for name in arrays)


def test_a_file_of_old_torch_is_read(tmp_path, checkpoints):
    state = {name: tensor for name, tensor in checkpoints["depth"].items() if tensor.numel() < 5000}
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pth").keys() == state.keys()


def test_normalization_constants_are_not_tensors_of_the_network(tmp_path):
    model = {"pixel_mean": torch.zeros(3), "pixel_std": torch.ones(3), "weight": torch.ones(2)}
    torch.save({"model": model}, tmp_path / "model.pth")
    assert read_checkpoint(tmp_path / "model.pth").keys() == {"weight"}


class Program:
    """What a pickle may hold: a call that is made while it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("where", ["model", "beside the model"])
@pytest.mark.parametrize("kind", ["pkl", "pth", "old pth"])
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path, monkeypatch, kind, where):
    program = Program(f"touch {tmp_path / 'executed'}")
    model = {"weight": torch.ones(2)} if kind != "pkl" else {"weight": np.ones(2)}
    contents = {"model": {**model, "x": program}} if where == "model" else {"model": model, "optimizer": program}
    path = tmp_path / "model.file"
    if kind == "pkl":
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=kind == "pth")
    with pytest.raises(SystemExit, match=r"model\.file: not a checkpoint that can be read safely"):
        run_main(monkeypatch, path, tmp_path / "ours.pt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.file"]


def test_the_test_for_code_would_notice_it(tmp_path):
    contents = pickle.dumps({"model": Program(f"touch {tmp_path / 'executed'}")})
    pickle.loads(contents)
    assert (tmp_path / "executed").exists()


def without(state, name):
    return {other: tensor for other, tensor in state.items() if other != name}


STEM = "backbone.bottom_up.stem.conv1.weight"
BAD_STATES = {
    "a tensor more": (
        lambda s: {**s, "roi_heads.box.weight": torch.ones(1)},
        "1 tensors have no place in this network: roi_heads.box.weight",
    ),
    "a block more": (
        lambda s: {**s, "backbone.bottom_up.res5.3.conv1.weight": torch.ones(512, 2048, 1, 1)},
        r"1 tensors left over: backbone\.stages\.3\.3\.conv1\.weight",
    ),
    "a convolution in an upsampling": (
        lambda s: {**s, "semantic_fpn.p3.1.weight": torch.ones(256, 256, 3, 3)},
        r"2 tensors share places: semantic_fpn\.p3\.0\.weight, semantic_fpn\.p3\.1\.weight",
    ),
    "no stem": (lambda s: without(s, STEM), r"1 tensors missing: backbone\.stem\.0\.weight"),
    "no bias": (lambda s: without(s, "backbone.top_block.p7.bias"), r"1 tensors missing: pyramid\.p7\.bias"),
    "no embedding of things": (
        lambda s: without(s, "thing_generator.embed_extractor.bias"),
        "not a PanopticDepth or PanopticFCN checkpoint: thing_generator.embed_extractor.bias missing among 382 tensors",
    ),
    "another width": (
        lambda s: {**s, "kernel_head.out_conv.weight": torch.ones(128, 256, 3, 3)},
        r"1 tensors of another shape: mask_kernel_head\.kernels\.weight \(128, 256, 3, 3\), expected \(256, 256",
    ),
    "other categories": (
        lambda s: {**s, "position_head.out_sem.bias": torch.ones(11)},
        "8 thing centers and 11 regions; expected 8 and 19",
    ),
    "another network": (
        lambda s: {"conv1.weight": torch.ones(64, 3, 7, 7)},
        r"not a PanopticDepth or PanopticFCN checkpoint: .* missing among 1 tensors \(conv1\.weight, \.\.\.\)",
    ),
    "nothing": (lambda s: {}, "missing among 0 tensors"),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(checkpoints, name):
    change, message = BAD_STATES[name]
    with pytest.raises(ImportFailed, match=message):
        import_state(change(checkpoints["depth"]))


def test_a_checkpoint_that_does_not_fit_leaves_no_file(tmp_path, monkeypatch, checkpoints):
    torch.save({"model": without(checkpoints["depth"], STEM)}, tmp_path / "cut.pth")
    with pytest.raises(SystemExit, match="import_official: 1 tensors missing"):
        run_main(monkeypatch, tmp_path / "cut.pth", tmp_path / "ours.pt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["cut.pth"]


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, monkeypatch, depth_file):
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    torch.save({"model": {"a": "text"}}, tmp_path / "text.pth")
    (tmp_path / "words.pkl").write_bytes(pickle.dumps({"model": {"a": np.array(["text"])}}))
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><title>Quota exceeded</title>")
    whole = depth_file.read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ImportFailed, match=rf"{path.name}: (not a checkpoint|holds)"):
            read_checkpoint(path)


def test_half_precision_becomes_full(checkpoints):
    state = {name: tensor.half() for name, tensor in checkpoints["depth"].items()}
    assert {tensor.dtype for tensor in import_state(state).state_dict().values()} == {torch.float32, torch.int64}
