# SPDX-License-Identifier: Apache-2.0
"""The package as users install it: manifest, version, messages, shared files, and what its light half imports."""

from __future__ import annotations

import ast
import dataclasses
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock
from xml.etree import ElementTree

import pytest

from panoptic_depth_ros import huge_pages
from panoptic_depth_ros.share import share_path

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()
NOT_ROS = {"cv2", "numpy", "onnxruntime", "openvino", "rich", "rosbags", "tensorrt", "cuda"}
LIGHT_HALF = ("taxonomy", "camera", "manifest", "preprocess", "prediction", "cloud", "pipeline", "visualize")


def declared_dependencies() -> set[str]:
    return {element.text or "" for element in MANIFEST if element.tag.endswith("depend")}


def imported_packages(path: Path) -> set[str]:
    """Top-level names of the absolute imports of a module, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_the_manifest_has_what_format_3_asks_for() -> None:
    assert MANIFEST.get("format") == "3"
    assert MANIFEST.findtext("name") == "panoptic_depth"
    assert re.fullmatch(r"\d+\.\d+\.\d+", MANIFEST.findtext("version") or "")
    maintainer = MANIFEST.find("maintainer")
    assert maintainer is not None
    assert re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", maintainer.get("email", ""))


def test_every_ros_package_that_the_code_imports_is_declared() -> None:
    sources = [*(ROOT / "panoptic_depth_ros").rglob("*.py"), *(ROOT / "launch").glob("*.py")]
    imported = set().union(*map(imported_packages, sources))
    foreign = imported - sys.stdlib_module_names - NOT_ROS - {"panoptic_depth", "panoptic_depth_ros"}
    assert foreign, "the node imports rclpy at least"
    assert foreign <= declared_dependencies()


def test_every_message_is_generated() -> None:
    build = (ROOT / "CMakeLists.txt").read_text()
    assert set(re.findall(r'"msg/(\w+)\.msg"', build)) == {path.stem for path in (ROOT / "msg").glob("*.msg")}


# What the build asks of ROS, reduced to the target that it changes; where that exports headers differs by release.
ROS_FOR_CMAKE = """
function(rosidl_generate_interfaces name)
  file(WRITE ${CMAKE_BINARY_DIR}/generated.c "int generated(void) { return 0; }")
  add_library(${name}__rosidl_generator_py SHARED ${CMAKE_BINARY_DIR}/generated.c)
  target_include_directories(${name}__rosidl_generator_py %s)
  install(TARGETS ${name}__rosidl_generator_py EXPORT generated LIBRARY DESTINATION lib)
  install(EXPORT generated DESTINATION share FILE generated.cmake)
endfunction()
macro(ament_python_install_package)
endmacro()
macro(ament_export_dependencies)
endmacro()
macro(ament_package)
endmacro()
"""


@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="needs cmake and a compiler")
@pytest.mark.parametrize(
    "headers",
    [
        "PRIVATE /usr/include",
        "PUBLIC /usr/include",
        f"PUBLIC {ROOT}/.venv/include",
        f"PUBLIC /usr/include {ROOT}/.venv/include",
    ],
)
def test_the_build_is_configured_wherever_the_generated_library_exports_headers(tmp_path: Path, headers: str) -> None:
    for name in ("ament_cmake", "ament_cmake_python", "rosidl_default_generators", "std_msgs"):
        config = tmp_path / "ros" / "share" / name / "cmake" / f"{name}Config.cmake"
        config.parent.mkdir(parents=True)
        config.write_text(ROS_FOR_CMAKE % headers if name == "rosidl_default_generators" else "")
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DCMAKE_PREFIX_PATH={tmp_path / 'ros'}"]
    environment = {name: value for name, value in os.environ.items() if name != "CMAKE_PREFIX_PATH"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py passes to setuptools."""
    setuptools = pytest.importorskip("setuptools")
    arguments: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", arguments.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return arguments


def test_the_version_is_the_same_everywhere(setup_arguments: dict[str, Any]) -> None:
    version = MANIFEST.findtext("version")
    assert setup_arguments["version"] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_pip_installs_every_package(setup_arguments: dict[str, Any]) -> None:
    roots = [ROOT, ROOT / "model", ROOT / "training"]
    sources = {path.parent.name for root in roots for path in root.glob("panoptic_depth_*/__init__.py")}
    assert sources == setup_arguments["package_dir"].keys()
    assert "panoptic_depth_ros.engines" in setup_arguments["packages"]
    assert sources <= set(setup_arguments["packages"])


def test_a_wheel_carries_the_shared_files(setup_arguments: dict[str, Any]) -> None:
    carried = {(folder, name) for folder, names in setup_arguments["data_files"] for name in names}
    for name in ("config/fastdds.xml", "launch/panoptic_depth.launch.py", "msg/PanopticInfo.msg"):
        assert (f"share/panoptic_depth/{Path(name).parent}", name) in carried
    assert ("share/panoptic_depth", "package.xml") in carried
    assert all((ROOT / name).is_file() for _, name in carried)


def test_built_messages_have_the_fields_of_their_definitions() -> None:
    messages = pytest.importorskip("panoptic_depth.msg", reason="the messages are not built: run scripts/build.sh")
    for path in (ROOT / "msg").glob("*.msg"):
        lines = [line.split("#")[0].split() for line in path.read_text().splitlines()]
        fields = [words[1] for words in lines if words]
        assert list(getattr(messages, path.stem).get_fields_and_field_types()) == fields


def test_the_light_half_loads_neither_ros_nor_engines_nor_torch() -> None:
    modules = ", ".join(f"panoptic_depth_ros.{name}" for name in LIGHT_HALF)
    heavy = {"cv_bridge", "onnxruntime", "openvino", "rclpy", "rosbags", "sensor_msgs", "tensorrt", "torch"}
    program = f"import sys, {modules}; print(sorted({heavy!r} & sys.modules.keys()))"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_shared_files_come_from_the_source_tree() -> None:
    assert share_path("config", "fastdds.xml") == ROOT / "config" / "fastdds.xml"


def test_a_missing_shared_file_is_reported_with_the_places_searched() -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(ROOT / "model" / "none.onnx"))):
        share_path("model", "none.onnx")


def test_an_installed_package_finds_its_files_in_the_ament_index(tmp_path: Path) -> None:
    module = tmp_path / "lib" / "panoptic_depth_ros" / "share.py"
    module.parent.mkdir(parents=True)
    module.write_bytes((ROOT / "panoptic_depth_ros" / "share.py").read_bytes())
    shared = tmp_path / "share" / "panoptic_depth" / "config" / "some.yaml"
    shared.parent.mkdir(parents=True)
    shared.touch()
    program = "from share import share_path; print(share_path('config', 'some.yaml'))"
    environment = os.environ | {"AMENT_PREFIX_PATH": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=module.parent, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(shared)


def test_the_parameters_file_states_the_defaults() -> None:
    yaml = pytest.importorskip("yaml")
    from panoptic_depth_ros.parameters import NodeParameters

    text = share_path("config", "panoptic_depth.yaml").read_text()
    assert yaml.safe_load(text)["/**"]["ros__parameters"] == dataclasses.asdict(NodeParameters())


def test_the_rviz_displays_show_topics_that_the_node_publishes() -> None:
    yaml = pytest.importorskip("yaml")
    from panoptic_depth_ros.outputs import TYPES

    config = yaml.safe_load(share_path("rviz", "panoptic_depth.rviz").read_text())
    shown = [display["Topic"]["Value"] for display in config["Visualization Manager"]["Displays"] if "Topic" in display]
    published = {f"/panoptic_depth/output/{name}" for name in TYPES}
    assert len(shown) == 4
    assert set(shown) <= published


def test_the_dds_profile_gives_images_shared_memory() -> None:
    profile = ElementTree.parse(share_path("config", "fastdds.xml"))
    tags = {element.tag.split("}")[1]: (element.text or "").strip() for element in profile.iter()}
    full_hd_bytes = 1920 * 1080 * 3
    assert int(tags["segment_size"]) > 10 * full_hd_bytes
    assert int(tags["port_queue_capacity"]) * 64 * 1024 > int(tags["segment_size"])


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("", {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
        ("glibc.malloc.arena_max=2", {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"}),
        ("glibc.malloc.hugetlb=0", {}),
    ],
)
def test_huge_pages_leave_the_users_choice_alone(
    chosen: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", chosen)
    assert huge_pages.environment() == expected


def test_a_process_gets_its_memory_in_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    system, enabled = platform.libc_ver(), Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if system[0] != "glibc" or [int(part) for part in system[1].split(".")] < [2, 35]:
        pytest.skip(f"glibc 2.35 or later takes the choice, and this is {' '.join(system)}")
    if not enabled.exists() or "[madvise]" not in enabled.read_text():
        pytest.skip("this kernel does not leave huge pages to each program's choice")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    program = "memory = bytearray(64 << 20); print(open('/proc/self/smaps_rollup').read())"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | huge_pages.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"AnonHugePages:\s+(\d+) kB", answer.stdout)
    assert found
    assert int(found[1]) >= 2 << 10


LAUNCH_FILE = ROOT / "launch" / "panoptic_depth.launch.py"


def test_the_launch_file_starts_the_node_in_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("launch", "launch.actions", "launch.conditions", "launch.substitutions", "launch_ros.actions"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    launch_file = runpy.run_path(str(LAUNCH_FILE))
    launch_file["node"](MagicMock())
    (call,) = launch_file["Node"].call_args_list
    assert call.kwargs["executable"] == "panoptic_depth_node"
    assert call.kwargs["additional_env"] == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def test_every_launch_argument_has_a_default_and_a_description() -> None:
    pytest.importorskip("launch_ros.actions")
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    description = get_launch_description_from_python_launch_file(str(LAUNCH_FILE))
    arguments = [entity for entity in description.entities if isinstance(entity, DeclareLaunchArgument)]
    assert {"image", "camera_info", "model", "params_file", "namespace"} <= {argument.name for argument in arguments}
    for argument in arguments:
        assert argument.description
        assert argument.default_value is not None
        argument.execute(LaunchContext())


@pytest.mark.parametrize(
    ("level", "python", "complaint"),
    [
        ("everything", sys.executable, "unknown level 'everything'; expected demo or test"),
        ("demo", "/no/such/python", "/no/such/python was not found; install Python 3.10 or later"),
    ],
)
def test_the_set_up_refuses_what_it_cannot_do_in_a_sentence(level: str, python: str, complaint: str) -> None:
    command = ["bash", str(ROOT / "scripts" / "setup.sh"), level]
    result = subprocess.run(command, env=os.environ | {"PYTHON": python}, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert complaint in result.stderr


def test_the_environment_script_asks_for_the_set_up_where_there_is_none(tmp_path: Path) -> None:
    script = tmp_path / "scripts" / "env.sh"
    script.parent.mkdir()
    script.write_bytes((ROOT / "scripts" / "env.sh").read_bytes())
    result = subprocess.run(["bash", "-c", f"source {script}"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "run scripts/setup.sh first" in result.stderr
