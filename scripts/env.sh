# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Prepares a bash for what scripts/setup.sh installed:  source scripts/env.sh

panoptic_depth_env() {
    local root=$1 site libraries free_kib
    if [ ! -x "$root/.venv/bin/python" ]; then
        echo "env: $root/.venv is missing; run scripts/setup.sh first" >&2
        return 1
    fi
    . "$root/.venv/bin/activate"

    site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    if [ -d "$site/ros_wheels_bootstrapper" ]; then
        # The wheels would otherwise restart every Python once to set these.
        libraries=$(find "$site" -maxdepth 1 -name 'ros_*.libs' | paste -sd: -)
        export LD_LIBRARY_PATH="$root/.venv/lib:$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
        export AMENT_PREFIX_PATH="$root/.venv" CMAKE_PREFIX_PATH="$root/.venv"
        export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 ROS_DISTRO="${ROS_DISTRO:-kilted}"
    fi
    if [ -f "$root/.venv/colcon/install/local_setup.sh" ]; then
        . "$root/.venv/colcon/install/local_setup.sh"
    fi
    # Ahead of the copy that colcon installed, so that edits take effect without a build.
    export PYTHONPATH="$root:$root/model:$root/training${PYTHONPATH:+:$PYTHONPATH}"

    # Images need more shared memory than Fast DDS takes by default (config/fastdds.xml), if this machine has it.
    free_kib=$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print $4 }')
    if [ "${free_kib:-0}" -ge 524288 ]; then
        case ${ROS_DISTRO:-} in
            humble | iron | jazzy)
                export FASTRTPS_DEFAULT_PROFILES_FILE="${FASTRTPS_DEFAULT_PROFILES_FILE:-$root/config/fastdds.xml}"
                ;;
            *)
                export FASTDDS_DEFAULT_PROFILES_FILE="${FASTDDS_DEFAULT_PROFILES_FILE:-$root/config/fastdds.xml}"
                ;;
        esac
    fi
}

panoptic_depth_env "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
