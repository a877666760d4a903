#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the ROS package with colcon into .venv/colcon, with the ROS 2 that scripts/setup.sh found.

set -eo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/env.sh
source "$root/scripts/env.sh"

cd "$root"
colcon --log-base .venv/colcon/log build --base-paths . \
    --build-base .venv/colcon/build --install-base .venv/colcon/install --merge-install \
    --event-handlers console_direct+ --cmake-args -DBUILD_TESTING=OFF "$@"
