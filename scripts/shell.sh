#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shell.sh [vm.sh options]: an interactive guest with module, device and tests.
. "$(dirname "$0")/lib.sh"

kind=${KERNEL:-stock}
"$TOP/scripts/programs.sh"
"$TOP/scripts/kernel.sh" "$kind" >/dev/null
run_logged "building the module for the $kind kernel" "$BUILD/logs/module-$kind.log" \
	"$TOP/scripts/module.sh" "$kind"
note "virtgpu-tests, virtgpu-demo and virtgpu-bench are in the PATH; exit ends the guest, Ctrl-A X kills it"
exec "$TOP/scripts/vm.sh" --name shell --kernel "$kind" --mem "${MEM:-2G}" --interactive "$@"
