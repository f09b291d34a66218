# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Common ground of the scripts: where things are, locking, progress, errors.
# Sourced, never run.

set -euo pipefail

# The clone this script belongs to.
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
CACHE=${VIRTGPU_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/virtgpu-userptr}
# shellcheck disable=SC2034 # used by the scripts that source this
BUILD=$TOP/build

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

note() {
	echo "==> $*" >&2
}

# sha FILE|- ...: 12 digits that name the contents of the inputs.
sha() {
	cat "$@" | sha256sum | cut -c1-12
}

# archive LABEL: address of the Debian archive that the host's apt uses, whatever
# it is, or of Debian-Security. A host that never ran apt-get update knows no
# labels; its first source is taken then.
archive() {
	# shellcheck disable=SC2016 # fields of apt, not of the shell
	apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' |
		awk -v want="$1" '$1 == want && NF == 2 { print $2; found = 1; exit }
			NF == 1 && !first { first = $1 }
			END { if (!found && want == "Debian") print first }' || true
}

# Conditions of everything that builds in the cache, one clear line each.
preconditions() {
	[ "$(id -u)" = 0 ] || die "must run as root (chroot and private mounts); use sudo or a root shell"
	[ "$(uname -m)" = x86_64 ] || die "x86-64 only, this is $(uname -m)"
	command -v unshare >/dev/null || die "unshare is missing; install util-linux"
	mkdir -p "$CACHE" || die "cannot create the cache $CACHE; set VIRTGPU_CACHE to a writable folder"
}

# need_space GIB: refuses before anything is written.
need_space() {
	local free
	free=$(df --output=avail -k "$CACHE" | tail -n1)
	[ "$free" -ge $(($1 * 1024 * 1024)) ] ||
		die "less than $1 GiB free in $CACHE; free some, or set VIRTGPU_CACHE to a larger disk"
}

# with_lock NAME: serialises builders of one cache item, across clones. The lock
# lives as long as this process (and is not inherited by what it starts in the
# background, because the file descriptor is closed there by `9>&-`).
with_lock() {
	exec 9>"$CACHE/lock-$1"
	if ! flock -n 9; then
		note "another build of '$1' is running in $CACHE, waiting for it"
		flock 9
	fi
}

# run_logged WHAT LOG CMD...: runs a long command with its output in LOG and
# shows what runs, for how long and where the log is.
run_logged() {
	local what=$1 log=$2 start=$SECONDS pid rc=0 every=30 shown=0
	shift 2
	mkdir -p "$(dirname "$log")"
	note "$what (log: $log)"
	# Even kill -9 of this script takes the command along.
	setpriv --pdeathsig KILL "$@" >"$log" 2>&1 </dev/null 9>&- &
	pid=$!
	# shellcheck disable=SC2064
	trap "kill $pid 2>/dev/null; wait $pid 2>/dev/null; exit 130" INT TERM
	while kill -0 $pid 2>/dev/null; do
		sleep 0.5
		if ((SECONDS - start - shown >= every)); then
			shown=$((SECONDS - start))
			note "$what: ${shown} s"
		fi
	done
	wait $pid || rc=$?
	trap - INT TERM
	if [ $rc -ne 0 ]; then
		tail -n 25 "$log" >&2
		die "$what failed after $((SECONDS - start)) s, full log: $log"
	fi
	note "$what: done in $((SECONDS - start)) s"
}

# use_kernel KIND: makes a kernel, and says in a variable where the build root has it.
use_kernel() {
	local path
	path=$("$TOP/scripts/kernel.sh" "$1")
	export "VIRTGPU_KERNEL_${1^^}=/cache/${path##*/}"
}

# use_tree NAME: likewise with a tree.
use_tree() {
	local path
	path=$("$TOP/scripts/tree.sh" "$1")
	export "VIRTGPU_TREE_${1^^}=/cache/${path##*/}"
}

# build_module KIND: builds the module for a kernel that is there.
build_module() {
	run_logged "building the module for the $1 kernel" "$BUILD/logs/module-$1.log" \
		"$TOP/scripts/module.sh" "$1"
}
