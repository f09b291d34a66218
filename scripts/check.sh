#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# check.sh [SUITE...]: builds what the suites need and runs them; without an
# argument all but those that say `default = false`. check.sh --list names them.
# Without an argument, suites with many guests run a part of their families, others for each commit;
# VIRTGPU_ALL=1 runs all. VIRTGPU_CHANGED=1 skips guests that have passed with the same inputs.
# The last line of the output is "N passed, N failed, N skipped".
. "$(dirname "$0")/lib.sh"

suites_dir=$TOP/tests/suites
all=$(grep -H '^order' "$suites_dir"/*.toml | sed -E 's|.*/([a-z]+)\.toml:order *= *([0-9]+).*|\2 \1|' | sort -n | cut -d' ' -f2)

if [ "${1:-}" = --list ]; then
	for s in $all; do
		printf '%-8s %s\n' "$s" "$(sed -nE 's/^description *= *"(.*)"/\1/p' "$suites_dir/$s.toml")"
	done
	exit
fi

default=
for s in $all; do
	grep -q '^default *= *false' "$suites_dir/$s.toml" || default="$default $s"
done
suites=${*:-$default}
export VIRTGPU_SHARE=
[ $# -gt 0 ] || [ -n "${VIRTGPU_ALL:-}" ] || VIRTGPU_SHARE=1
for s in $suites; do
	[ -e "$suites_dir/$s.toml" ] || die "no suite '$s'; there are: $(echo $all)"
done

# What is left out is no proof.
[ -z "${VIRTGPU_CHANGED:-}" ] || [ -z "${CI:-}" ] || die "CHANGED=1 is not for continuous integration"

# Whatever ends this early must not look like a run without failures.
building=something
trap 'kill $(jobs -p) 2>/dev/null; echo "not ok build/$building"; echo "0 passed, 1 failed, 0 skipped"' EXIT

preconditions
files=$(for s in $suites; do echo "$suites_dir/$s.toml"; done)
# shellcheck disable=SC2086
kernels=$(sed -nE 's/^kernel *= *"(.*)"/\1/p' $files | sort -u)
# Lint needs a kernel's source and metadata too.
case " $suites " in *lint*) kernels="stock $kernels" ;; esac
building=root
root=$("$TOP/scripts/root.sh")
export VIRTGPU_ROOT=${root##*/}
# Trees that guests see, and the one that QEMU with OpenGL is in.
# shellcheck disable=SC2086
trees=$({
	sed -nE 's/^trees *= *"(.*)"/\1/p' $files | tr ',' '\n'
	! grep -q '^host_gpu' $files || echo mesa
} | sort -u)
# They are made while the rest is compiled.
declare -A making
for t in $trees; do
	"$TOP/scripts/tree.sh" "$t" >/dev/null &
	making[$t]=$!
done
building=programs
# Only programs of this project's own are made for the tree with Mesa.
if grep -qs '^trees.*mesa' $files; then
	"$TOP/scripts/programs.sh" render
else
	"$TOP/scripts/programs.sh"
fi
# No one but the C driver's suite can do without the module.
needs_module=
for f in $files; do
	if grep -q '^kernel' "$f" && ! grep -q '^driver *= *"c"' "$f"; then
		needs_module=1
	fi
done
for k in $(echo $kernels | tr ' ' '\n' | sort -u); do
	building=kernel-$k
	use_kernel "$k"
	[ -n "$needs_module" ] || continue
	building=module-$k
	build_module "$k"
	building=test-module-$k
	run_logged "building the module for tests for the $k kernel" "$BUILD/logs/test-module-$k.log" \
		"$TOP/scripts/test-module.sh" "$k"
done

for t in $trees; do
	building=tree-$t
	wait "${making[$t]}"
	use_tree "$t"
done

# Suite `sample` goes by it, and so does what tests do at random.
VIRTGPU_COMMIT=$(git -C "$TOP" rev-parse HEAD 2>/dev/null) || VIRTGPU_COMMIT=
export VIRTGPU_COMMIT
export VIRTGPU_TESTS_SEED=${VIRTGPU_TESTS_SEED:-$((16#0${VIRTGPU_COMMIT:0:8}))}
trap - EXIT
# shellcheck disable=SC2086
exec "$TOP/scripts/in-root" python3 scripts/virtgpu check $suites
