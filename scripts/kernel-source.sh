#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Inside the build root:
#   kernel-source.sh find FILE     writes into FILE which Linux 7.3.x the archive
#                                  offers whole: "RELEASE PACKAGE-VERSION", e.g.
#                                  "7.3.4+deb13-amd64 7.3.4-1~bpo13+1"
#   kernel-source.sh unpack FILE   unpacks its source and packages into the cache:
#                                  /cache/linux-RELEASE/{src,headers,modules,image}
set -euo pipefail

series=7.3
command=$1 version_file=$2

# The index of the build root, or a newer one once that is out of date. The
# caller holds the lock of the source.
lists=/cache/apt-lists
if [ ! -e $lists/.complete ]; then
	rm -rf $lists
	mkdir -p $lists/partial
	cp /var/lib/apt/lists/*_* $lists/
	touch $lists/.complete
fi
apt=(-o "Dir::State::Lists=$lists" -o Dir::Cache=/tmp/apt -o APT::Sandbox::User=root
	-o Acquire::Check-Valid-Until=false -o Acquire::Languages=none)
mkdir -p /tmp/apt/archives/partial

has() { # PACKAGE VERSION
	apt-cache "${apt[@]}" madison "$1" | awk -F' *[|] *' -v v="$2" '$2 == v { f = 1 } END { exit !f }'
}

# The archive may for a while hold the parts of different versions: the newest
# one of which every part is there.
find_version() {
	local release version
	for release in $(apt-cache "${apt[@]}" pkgnames "linux-headers-$series." |
		sed -nE "s/^linux-headers-($series\.[0-9]+\+deb13-amd64)$/\1/p" | sort -Vr); do
		for version in $(apt-cache "${apt[@]}" madison "linux-headers-$release" |
			awk -F' *[|] *' '{ print $2 }'); do
			if has "linux-source-$series" "$version" && has "linux-modules-$release" "$version" &&
				has "linux-binary-unsigned-$release" "$version" &&
				has "linux-headers-${release%-amd64}-common" "$version"; then
				echo "$release $version"
				return
			fi
			echo "skipping $release $version: the archive does not hold all of its parts" >&2
		done
	done
	return 1
}

refresh() {
	echo "refreshing the archive's index" >&2
	apt-get "${apt[@]}" -qq update
}

find_into_file() {
	find_version >"$version_file.new" || { refresh && find_version >"$version_file.new"; } ||
		{ echo "the archive holds no complete Linux $series.x" >&2; exit 1; }
	mv "$version_file.new" "$version_file"
}

fetch() {
	local package
	cd "$tmp"
	for package in "linux-source-$series" "linux-headers-$release" "linux-modules-$release" \
		"linux-binary-unsigned-$release"; do
		apt-get "${apt[@]}" -q download "$package=$version" || return 1
	done
}

case $command in
find) find_into_file ;;
unpack)
	read -r release version <"$version_file"
	dir=/cache/linux-$release
	[ ! -e "$dir/.complete" ] || exit 0
	rm -rf /cache/tmp.linux-*
	tmp=$(mktemp -d /cache/tmp.linux-XXXXXX)
	trap 'rm -rf "$tmp"' EXIT
	chmod 755 "$tmp"
	echo "==> fetching and unpacking Linux $version" >&2
	if ! fetch; then
		# Point versions come and go: the index was older than the archive.
		refresh && find_into_file && read -r release version <"$version_file" && fetch ||
			{ echo "cannot download Linux $version: is the network there?" >&2; exit 1; }
		dir=/cache/linux-$release
	fi
	mkdir src headers modules image
	dpkg-deb --fsys-tarfile linux-headers-*.deb | tar -x -C headers
	dpkg-deb --fsys-tarfile linux-modules-*.deb | tar -x -C modules
	dpkg-deb --fsys-tarfile linux-binary-*.deb | tar -x -C image
	dpkg-deb --fsys-tarfile linux-source-*.deb | tar -x --to-stdout --wildcards './usr/src/*.tar.xz' |
		xz -dc -T2 | tar -x -C src --strip-components=1
	rm -- *.deb
	touch .complete
	rm -rf "$dir"
	mv "$tmp" "$dir"
	;;
esac
