#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Inside the build root: installs the packages of build/deb in the tree `deb`,
# takes them away, and installs them again; reports in KTAP. The tree itself is not
# changed: what is written goes to build/deb-test, which stays mounted over the tree
# for the guest that boots it.
set -euo pipefail

tree=${VIRTGPU_TREE_DEB:?}
kernel=${VIRTGPU_KERNEL_STOCK:?}
work=/project/build/deb-test
release=$(cat "$kernel/release")
version=$(sed -nE 's/^PACKAGE_VERSION="(.*)"/\1/p' /project/dkms.conf)

rm -rf "$work"
mkdir -p "$work/upper" "$work/work"
busybox mount -t overlay deb-test -o "lowerdir=$tree,upperdir=$work/upper,workdir=$work/work" "$tree"
busybox mount -o rbind /dev "$tree/dev"
busybox mount -t proc proc "$tree/proc"
# The kernel's build tree, at the place that its own links name.
busybox mount -o rbind /cache "$tree/cache"
# What mmdebstrap was told to leave out is wanted here.
rm -f "$tree"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
# The guest's kernel, with its modules and a build tree that has Rust metadata.
cp -a "$kernel/guest/lib/modules/$release" "$tree/usr/lib/modules/"
ln -s "$kernel/build" "$tree/usr/lib/modules/$release/build"
mkdir "$tree/root/packages"
cp /project/build/deb/*.deb "$tree/root/packages/"

inside() {
	chroot "$tree" /usr/bin/env -i HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

# Which module a virtio-gpu device would get.
winner() {
	inside modprobe -S "$release" -n -v -b virtio:d00000010v00001AF4 |
		sed -nE 's/^insmod .*\/(virtio-gpu|virtgpu_userptr)\.ko.*/\1/p' | paste -sd' '
}

module() {
	inside modinfo -k "$release" -n virtgpu_userptr 2>/dev/null
}

nothing_before() {
	[ "$(winner)" = virtio-gpu ]
}

installs() {
	inside sh -c 'dpkg -i /root/packages/*.deb' &&
		[ "$(inside dpkg-query -W -f '${db:Status-Status} ' virtgpu-userptr-dkms virtgpu-userptr-tools)" = "installed installed " ]
}

built_by_dkms() {
	inside dkms status -m virtgpu-userptr -v "$version" -k "$release" | tee /dev/stderr | grep -q ': installed' &&
		[[ $(module) == "/lib/modules/$release/updates/dkms/virtgpu_userptr.ko"* ]]
}

takes_precedence() {
	winner && [ "$(winner)" = virtgpu_userptr ]
}

files_are_unchanged() {
	inside dpkg --verify virtgpu-userptr-dkms virtgpu-userptr-tools | tee /dev/stderr | { ! grep -q .; }
}

headers_compile() {
	printf '#include <drm/virtgpu_userptr_drm.h>\n#include <linux/virtio_gpu_mirror.h>\nint x = DRM_IOCTL_VIRTGPU_BO_QUERY;\n' |
		inside gcc -x c -Wall -Werror -fsyntax-only -
}

# Narrow columns of tables cannot be adjusted, which is no fault.
manual_pages() {
	local page rc=0 warnings
	for page in 1/virtgpu-device 1/virtgpu-device-check-log 1/virtgpu-demo 2/ioctl_virtgpu 4/virtgpu_userptr; do
		warnings=$(inside man '--warnings=w,!break' -l -Tutf8 "/usr/share/man/man${page%/*}/${page#*/}.${page%/*}.gz" 2>&1 >"$work/page") || rc=1
		if [ -n "$warnings" ] || ! grep -q NAME "$work/page"; then
			echo "$page: $warnings"
			rc=1
		fi
	done
	return $rc
}

leaves_nothing() {
	inside dpkg -P virtgpu-userptr-dkms virtgpu-userptr-tools &&
		[ -z "$(module)" ] && nothing_before &&
		[ ! -e "$tree/usr/src/virtgpu-userptr-$version" ] && [ ! -e "$tree/var/lib/dkms/virtgpu-userptr" ]
}

cases="nothing_before installs built_by_dkms takes_precedence files_are_unchanged headers_compile
manual_pages leaves_nothing installs built_by_dkms"
echo "KTAP version 1"
# shellcheck disable=SC2086
echo "1..$(echo $cases | wc -w)"
number=0 failed=0
for case in $cases; do
	number=$((number + 1))
	if (set -e; "$case") >"$work/$case.log" 2>&1; then
		echo "ok $number $case"
	else
		sed 's/^/# /' "$work/$case.log"
		echo "not ok $number $case"
		failed=1
	fi
done
for d in cache proc dev; do busybox umount -l "$tree/$d"; done
exit $failed
