#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Processes, and then threads, that do at random what can be done with mirrored
# memory, for ten minutes or DURATION seconds, in the debug kernel. SEED repeats a run;
# else it is what the hash of the commit says.
. "$(dirname "$0")/lib.sh"

seconds=${DURATION:-600}
commit=$(git -C "$TOP" rev-parse HEAD 2>/dev/null) || commit=
seed=${SEED:-$((16#0${commit:0:8}))}

"$TOP/scripts/programs.sh"
"$TOP/scripts/kernel.sh" debug >/dev/null
build_module debug
note "stress for $seconds s, SEED=$seed (log: $BUILD/logs/stress/console.log)"
exec "$TOP/scripts/vm.sh" --name stress --kernel debug --mem 3G --cpus 4 \
	--append "numa=fake=2 movablecore=30%" --timeout $((seconds * 2 + 600)) \
	"export VIRTGPU_TESTS_SECONDS=$((seconds / 2)) VIRTGPU_TESTS_SEED=$seed; virtgpu-tests run stress"
