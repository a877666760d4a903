#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets the program up and runs it on the sample drive. Arguments go to `panoptic-depth demo`.

set -eo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/scripts/setup.sh" demo
# shellcheck source=scripts/env.sh
source "$root/scripts/env.sh"
exec panoptic-depth demo "$@"
