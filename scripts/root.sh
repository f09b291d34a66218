#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Makes the build root, a Debian 13 tree in the cache, and prints its path.
# Its name carries a hash of its inputs; an existing one is used as it is.
. "$(dirname "$0")/lib.sh"

preconditions
root=$CACHE/root-$(sha "$TOP/scripts/config/root.packages" "$TOP/scripts/root-make.sh")

if [ ! -e "$root/.complete" ]; then
	with_lock root
	if [ ! -e "$root/.complete" ]; then # else another clone was faster
		need_space 12
		index=$(archive Debian)
		[ -n "$index" ] || die "apt knows no Debian archive; set one up in /etc/apt and run apt-get update"
		index=${index%/}/dists/trixie/InRelease
		probe=$(mktemp -d)
		/usr/lib/apt/apt-helper download-file "$index" "$probe/InRelease" >/dev/null 2>&1 || rm -rf "$probe"
		[ -d "$probe" ] || die "cannot reach the Debian archive ($index): is the network there?"
		rm -rf "$probe"
		if ! command -v mmdebstrap >/dev/null; then
			note "mmdebstrap is missing on this host: installing it with apt-get"
			apt-get update -qq >&2 || die "apt-get update failed: is the network there?"
			apt-get install -y -qq --no-install-recommends mmdebstrap >&2 || die "cannot install mmdebstrap"
		fi
		# Left by an interrupted build; we hold the lock.
		rm -rf --one-file-system "$CACHE"/tmp.root-*
		tmp=$(mktemp -d "$CACHE/tmp.root-XXXXXX")
		trap 'rm -rf --one-file-system "$tmp"' EXIT
		chmod 755 "$tmp"
		# In namespaces of its own, so that its mounts and processes end with it.
		run_logged "making the build root (Debian 13)" "$CACHE/log/root.log" \
			unshare --mount --pid --fork --mount-proc --kill-child=KILL \
			"$TOP/scripts/root-make.sh" "$tmp"
		touch "$tmp/root/.complete"
		rm -rf --one-file-system "$root"
		mv "$tmp/root" "$root"
	fi
fi
echo "$root"
