#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Builds the Debian packages into build/deb: virtgpu-userptr-dkms, the source of
# the module, and virtgpu-userptr-tools.
. "$(dirname "$0")/lib.sh"

"$TOP/scripts/programs.sh"
# The same input gives the same packages.
SOURCE_DATE_EPOCH=$(git -C "$TOP" log -1 --format=%ct 2>/dev/null || date +%s)
export SOURCE_DATE_EPOCH
exec "$TOP/scripts/in-root" scripts/deb-make.sh
