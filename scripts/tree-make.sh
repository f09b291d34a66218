#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tree-make.sh NAME TMP: makes the Debian tree NAME in TMP/tree. Started by
# tree.sh, in mount and PID namespaces of its own.
. "$(dirname "$0")/lib.sh"

name=$1 tmp=$2
mkdir "$tmp/tree"
chmod 755 "$tmp/tree"
# NAME.tree sets these.
suite='' backports='' hooks=() excludes=() keep_index=''
# shellcheck source=/dev/null
. "$TOP/scripts/config/$name.tree"
packages=$(grep -Ev '^(#|$)' "$TOP/scripts/config/$name.packages" | paste -sd,)

main=$(archive Debian)
[ -n "$main" ] || die "apt knows no Debian archive; set one up in /etc/apt and run apt-get update"
security=$(archive Debian-Security)
: "${security:=${main%/}-security/}"
sources=("deb $main $suite main")
[ "$suite" != trixie ] ||
	sources+=("deb $main trixie-backports main" "deb $security trixie-security main")

# Proxies and certificates of the host's apt hold for this archive too.
apt-config dump Acquire | grep -E '^Acquire::(http|https)' >"$tmp/apt.conf" || true
cat >>"$tmp/apt.conf" <<-CONF
	APT::Sandbox::User "root";
	Acquire::Check-Valid-Until "false";
	Acquire::Languages "none";
	APT::Install-Recommends "false";
CONF

options=()
for path in '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/locale/*' "${excludes[@]}"; do
	options+=(--dpkgopt="path-exclude=$path")
done
[ -z "$backports" ] || options+=(--customize-hook="APT_CONFIG=\$MMDEBSTRAP_APT_CONFIG \
	apt-get -y -oDPkg::Chroot-Directory=\"\$1\" install -t trixie-backports $backports")
for hook in "${hooks[@]}"; do
	options+=(--customize-hook="$hook")
done
[ -z "$keep_index" ] || options+=(--skip=cleanup/apt/lists)
mmdebstrap --mode=root --variant=apt --format=directory \
	--aptopt="$tmp/apt.conf" --include="$packages" "${options[@]}" \
	"$suite" "$tmp/tree" "${sources[@]}"
