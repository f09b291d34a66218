#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Builds the device, the client library and the guest's programs.
. "$(dirname "$0")/lib.sh"

preconditions
"$TOP/scripts/root.sh" >/dev/null
run_logged "building the device and the guest programs" "$BUILD/logs/programs.log" \
	"$TOP/scripts/in-root" cargo build --release --locked --workspace
