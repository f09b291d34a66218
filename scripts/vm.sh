#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# vm.sh [options] JOB...: runs a shell command in a guest; vm.sh --help lists the
# options. This half runs on the host and sees to it that the kernel is there,
# scripts/virtgpu/vm.py does the rest inside the build root.
. "$(dirname "$0")/lib.sh"

kind=stock host_gpu=reference trees=
previous=
for a in "$@"; do
	case $previous in
	--kernel) kind=$a ;;
	--host-gpu) host_gpu=$a ;;
	--trees) trees=$a ;;
	esac
	case $a in
	--kernel=*) kind=${a#*=} ;;
	--host-gpu=*) host_gpu=${a#*=} ;;
	--trees=*) trees=${a#*=} ;;
	--count) "$TOP/scripts/count.sh" ;;
	esac
	previous=$a
done
use_kernel "$kind"
# QEMU with OpenGL is in the tree with Mesa.
[ "$host_gpu" = reference ] || trees=$trees,mesa
for t in ${trees//,/ }; do
	use_tree "$t"
done
exec "$TOP/scripts/in-root" python3 scripts/virtgpu vm "$@"
