#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# test-module.sh KIND: builds the module that only tests need, tests/exporter, for
# the stock or debug kernel into build/test-module/KIND.
. "$(dirname "$0")/lib.sh"

kind=${1:?usage: test-module.sh stock|debug|release}
kernel=$("$TOP/scripts/kernel.sh" "$kind")
read -ra args <"$kernel/make-args"
out=$BUILD/test-module/$kind
# A different kernel tree than last time: nothing of the old build fits.
if [ "$(cat "$out/.kernel" 2>/dev/null)" != "${kernel##*/}" ]; then
	rm -rf "$out"
	mkdir -p "$out"
	echo "${kernel##*/}" >"$out/.kernel"
fi
exec "$TOP/scripts/in-root" make -C "/cache/${kernel##*/}/build" "${args[@]}" \
	M=/project/tests/exporter MO="/project/build/test-module/$kind" modules
