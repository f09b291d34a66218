#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# bench.sh [options and measures of virtgpu-bench]: builds everything, runs the
# benchmarks in guests with the release kernel and keeps the results in
# bench/results/KERNEL-DATE.json, and a picture of them beside it. P8 has three guests: the reference device and
# QEMU's virtio-gpu-gl, with OpenGL and with Vulkan; P9 has two, one of them with a device that must have pages alone to
# count in them; P10 has three others, whose instructions are counted.
# --before FILE is a file here, an older build of the module for the release kernel.
. "$(dirname "$0")/lib.sh"

options=() measures=() files=
while [ $# -gt 0 ]; do
	case $1 in
	P[1-9] | P10) measures+=("$1") ;;
	--before)
		# The guest finds it by its name alone; the clone is where QEMU's side sees it.
		[ -f "${2:?--before needs a file}" ] || die "no file $2"
		mkdir -p "$BUILD"
		cp "$2" "$BUILD/before.ko"
		files=/project/build/before.ko
		options+=(--before /root/before.ko)
		shift
		;;
	*) options+=("$1") ;;
	esac
	shift
done
[ ${#measures[@]} -gt 0 ] || measures=(P1 P2 P3 P4 P5 P6 P7 P8 P9 P10)
timed=() faulting=() counted=()
for measure in "${measures[@]}"; do
	case $measure in
	P9) faulting=(P9) ;;
	P10) counted=(P10) ;;
	*) timed+=("$measure") ;;
	esac
done

"$TOP/scripts/programs.sh"
kernel=$("$TOP/scripts/kernel.sh" release)
build_module release

# The table begins with its heading and ends with the whole result on one line.
table='/^id  *value /,/^BENCH-JSON /'
status=0 logs=()
# guest NAME HOST-GPU MEM VM-OPTIONS MEASURE...
guest() {
	local name=$1 host=$2 mem=$3 vm=()
	read -ra vm <<<"$4"
	shift 4
	[ $# -gt 0 ] || return 0
	logs+=("$BUILD/logs/$name/job.log")
	note "booting the guest on the host GPU \"$host\" (log: $BUILD/logs/$name/console.log)"
	"$TOP/scripts/vm.sh" --name "$name" --kernel release --host-gpu "$host" --mem "$mem" --files "$files" \
		--timeout "${BENCH_TIMEOUT:-3600}" "${vm[@]}" \
		"virtgpu-bench ${options[*]} --host-gpu $host $*" | sed -u "${table}d" || status=$?
}
guest bench-reference reference "${BENCH_MEM:-6G}" "" "${timed[@]}"
for host in virgl venus; do
	case " ${timed[*]} " in
	*" P8 "*) guest "bench-$host" "$host" 1G "" P8 ;;
	esac
done
# With memory that no other measure has scattered: the device has room for so many places only.
guest bench-faulting reference "${BENCH_MEM:-6G}" "" "${faulting[@]}"
guest bench-exclusive reference 1G --device-args=--exclusive-atomics "${faulting[@]}"
for host in reference virgl venus; do
	guest "count-$host" "$host" 2G --count "${counted[@]}"
done

json=() heading=
for log in "${logs[@]}"; do
	json+=("$(tr -d '\r' <"$log" | sed -n 's/^BENCH-JSON //p' | tail -n1)")
	[ -n "${json[-1]}" ] || die "the benchmark printed no result, see ${log#"$TOP"/}"
	tr -d '\r' <"$log" | sed -n "${table}p" | grep -v '^BENCH-JSON ' | tail -n "+${heading:-1}"
	heading=2
done
result=$TOP/bench/results/$(cat "$kernel/release")-$(date +%Y%m%d-%H%M%S).json
mkdir -p "${result%/*}"
printf '%s\n' "${json[@]}" | "$TOP/scripts/in-root" python3 -c '
import json, sys
rows = [row for line in sys.stdin for row in json.loads(line)["rows"]]
print(json.dumps({"rows": rows}, indent=1))' >"$result.new"
mv "$result.new" "$result"
note "results: ${result#"$TOP"/}"
picture=${result%.json}.svg
"$TOP/scripts/in-root" cargo run --quiet --release --locked -p virtgpu-bench --example draw -- \
	"${result#"$TOP"/}" "${picture#"$TOP"/}"
note "drawn: ${picture#"$TOP"/}"
exit $status
