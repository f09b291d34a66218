#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Inside the build root: kernel-custom.sh OUT debug|release builds a small kernel
# of its own from Debian's source, with config/common.config and config/KIND.config.
set -euo pipefail

out=$1 kind=$2
read -r release _ <"$VIRTGPU_KERNEL_VERSION_FILE"
source=/cache/linux-$release/src
config=scripts/config

args=(LOCALVERSION="-virtgpu-$kind")
case $kind in
# RUST with KASAN exists for clang only.
debug) args+=(LLVM=/usr/lib/llvm-19/bin/) ;;
# The compiler of the stock kernel.
release) args+=(CC=gcc-14) ;;
esac
echo "${args[*]}" >"$out/make-args"

mkdir "$out/build"
cat $config/common.config $config/$kind.config >"$out/fragment"
run() {
	make -C "$source" O="$out/build" "${args[@]}" "$@"
}
run KCONFIG_ALLCONFIG="$out/fragment" allnoconfig

# kconfig drops silently what it cannot have; say so instead.
lost=0
while IFS='=' read -r option value; do
	actual=$(sed -n "s/^$option=//p" "$out/build/.config")
	: "${actual:=n}"
	if [ "$actual" != "$value" ]; then
		echo "kernel option $option is $actual, wanted $value" >&2
		lost=1
	fi
done < <(grep '^CONFIG_' "$out/fragment")
[ $lost = 0 ] || exit 1
[ "${VIRTGPU_CONFIG_ONLY:-}" = "" ] || exit 0

run -j"${VIRTGPU_JOBS:-$(($(nproc) + 1))}" bzImage modules
run -s kernelrelease >"$out/release"
release=$(cat "$out/release")

cp "$out/build/arch/x86/boot/bzImage" "$out/vmlinuz"
run INSTALL_MOD_PATH="$out/installed" modules_install
scripts/guest-modules.sh "$out/installed/lib/modules" "$release" "$out/guest"
rm -rf "$out/installed"

# Modules need headers, rust/, scripts/, tools/objtool and the symbols, not the
# kernel's own objects: most of the tree's size.
cp "$out/build/vmlinux" "$out/vmlinux"
find "$out/build" \( -name '*.o' -o -name '*.a' -o -name '*.ko' -o -name 'vmlinux*' \) \
	-not -path '*/scripts/*' -not -path '*/tools/*' -not -path '*/rust/*' -type f -delete
