#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Processes that do at random what can be done with mirrored memory, for ten
# minutes or DURATION seconds, in the debug kernel. SEED repeats a run.
. "$(dirname "$0")/lib.sh"

seconds=${DURATION:-600}
seed=${SEED:-}

"$TOP/scripts/programs.sh"
"$TOP/scripts/kernel.sh" debug >/dev/null
run_logged "building the module for the debug kernel" "$BUILD/logs/module-debug.log" \
	"$TOP/scripts/module.sh" debug
note "stress for $seconds s (log: $BUILD/logs/stress/console.log)"
exec "$TOP/scripts/vm.sh" --name stress --kernel debug --mem 3G --cpus 4 \
	--append "numa=fake=2 movablecore=30%" --timeout $((seconds * 2 + 600)) \
	"export VIRTGPU_TESTS_SECONDS=$seconds ${seed:+VIRTGPU_TESTS_SEED=$seed}; virtgpu-tests run stress"
