#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Makes the build root, a Debian 13 tree in the cache, and prints its path.
# Its name carries a hash of its inputs; an existing one is used as it is.
. "$(dirname "$0")/lib.sh"

preconditions

packages=$(grep -Ev '^(#|$)' "$TOP/scripts/config/root.packages" | paste -sd,)
root=$CACHE/root-$(sha "$TOP/scripts/config/root.packages" "$TOP/scripts/root.sh")

if [ -e "$root/.complete" ]; then
	echo "$root"
	exit 0
fi

# The archive is the one that the host's apt uses, whatever its address is.
archive() {
	apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
		awk -v want="$1" 'want == "security" ? $1 ~ /-security$/ : $1 !~ /-/ { print $2; exit }'
}

with_lock root
if [ -e "$root/.complete" ]; then # another clone was faster
	echo "$root"
	exit 0
fi
need_space 12

main=$(archive main)
[ -n "$main" ] || die "the host's apt has no Debian archive configured; run apt-get update"
security=$(archive security)
: "${security:=${main%/}-security/}"

if ! command -v mmdebstrap >/dev/null; then
	note "mmdebstrap is missing on this host: installing it with apt-get"
	apt-get update -qq >&2 || die "apt-get update failed: is the network there?"
	apt-get install -y -qq --no-install-recommends mmdebstrap >&2 || die "cannot install mmdebstrap"
fi

rm -rf "$CACHE"/tmp.root-* # left by an interrupted build; we hold the lock
tmp=$(mktemp -d "$CACHE/tmp.root-XXXXXX")
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/root"
chmod 755 "$tmp" "$tmp/root"

# Proxies and certificates of the host's apt hold for this archive too.
apt-config dump Acquire | grep -E '^Acquire::(http|https)' >"$tmp/apt.conf" || true
cat >>"$tmp/apt.conf" <<-CONF
	APT::Sandbox::User "root";
	Acquire::Check-Valid-Until "false";
	Acquire::Languages "none";
	APT::Install-Recommends "false";
CONF

# QEMU comes from backports: trixie's own has no vhost-user-test-device-pci.
# shellcheck disable=SC2016
run_logged "making the build root (Debian 13)" "$CACHE/log/root.log" \
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

touch "$tmp/root/.complete"
rm -rf "$root"
mv "$tmp/root" "$root"
echo "$root"
