#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# kernel.sh stock|debug|release: makes that kernel in the cache if it is not
# there yet, and prints its folder:
#   build/     the tree that modules are built against (its `source` link leads
#              to the unpacked Linux source)
#   vmlinuz    what a guest boots
#   guest/     /lib/modules of a guest: the few modules it needs, uncompressed
#   make-args  arguments for make: the toolchain of that kernel
#   release    what `uname -r` says
. "$(dirname "$0")/lib.sh"

kind=${1:-}
here=$TOP/scripts
case $kind in
stock) inputs=("$here/kernel-stock.sh") gib=6 ;;
debug) inputs=("$here/kernel-custom.sh" "$here/config/common.config" "$here/config/debug.config") gib=10 ;;
release) inputs=("$here/kernel-custom.sh" "$here/config/common.config" "$here/config/release.config") gib=6 ;;
*) die "usage: kernel.sh stock|debug|release" ;;
esac
inputs+=("$here/config/guest.modules")

preconditions
root=$("$here/root.sh")

# The version is found once per build root, from the archive's index.
version_file=$CACHE/kernel-version-${root##*/root-}
[ -s "$version_file" ] || (
	with_lock linux-source
	[ -s "$version_file" ] ||
		"$here/in-root" scripts/kernel-source.sh find "/cache/${version_file##*/}" >&2
)
[ -s "$version_file" ] || die "no Linux 7.3 found in the archive"

# A Rust module fits only the very compilers that made the kernel.
version=$(cat "$version_file")
toolchain=$(awk '/^Package: (gcc-14|rustc|clang-19|bindgen)$/ {p=$2} /^Version:/ && p {print p, $2; p=""}' \
	"$root/var/lib/dpkg/status")
key=$({ echo "$version"; cat "${inputs[@]}"; echo "$toolchain"; } | sha256sum | cut -c1-12)
dir=$CACHE/kernel-$kind-$key

if [ ! -e "$dir/.complete" ]; then
	with_lock "kernel-$kind"
	if [ ! -e "$dir/.complete" ]; then
		need_space "$gib"
		rm -rf "$CACHE/tmp.kernel-$kind-"* # left by an interrupted build; we hold the lock
		(
			with_lock linux-source
			"$here/in-root" scripts/kernel-source.sh unpack "/cache/${version_file##*/}" >&2
		)
		# The archive had moved on: everything has another name now.
		[ "$(cat "$version_file")" = "$version" ] || exec "$0" "$kind"
		tmp=$(mktemp -d "$CACHE/tmp.kernel-$kind-XXXXXX")
		trap 'rm -rf "$tmp"' EXIT
		chmod 755 "$tmp"
		script=kernel-custom.sh
		[ $kind != stock ] || script=kernel-stock.sh
		run_logged "making the $kind kernel" "$CACHE/log/kernel-$kind.log" \
			env VIRTGPU_KERNEL_VERSION_FILE="/cache/${version_file##*/}" \
			"$here/in-root" "scripts/$script" "/cache/${tmp##*/}" $kind
		# The one place where a tree's own address matters.
		sed -i "s|/cache/${tmp##*/}/|/cache/${dir##*/}/|" "$tmp/build/Makefile"
		touch "$tmp/.complete"
		rm -rf "$dir"
		mv "$tmp" "$dir"
	fi
fi
echo "$dir"
