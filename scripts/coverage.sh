#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# coverage.sh GUEST...: what of the module was reached in guests that ran with
# VIRTGPU_COVERAGE=1, by the names of their folders in build/logs.
. "$(dirname "$0")/lib.sh"

exec "$TOP/scripts/in-root" python3 scripts/coverage.py "$@"
