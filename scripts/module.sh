#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# module.sh KIND [make arguments]: builds the module for the stock, debug or
# release kernel into build/module/KIND.
. "$(dirname "$0")/lib.sh"

kind=${1:?usage: module.sh stock|debug|release [make arguments]}
shift
kernel=$("$TOP/scripts/kernel.sh" "$kind")
read -ra args <"$kernel/make-args"
out=$BUILD/module/$kind
mkdir -p "$out"
# A different kernel tree than last time: nothing of the old build fits.
if [ "$(cat "$out/.kernel" 2>/dev/null)" != "${kernel##*/}" ]; then
	rm -rf "$out"
	mkdir -p "$out"
	echo "${kernel##*/}" >"$out/.kernel"
fi
exec 8>"$out/.lock"
flock 8
exec "$TOP/scripts/in-root" make -C "/cache/${kernel##*/}/build" "${args[@]}" \
	M=/project MO="/project/build/module/$kind" -j"$(nproc)" "${@:-modules}"
