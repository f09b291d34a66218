#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Builds everything and runs the demonstration: a program in a stock Debian guest
# lets the device outside compute on its malloc'ed memory: pinned, then mirrored, and
# then by pointers, with nothing registered.
. "$(dirname "$0")/lib.sh"

"$TOP/scripts/programs.sh"
"$TOP/scripts/kernel.sh" stock >/dev/null
build_module stock
note "booting the guest (log: $BUILD/logs/demo/console.log)"
# Two nodes, so that memory can be moved from one to the other.
exec "$TOP/scripts/vm.sh" --name demo --mem 2G --append numa=fake=2 --timeout 600 virtgpu-demo
