#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Inside the build root: deb-make.sh puts the files of the packages together and
# packs them. The programs have been built.
. "$(dirname "$0")/lib.sh"

: "${SOURCE_DATE_EPOCH:=$(date +%s)}"
export SOURCE_DATE_EPOCH
out=$BUILD/deb
target=$BUILD/target/x86_64-unknown-linux-gnu/release
version=$(sed -nE 's/^version = "(.*)"/\1/p' "$TOP/Cargo.toml")
grep -qx "PACKAGE_VERSION=\"$version\"" "$TOP/dkms.conf" ||
	die "dkms.conf has another version than Cargo.toml, $version"
day=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%d)

rm -rf "$out"
mkdir -p "$out"
cargo build --release --locked -p virtgpu-device --example man

# manual TITLE SECTION WHAT PANDOC-ARGUMENT...: prints a manual page made from Markdown.
manual() {
	local title=$1 section=$2 what=$3
	shift 3
	pandoc -s -f gfm -t man -V title="${title^^}" -V section="$section" -V date="$day" \
		-V footer="virtgpu-userptr $version" \
		-V include-before=".SH NAME"$'\n'"$title \\- $what"$'\n.SH DESCRIPTION' "$@" |
		# The last column of a table has what is left of the line.
		sed -E 's/^((l )*)l\.$/\1lx./'
}

# page FROM TO: one manual page, compressed as Debian wants it.
page() {
	mkdir -p "$(dirname "$2")"
	gzip -9n <"$1" >"$2.gz"
}

# pack NAME: control files and archive.
pack() {
	local name=virtgpu-userptr-$1 from=$TOP/packaging/$1 f size doc
	local tree=$out/$name
	doc=$tree/usr/share/doc/$name
	install -D -m 644 "$TOP/packaging/copyright" "$doc/copyright"
	printf 'virtgpu-userptr (%s) unstable; urgency=medium\n\n  * See the history of the source.\n\n -- virtgpu-userptr developers <root@localhost>  %s\n' \
		"$version" "$(date -uR -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.gz"
	mkdir "$tree/DEBIAN"
	(cd "$tree" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
	size=$(du -sk --apparent-size --exclude=DEBIAN "$tree" | cut -f1)
	sed "s/@VERSION@/$version/; s/@SIZE@/$size/" "$from/control.in" >"$tree/DEBIAN/control"
	for f in postinst prerm postrm; do
		if [ -e "$from/$f.in" ]; then
			sed "s/@VERSION@/$version/g" "$from/$f.in" >"$tree/DEBIAN/$f"
		elif [ -e "$from/$f" ]; then
			cp "$from/$f" "$tree/DEBIAN/$f"
		fi
		[ ! -e "$tree/DEBIAN/$f" ] || chmod 755 "$tree/DEBIAN/$f"
	done
	if [ -d "$tree/etc" ]; then
		(cd "$tree" && find etc -type f -printf '/%p\n' | LC_ALL=C sort) >"$tree/DEBIAN/conffiles"
	fi
	find "$tree" -newermt "@$SOURCE_DATE_EPOCH" -print0 | xargs -0r touch -hd "@$SOURCE_DATE_EPOCH"
	dpkg-deb --root-owner-group -Zxz --build "$tree" "$out/"
}

tree=$out/virtgpu-userptr-dkms
source=$tree/usr/src/virtgpu-userptr-$version
mkdir -p "$source"
(cd "$TOP" && tar -c --exclude='*.o' --exclude='*.cmd' Kbuild dkms.conf COPYING LICENSES src protocol/src) | tar -x -C "$source" --no-same-owner
find "$source" -type f -exec chmod 644 {} +
find "$source" -type d -exec chmod 755 {} +
install -D -m 644 "$TOP/uapi/drm/virtgpu_userptr_drm.h" "$tree/usr/include/drm/virtgpu_userptr_drm.h"
install -D -m 644 "$TOP/uapi/linux/virtio_gpu_mirror.h" "$tree/usr/include/linux/virtio_gpu_mirror.h"
install -D -m 644 "$TOP/packaging/dkms/modprobe.conf" "$tree/etc/modprobe.d/virtgpu-userptr.conf"
install -D -m 644 "$TOP/packaging/dkms/udev.rules" "$tree/usr/lib/udev/rules.d/60-virtgpu-userptr.rules"
manual ioctl_virtgpu 2 "ioctls of virtio-gpu render nodes, and for user memory" \
	--shift-heading-level-by=-1 "$TOP/docs/uapi.md" >"$out/ioctl_virtgpu.2"
manual virtgpu_userptr 4 "virtio-gpu render driver with user memory" \
	<(sed '1d; /^## /,$d' "$TOP/README.md") "$TOP/docs/limits.md" "$TOP/docs/install.md" >"$out/virtgpu_userptr.4"
page "$out/ioctl_virtgpu.2" "$tree/usr/share/man/man2/ioctl_virtgpu.2"
page "$out/virtgpu_userptr.4" "$tree/usr/share/man/man4/virtgpu_userptr.4"
pack dkms

tree=$out/virtgpu-userptr-tools
mkdir -p "$tree/usr/bin" "$out/man1"
for f in virtgpu-device virtgpu-demo; do
	strip -o "$tree/usr/bin/$f" "$target/$f"
	chmod 755 "$tree/usr/bin/$f"
done
"$target/examples/man" "$out/man1"
cp "$TOP/packaging/man/virtgpu-demo.1" "$out/man1/"
for f in "$out"/man1/*.1; do
	page "$f" "$tree/usr/share/man/man1/${f##*/}"
done
pack tools
