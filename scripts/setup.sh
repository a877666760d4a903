#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# scripts/setup.sh [demo|test]: makes .venv in this checkout, installs the program and builds its ROS messages.
#
#   demo   what the vehicle runs, without torch and Open3D (the default)
#   test   also training, OpenVINO, the TensorRT-RTX builder and the linters
#
# PYTHON=python3.12 scripts/setup.sh picks another interpreter. A second run has nothing to do and says so.
# ROS 2 is a sourced installation where there is one, otherwise wheels where they exist, otherwise left out.

set -eo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
log=$venv/setup.log
python=${PYTHON:-python3}
level=${1:-demo}
remedy="on Debian and Ubuntu: apt-get install g++ make python3-dev"

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

main() {
    case $level in demo | test) ;; *) fail "unknown level '$level'; expected demo or test" ;; esac
    cd "$root"
    check_python
    ros=$(find_ros)
    if [[ $ros != system ]] && grep -q 'ROS: system' "$venv/setup.base" 2>/dev/null; then
        fail ".venv was made with a sourced ROS 2; source it again (source /opt/ros/.../setup.bash), or remove .venv"
    fi
    missing=$(missing_build_tool)
    [[ -z $missing || $level == demo ]] || fail "$missing is missing, which building the messages needs; $remedy"
    if up_to_date; then
        say "$level level is up to date in .venv"
        return
    fi
    make_venv
    install_packages
    [[ $level == demo ]] || install_open3d_libraries
    build_messages
    fingerprint >"$venv/setup.$level"
    [[ $level == demo ]] || fingerprint >"$venv/setup.demo"
    say "done; to use it in this shell: source scripts/env.sh"
}

check_python() {
    command -v "$python" >/dev/null ||
        fail "$python was not found; install Python 3.10 or later, or name one: PYTHON=/path/to/python3 $0 $level"
    # A virtual environment is made from the interpreter beneath an active one.
    python=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$python is $("$python" --version); expected Python 3.10 or later: PYTHON=/path/to/python3 $0 $level"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module; on Debian and Ubuntu: apt-get install python3-venv"
}

# system: a sourced ROS 2 with colcon; wheels: from the package registry; none: no topics, recordings only.
find_ros() {
    if [[ -n ${ROS_DISTRO:-} ]] && "$python" -c 'import rclpy' 2>/dev/null && command -v colcon >/dev/null; then
        echo system
    elif [[ $(uname -sm) == "Linux x86_64" ]] && getconf GNU_LIBC_VERSION >/dev/null 2>&1 &&
        "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 14))'; then
        echo wheels
    else
        echo none
    fi
}

# The first of what compiling the messages needs and this machine lacks.
missing_build_tool() {
    local tool headers
    [[ $ros != none ]] || return 0
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    for tool in g++ make "$headers/Python.h"; do
        if ! command -v "$tool" >/dev/null && [[ ! -f $tool ]]; then
            echo "$tool"
            return
        fi
    done
}

# What .venv is made for: another value, and it is made anew.
base() { echo "$root, $("$python" --version) ($python), ROS: $ros${ROS_DISTRO:+ $ROS_DISTRO}"; }

# What the set-up depends on: another value, and it runs again.
fingerprint() {
    base
    echo "missing: $missing"
    cat pyproject.toml setup.py package.xml CMakeLists.txt msg/*.msg scripts/setup.sh | cksum
}

up_to_date() { [[ -x $venv/bin/python && "$(cat "$venv/setup.$level" 2>/dev/null)" == "$(fingerprint)" ]]; }

make_venv() {
    local options=()
    if [[ -e $venv && "$(cat "$venv/setup.base" 2>/dev/null)" != "$(base)" ]]; then
        [[ -f $venv/setup.base ]] || fail "$venv was not made by this script; move it away and run this again"
        say "removing .venv, made for: $(cat "$venv/setup.base")"
        rm -rf "$venv"
    fi
    if [[ ! -x $venv/bin/pip ]]; then
        say "making .venv with $("$python" --version)"
        mkdir -p "$venv"
        base >"$venv/setup.base"
        [[ $ros != system ]] || options=(--system-site-packages)
        logged "python -m venv failed." "$python" -m venv "${options[@]}" "$venv"
    fi
}

install_packages() {
    local extras='' constraints=()
    case $ros in
        system)
            say "using the sourced ROS 2 $ROS_DISTRO"
            # cv_bridge is compiled for one major release of NumPy and does not import under the other.
            if "$python" -c 'import numpy, sys; sys.exit(int(numpy.__version__.split(".")[0]) >= 2)' 2>/dev/null; then
                echo 'numpy<2' >"$venv/constraints.txt"
                constraints=(-c "$venv/constraints.txt")
            fi
            ;;
        wheels) extras=ros ;;
        none)
            say "no sourced ROS 2, and no ROS 2 wheels for $("$python" --version) on $(uname -sm):" \
                "topics are unavailable, recordings work (panoptic-depth run)"
            ;;
    esac
    if [[ $level == test ]]; then
        extras=${extras:+$extras,}openvino,test,train
        say "installing the program, PyTorch and the tools (3.6 GB to load, 7 GB of disk, minutes; log: .venv/setup.log)"
    else
        say "installing the program (195 MB to load, 700 MB of disk, minutes; log: .venv/setup.log)"
    fi
    pip_install "${constraints[@]}" -e "$root${extras:+[$extras]}"
    if [[ $level == test && $(uname -sm) == "Linux x86_64" ]]; then
        # Builds engines without a GPU. Its meta-package asks for more than the registry carries, hence --no-deps.
        pip_install --no-deps tensorrt_rtx_cu13_bindings tensorrt_rtx_cu13_libs
    fi
}

pip_install() {
    logged "pip could not install the packages; is the package registry reachable?" \
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

install_open3d_libraries() {
    local package absent=()
    command -v dpkg-query >/dev/null || return 0
    for package in libgl1 libgomp1 libx11-6 libusb-1.0-0; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || absent+=("$package")
    done
    [[ ${#absent[@]} -gt 0 ]] || return 0
    if [[ $(id -u) -eq 0 ]]; then
        say "installing ${absent[*]} for Open3D"
        if logged_quietly apt-get update && logged_quietly apt-get install -y --no-install-recommends "${absent[@]}"; then
            return
        fi
    fi
    say "Open3D needs: apt-get install ${absent[*]}; its tests are skipped until then"
}

build_messages() {
    [[ $ros != none ]] || return 0
    if [[ -n $missing ]]; then
        say "$missing is missing: our own messages are not built and their topics are off; $remedy"
        return
    fi
    [[ $ros != wheels ]] || correct_wheel_headers
    say "building the messages"
    logged "colcon could not build the messages." "$root/scripts/build.sh"
}

# The wheels' CMake files name the headers of the machine that built them.
correct_wheel_headers() {
    local python_headers numpy_headers
    python_headers=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    numpy_headers=$("$venv/bin/python" -c 'import numpy; print(numpy.get_include())')
    { grep -rlZ --include='*.cmake' /opt/python/ "$venv/share" || true; } | xargs -0 -r sed -i -E \
        -e "s#/opt/python/[^;\"]*/numpy/_core/include#$numpy_headers#g" \
        -e "s#/opt/python/[^;\"]*/include/python3[^;\"]*#$python_headers#g"
}

logged() {
    local complaint=$1
    shift
    logged_quietly "$@" && return
    tail -n 20 "$log" >&2
    if tail -n 20 "$log" | grep -q 'No space left on device'; then
        complaint="A disk is full; df -h shows which."
    fi
    fail "$complaint The whole output: $log"
}

logged_quietly() {
    printf '\n$ %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1
}

main
