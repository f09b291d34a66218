#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The ioctls at random in the debug kernel, for a minute or FUZZ_SECONDS. FUZZ_SEED
# repeats a run. The device is a good one; suite `fuzz` has another.
. "$(dirname "$0")/lib.sh"

seconds=${FUZZ_SECONDS:-60}
seed=${FUZZ_SEED:-}

"$TOP/scripts/programs.sh"
"$TOP/scripts/kernel.sh" debug >/dev/null
build_module debug
note "fuzzing for $seconds s (log: $BUILD/logs/fuzz/console.log)"
exec "$TOP/scripts/vm.sh" --name fuzz --kernel debug --mem 1G --timeout $((seconds * 4 + 600)) \
	"virtgpu-fuzz --seconds $seconds ${seed:+--seed $seed}"
