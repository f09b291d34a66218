#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# vm.sh [options] JOB...: runs a shell command in a guest; vm.sh --help lists the
# options. This half runs on the host and sees to it that the kernel is there,
# scripts/vm.py does the rest inside the build root.
. "$(dirname "$0")/lib.sh"

kind=stock
previous=
for a in "$@"; do
	[ "$previous" != --kernel ] || kind=$a
	case $a in --kernel=*) kind=${a#*=} ;; esac
	previous=$a
done
kernel=$("$TOP/scripts/kernel.sh" "$kind")
export "VIRTGPU_KERNEL_${kind^^}=/cache/${kernel##*/}"
exec "$TOP/scripts/in-root" python3 scripts/vm.py "$@"
