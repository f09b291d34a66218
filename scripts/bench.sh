#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Builds everything, runs the benchmarks in a guest with the release kernel and
# keeps the results in bench/results/KERNEL-DATE.json. Arguments go to
# virtgpu-bench.
. "$(dirname "$0")/lib.sh"

"$TOP/scripts/programs.sh"
kernel=$("$TOP/scripts/kernel.sh" release)
run_logged "building the module for the release kernel" "$BUILD/logs/module-release.log" \
	"$TOP/scripts/module.sh" release
note "booting the guest (log: $BUILD/logs/bench/console.log)"
status=0
"$TOP/scripts/vm.sh" --name bench --kernel release --mem "${BENCH_MEM:-6G}" \
	--timeout "${BENCH_TIMEOUT:-3600}" "virtgpu-bench $*" |
	grep --line-buffered -v '^BENCH-JSON ' || status=$?

result=$TOP/bench/results/$(cat "$kernel/release")-$(date +%Y%m%d-%H%M%S).json
# The guest prints the whole result on one line.
json=$(sed -n 's/^BENCH-JSON //p' "$BUILD/logs/bench/job.log" | tr -d '\r' | tail -n1)
[ -n "$json" ] || die "the benchmark printed no result, see build/logs/bench"
mkdir -p "${result%/*}"
printf '%s\n' "$json" | "$TOP/scripts/in-root" python3 -c '
import json, sys
print(json.dumps(json.load(sys.stdin), indent=1))' >"$result.new"
mv "$result.new" "$result"
note "results: ${result#"$TOP"/}"
exit $status
