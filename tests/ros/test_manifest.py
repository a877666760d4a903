# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from panoptic_depth_ros.manifest import METADATA_KEY, Manifest, ModelError, read_manifest


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def number_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def onnx_bytes(properties: dict[str, str]) -> bytes:
    """A ModelProto by hand: ir_version = 1, producer_name = 2, graph = 7, opset_import = 8, metadata_props = 14."""
    weights = bytes(range(256)) * 300  # more than 64 KiB, and full of what could be taken for tags
    entries = [bytes_field(1, key.encode()) + bytes_field(2, text.encode()) for key, text in properties.items()]
    return b"".join(
        [
            number_field(1, 8),
            bytes_field(2, b"made by hand"),
            bytes_field(7, weights),
            bytes_field(8, number_field(2, 17)),
            *(bytes_field(14, entry) for entry in entries),
        ]
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def test_the_manifest_is_found_among_other_properties(path: Path, manifest: Manifest) -> None:
    path.write_bytes(onnx_bytes({"author": "someone", METADATA_KEY: manifest.to_json(), "note": ""}))
    assert read_manifest(path) == manifest


def test_a_manifest_written_by_onnx_is_read(path: Path, manifest: Manifest) -> None:
    onnx = pytest.importorskip("onnx")
    weights = onnx.numpy_helper.from_array(np.arange(40_000, dtype=np.float32), "w")
    graph = onnx.helper.make_graph([], "g", [], [], initializer=[weights])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {"author": "someone", METADATA_KEY: manifest.to_json()})
    onnx.save(model, path)
    assert read_manifest(path) == manifest


def test_a_manifest_may_be_long(path: Path, manifest: Manifest) -> None:
    scores: dict[str, float | str] = {f"score {i} on some data set": 0.5 for i in range(3000)}
    long = Manifest(**{**vars(manifest), "scores": scores})
    assert len(long.to_json()) > 1 << 16
    path.write_bytes(onnx_bytes({METADATA_KEY: long.to_json()}))
    assert read_manifest(path) == long


def test_a_file_cut_anywhere_is_refused(path: Path, manifest: Manifest) -> None:
    text = manifest.to_json()
    whole = onnx_bytes({METADATA_KEY: text})
    inside_the_weights_and_the_manifest = [25, 1000, *range(len(whole) - len(text), len(whole), 3)]
    for length in inside_the_weights_and_the_manifest:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=rf"model\.onnx: not ONNX, or cut short \({length} bytes\)"):
            read_manifest(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x72\x00",  # metadata_props without a key
        b"hi",  # field 13, the number 105
        b"\xff\xd8\xff\xe0 a photo",
        b"PK\x03\x04 an archive",
        b"<html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        b"\x80" * 50,
        bytes_field(14, b"\x0a\x01\xff\x12\x01x"),  # a key that is not UTF-8
    ],
    ids=["no key", "two bytes", "jpeg", "zip", "html", "lfs pointer", "endless number", "not utf-8"],
)
def test_a_foreign_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx: not ONNX, or cut short .*export it"):
        read_manifest(path)


def test_an_empty_file_is_said_to_be_empty(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(ModelError, match=r"model\.onnx: the file is empty; export it"):
        read_manifest(path)


def test_an_onnx_file_of_another_project_is_refused(path: Path) -> None:
    path.write_bytes(onnx_bytes({"author": "someone"}))
    with pytest.raises(ModelError, match="no manifest inside; export it with"):
        read_manifest(path)


def test_a_path_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.onnx: cannot be read \(No such file"):
        read_manifest(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"height": 0}, "network size 0x16"),
        ({"height": "12"}, "fit"),
        ({"focal_length_px": 0.0}, "focal_length_px is 0.0"),
        ({"focal_length_px": float("nan")}, "focal_length_px is nan"),
        ({"min_depth_m": 90.0}, "expected 0 < minimum < maximum"),
        ({"max_depth_m": None}, "fit"),
        ({"taxonomy": []}, "0 categories"),
        ({"taxonomy": None}, "fit"),
        ({"taxonomy": [{"name": "road"}]}, "category 0"),
        ({"wheels": 4}, "wheels"),
        ({"precision": "int4"}, "precision is 'int4'; expected one of float32, fp16, int8, int8-fp16"),
        ({"label_stride": -1}, "label_stride is -1 px"),
        ({"label_stride": None}, "fit"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(path: Path, manifest: Manifest, changes: dict, text: str) -> None:
    path.write_bytes(onnx_bytes({METADATA_KEY: json.dumps({**json.loads(manifest.to_json()), **changes})}))
    with pytest.raises(ModelError, match=rf"model\.onnx: its manifest does not fit this version \(.*{text}"):
        read_manifest(path)


def test_files_from_before_precisions_are_float32_of_unknown_stride(path: Path, manifest: Manifest) -> None:
    values = json.loads(manifest.to_json())
    del values["precision"], values["label_stride"]
    path.write_bytes(onnx_bytes({METADATA_KEY: json.dumps(values)}))
    assert read_manifest(path) == manifest
    assert (manifest.precision, manifest.label_stride) == ("float32", 0)


def test_a_missing_field_is_named(path: Path, manifest: Manifest) -> None:
    values = json.loads(manifest.to_json())
    del values["digest"]
    path.write_bytes(onnx_bytes({METADATA_KEY: json.dumps(values)}))
    with pytest.raises(ModelError, match="digest"):
        read_manifest(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"text"', "{}"])
def test_json_of_another_kind_is_refused(path: Path, text: str) -> None:
    path.write_bytes(onnx_bytes({METADATA_KEY: text}))
    with pytest.raises(ModelError, match="its manifest does not fit this version"):
        read_manifest(path)
