#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# root-make.sh TMP: the recipe of the build root, made in TMP/root. Started by
# root.sh, in mount and PID namespaces of its own.
. "$(dirname "$0")/lib.sh"

tmp=$1
mkdir "$tmp/root"
chmod 755 "$tmp/root"
packages=$(grep -Ev '^(#|$)' "$TOP/scripts/config/root.packages" | paste -sd,)

main=$(archive Debian)
[ -n "$main" ] || die "apt knows no Debian archive; set one up in /etc/apt and run apt-get update"
security=$(archive Debian-Security)
: "${security:=${main%/}-security/}"

# Proxies and certificates of the host's apt hold for this archive too.
apt-config dump Acquire | grep -E '^Acquire::(http|https)' >"$tmp/apt.conf" || true
cat >>"$tmp/apt.conf" <<-CONF
	APT::Sandbox::User "root";
	Acquire::Check-Valid-Until "false";
	Acquire::Languages "none";
	APT::Install-Recommends "false";
CONF

# QEMU comes from backports: trixie's own has no vhost-user-test-device-pci.
# The package index stays, the kernel's version is looked up in it.
# shellcheck disable=SC2016 # $1 is the hooks'
mmdebstrap --mode=root --variant=apt --format=directory \
	--aptopt="$tmp/apt.conf" \
	--dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--include="$packages" \
	--customize-hook='APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -y -oDPkg::Chroot-Directory="$1" install -t trixie-backports qemu-system-x86' \
	--customize-hook='mkdir -p "$1/project" "$1/cache" "$1/run" "$1/etc/ssl/certs"' \
	--customize-hook='ln -sf gcc-14 "$1/usr/bin/gcc"; ln -sf gcc-14 "$1/usr/bin/cc"' \
	--customize-hook='rm -f "$1/etc/resolv.conf"; : > "$1/etc/resolv.conf"' \
	--customize-hook='test -x "$1/usr/bin/qemu-system-x86_64"' \
	--skip=cleanup/apt/lists \
	trixie "$tmp/root" \
	"deb $main trixie main" \
	"deb $main trixie-backports main" \
	"deb $security trixie-security main"
