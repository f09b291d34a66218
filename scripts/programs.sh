#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# programs.sh [render]: builds the device, the client library and the guest's
# programs; with `render` those too that use the libraries of the tree with Mesa, and
# the device once more, which can load virglrenderer then.
. "$(dirname "$0")/lib.sh"

preconditions
"$TOP/scripts/root.sh" >/dev/null
run_logged "building the device and the guest programs" "$BUILD/logs/programs.log" \
	"$TOP/scripts/in-root" cargo build --release --locked --workspace --exclude virtgpu-render
[ "${1:-}" = render ] || exit 0
# Linked dynamically, so in a folder of their own: OpenGL and Vulkan are libraries
# that are loaded at run time.
run_logged "building the programs that draw" "$BUILD/logs/render.log" \
	"$TOP/scripts/in-root" env CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS= \
	CARGO_TARGET_DIR=/project/build/target-dynamic cargo build --release --locked -p virtgpu-render -p virtgpu-device
