#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets the tools up and runs every check: linters, types, import rules, the ROS build, the tests.
# Arguments go to pytest:  scripts/test.sh tests/ros -k cloud

set -eo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
scripts/setup.sh test
# shellcheck source=scripts/env.sh
source scripts/env.sh

step() {
    printf '\n== %s\n' "$*"
    "$@"
}

step ruff check .
step mypy
step lint-imports
if command -v colcon >/dev/null; then
    step scripts/build.sh
fi
step python -m pytest "$@"
