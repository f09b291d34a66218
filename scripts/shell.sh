#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shell.sh [vm.sh options]: an interactive guest with module, device and tests.
. "$(dirname "$0")/lib.sh"

kind=${KERNEL:-stock}
"$TOP/scripts/programs.sh"
"$TOP/scripts/kernel.sh" "$kind" >/dev/null
build_module "$kind"
note "virtgpu-tests, virtgpu-demo and virtgpu-bench are in the PATH; exit ends the guest, Ctrl-A X kills it"
exec "$TOP/scripts/vm.sh" --name shell --kernel "$kind" --mem "${MEM:-2G}" --interactive "$@"
