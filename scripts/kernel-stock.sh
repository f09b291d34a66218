#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Inside the build root: kernel-stock.sh OUT makes Debian's own kernel usable in
# OUT: for guests as it is, and for building Rust modules. Debian's header
# packages carry no Rust metadata, so the source is prepared with Debian's
# configuration and compilers, and gets Debian's own list of exported symbols,
# against which every symbol of a module, C or Rust, is then checked.
set -euo pipefail

out=$1
read -r release _ <"$VIRTGPU_KERNEL_VERSION_FILE"
linux=/cache/linux-$release
headers=$linux/headers/usr/src/linux-headers-$release

args=(LOCALVERSION="+${release#*+}" CC=gcc-14)
echo "${args[*]}" >"$out/make-args"
echo "$release" >"$out/release"

mkdir "$out/build"
cp "$headers/.config" "$out/build/.config"
make -C "$linux/src" O="$out/build" "${args[@]}" -j"$(nproc)" olddefconfig prepare modules_prepare
cp "$headers/Module.symvers" "$out/build/"

made=$(cat "$out/build/include/config/kernel.release")
[ "$made" = "$release" ] || { echo "prepared tree is $made, not $release" >&2; exit 1; }
grep -q '^CONFIG_RUST=y' "$out/build/.config" ||
	{ echo "Debian's configuration has Rust, the prepared tree lost it" >&2; exit 1; }

cp "$linux/image/boot/vmlinuz-$release"* "$out/vmlinuz" 2>/dev/null ||
	cp "$linux/image/usr/lib/modules/$release/vmlinuz"* "$out/vmlinuz"
scripts/guest-modules.sh "$(dirname "$(find "$linux/modules" -type d -path "*/lib/modules/$release")")" \
	"$release" "$out/guest"
