#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# guest-modules.sh FROM RELEASE TO: picks the modules named in
# config/guest.modules, and those they depend on, out of FROM/RELEASE into
# TO/lib/modules/RELEASE, uncompressed.
set -euo pipefail

from=$1 release=$2 to=$3
mkdir -p "$to/lib/modules/$release"

# depmod wants lib/modules below a base; the tree in the cache stays untouched.
base=$(mktemp -d)
mkdir -p "$base/lib/modules/$release"
ln -s "$from/$release/kernel" "$base/lib/modules/$release/kernel"
for f in modules.order modules.builtin modules.builtin.modinfo; do
	if [ -e "$from/$release/$f" ]; then
		cp "$from/$release/$f" "$base/lib/modules/$release/"
		cp "$from/$release/$f" "$to/lib/modules/$release/"
	fi
done
depmod -b "$base" "$release"

grep -Ev '^(#|$)' scripts/config/guest.modules | while read -r name; do
	modprobe -d "$base" -S "$release" --show-depends "$name" 2>/dev/null || true
done | awk '$1 == "insmod" { print $2 }' | sort -u | while read -r path; do
	inside=${path#"$base/lib/modules/$release/"}
	target=$to/lib/modules/$release/$inside
	mkdir -p "$(dirname "$target")"
	case $path in
	*.xz) xz -dc "$path" >"${target%.xz}" ;;
	*.zst) zstd -qdc "$path" >"${target%.zst}" ;;
	*) cp "$path" "$target" ;;
	esac
done
depmod -b "$to" "$release"
rm -rf "$base"
