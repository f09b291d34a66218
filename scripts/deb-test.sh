#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Inside the build root: installs the packages of build/deb in the tree `deb`,
# removes them, and installs them again; reports in KTAP. The tree itself is not
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
build=$kernel/build
# What mmdebstrap was told to leave out is wanted here.
rm -f "$tree"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
# The guest's kernel, with its modules and a build tree that has Rust metadata.
cp -a "$kernel/guest/lib/modules/$release" "$tree/usr/lib/modules/"
mkdir "$tree/root/packages"
cp /project/build/deb/*.deb "$tree/root/packages/"
# Linux's driver in the initramfs, as with what shows pictures while booting.
echo virtio_gpu >>"$tree/etc/initramfs-tools/modules"
cp "$build/.config" "$tree/boot/config-$release"
touch "$tree/boot/vmlinuz-$release"
# Build trees in which the module cannot be built: one without Rust metadata, as
# Debian's header packages make it, and one with that of another compiler.
for name in headers other; do
	cp -as "$build" "$tree/root/$name"
	rm "$tree/root/$name/Makefile" "$tree/root/$name/rust/libkernel.rmeta"
	sed "s|$build|/root/$name|g" "$build/Makefile" >"$tree/root/$name/Makefile"
done
echo >"$tree/root/other/rust/libkernel.rmeta"

# The build tree that DKMS finds.
build_tree() {
	ln -sfn "$1" "$tree/usr/lib/modules/$release/build"
}

inside() {
	chroot "$tree" /usr/bin/env -i HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

# The modules that are loaded, in their order, for a virtio-gpu device or when somebody asks for
# Linux's driver; of the tree, or of what is below the folder of this name in it.
loads() {
	local name
	for name in "-b virtio:d00000010v00001AF4" virtio_gpu; do
		# shellcheck disable=SC2086
		inside modprobe -d "${1:-/}" -C "${1:-}/etc/modprobe.d" -S "$release" -n -v $name |
			sed -nE 's/^insmod .*\/(virtio-gpu|virtgpu_userptr)\.ko.*/\1/p' | head -n 1
	done | paste -sd' '
}

# The same of the initramfs.
loads_early() {
	rm -rf "$tree/root/initramfs"
	inside unmkinitramfs "/boot/initrd.img-$release" /root/initramfs
	if [ -d "$tree/root/initramfs/main" ]; then
		loads /root/initramfs/main
	else
		loads /root/initramfs
	fi
}

module() {
	inside modinfo -k "$release" -n virtgpu_userptr 2>/dev/null
}

linux_gets_the_device() {
	loads && [ "$(loads)" = "virtio-gpu virtio-gpu" ] &&
		loads_early && [ "$(loads_early)" = "virtio-gpu virtio-gpu" ]
}

nothing_before() {
	build_tree "$build"
	inside update-initramfs -c -k "$release" && linux_gets_the_device
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
	loads && [ "$(loads)" = "virtgpu_userptr virtgpu_userptr" ] &&
		loads_early && [ "$(loads_early)" = "virtgpu_userptr virtgpu_userptr" ]
}

installs_where_the_build_fails() {
	build_tree /root/other
	installs && [ -z "$(module)" ] &&
		grep -q libkernel "$tree/var/lib/dkms/virtgpu-userptr/$version/build/make.log"
}

# For the guest that boots it.
kept_for_a_guest() {
	cp -a "$tree/usr/lib/modules/$release" "$tree/root/modules-without"
}

# DKMS passes over kernels that lack what the module needs, which is no error for it.
passed_over() {
	local rc=0
	inside dkms build -m virtgpu-userptr -v "$version" -k "$release" --force "$@" || rc=$?
	[ $rc = 77 ]
}

passes_over_kernels_without_metadata() {
	build_tree /root/headers
	passed_over
}

passes_over_kernels_that_lack_an_option() {
	local option options
	build_tree "$build"
	# shellcheck source=/dev/null
	options=$(set +u; . /project/dkms.conf; echo "$BUILD_EXCLUSIVE_CONFIG")
	[ "$(echo "$options" | wc -w)" -ge 8 ] || return 1
	for option in $options; do
		sed "/^$option=/d" "$build/.config" >"$tree/root/config"
		passed_over --config /root/config || { echo "$option"; return 1; }
	done
}

installs_again() {
	build_tree "$build"
	installs
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
		[ -z "$(module)" ] && linux_gets_the_device &&
		[ ! -e "$tree/usr/src/virtgpu-userptr-$version" ] && [ ! -e "$tree/var/lib/dkms/virtgpu-userptr" ]
}

cases="nothing_before installs_where_the_build_fails linux_gets_the_device kept_for_a_guest
passes_over_kernels_without_metadata passes_over_kernels_that_lack_an_option leaves_nothing
installs_again built_by_dkms takes_precedence files_are_unchanged headers_compile
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
