#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tree.sh NAME: makes a Debian tree in the cache and prints its path. NAME.tree
# and NAME.packages in scripts/config say what is in it. Its name carries a hash
# of its inputs; an existing one is used as it is.
. "$(dirname "$0")/lib.sh"

name=${1:-}
config=$TOP/scripts/config
[ -e "$config/$name.tree" ] || die "usage: tree.sh $(cd "$config" && echo *.tree | sed 's/\.tree//g; s/ /|/g')"
# shellcheck disable=SC2034 # set by NAME.tree
gib="" suite="" what=""
# shellcheck source=/dev/null
. "$config/$name.tree"

preconditions
tree=$CACHE/$name-$(sha "$config/$name.packages" "$config/$name.tree" "$TOP/scripts/tree-make.sh")

if [ ! -e "$tree/.complete" ]; then
	with_lock "$name"
	if [ ! -e "$tree/.complete" ]; then # else another clone was faster
		need_space "$gib"
		index=$(archive Debian)
		[ -n "$index" ] || die "apt knows no Debian archive; set one up in /etc/apt and run apt-get update"
		index=${index%/}/dists/$suite/InRelease
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
		rm -rf --one-file-system "$CACHE"/tmp."$name"-*
		tmp=$(mktemp -d "$CACHE/tmp.$name-XXXXXX")
		trap 'rm -rf --one-file-system "$tmp"' EXIT
		chmod 755 "$tmp"
		# In namespaces of its own, so that its mounts and processes end with it.
		run_logged "making $what" "$CACHE/log/$name.log" \
			unshare --mount --pid --fork --mount-proc --kill-child=KILL \
			"$TOP/scripts/tree-make.sh" "$name" "$tmp"
		touch "$tmp/tree/.complete"
		rm -rf --one-file-system "$tree"
		mv "$tmp/tree" "$tree"
	fi
fi
echo "$tree"
