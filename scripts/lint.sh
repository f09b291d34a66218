#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Inside the build root: lint.sh WHAT; every warning is an error.
set -euo pipefail

kernel=${VIRTGPU_KERNEL_STOCK:-} # set by check.sh
source=$(readlink -f "$kernel/build/source" || true)

case ${1:-} in
rustfmt-module)
	# The kernel's own style; the files that main.rs names are followed.
	rustfmt --check --color never --config-path "$source/.rustfmt.toml" src/main.rs
	;;
rustfmt-workspace)
	cargo fmt --all --check -- --color never
	;;
clippy-module)
	read -ra args <"$kernel/make-args"
	# From scratch: kbuild repeats no warning about what is up to date.
	rm -rf build/module/lint
	mkdir -p build/module/lint
	make -C "$kernel/build" "${args[@]}" M=/project MO=/project/build/module/lint \
		CLIPPY=1 KRUSTFLAGS=-Dwarnings KCFLAGS=-Werror W=1 -j"$(nproc)" modules 2>&1 | tee build/module/lint.log
	# modpost and objtool only print theirs.
	! grep -E '(^|: )(warning|WARNING):' build/module/lint.log
	;;
clippy-workspace)
	cargo clippy --workspace --all-targets --locked -- -D warnings
	;;
layers)
	python3 scripts/virtgpu test layers circles
	python3 scripts/virtgpu layers
	python3 scripts/virtgpu circles
	;;
links)
	python3 scripts/virtgpu test links
	python3 scripts/virtgpu links
	;;
prose)
	python3 scripts/virtgpu test prose
	python3 scripts/virtgpu prose
	;;
checkpatch)
	# FILE_PATH_CHANGES: MAINTAINERS is the kernel's. BIT_MACRO: there is no
	# BIT() in headers for userspace, and these are most of what is looked at.
	# Definitions of trace events are laid out as in all of the kernel's headers,
	# which checkpatch does not know.
	checkpatch() {
		perl "$source/scripts/checkpatch.pl" --no-tree -f --strict --no-summary --terse \
			--show-types --max-line-length=100 "$@"
	}
	ignore=FILE_PATH_CHANGES,BIT_MACRO
	status=0
	# shellcheck disable=SC2046
	checkpatch --ignore $ignore $(find src uapi tests/exporter bench/plugin -name '*.[ch]' ! -name trace.h | sort) || status=1
	checkpatch --ignore $ignore,OPEN_ENDED_LINE,PARENTHESIS_ALIGNMENT src/trace/trace.h || status=1
	exit $status
	;;
kconfig)
	# In a kernel tree the module's entry brings about all that dkms.conf asks for.
	work=$(mktemp -d)
	mkdir "$work/upper" "$work/work" "$work/source" "$work/build"
	busybox mount -t overlay kconfig \
		-o "lowerdir=$source,upperdir=$work/upper,workdir=$work/work" "$work/source"
	drm=$work/source/drivers/gpu/drm
	ln -s /project "$drm/virtgpu_userptr"
	echo 'source "drivers/gpu/drm/virtgpu_userptr/Kconfig"' >>"$drm/Kconfig"
	printf 'CONFIG_%s\n' 64BIT=y EXPERT=y MODULES=y RUST=y SHMEM=y PCI=y VIRTIO_MENU=y \
		VIRTIO_PCI=y DRM=m DRM_VIRTGPU_USERPTR=m >"$work/wanted"
	read -ra args <"$kernel/make-args"
	make -s -C "$work/source" O="$work/build" "${args[@]}" KCONFIG_ALLCONFIG="$work/wanted" allnoconfig
	options=$(set +u; . ./dkms.conf; echo "$BUILD_EXCLUSIVE_CONFIG")
	status=0
	for option in CONFIG_DRM_VIRTGPU_USERPTR $options; do
		grep "^$option=[ym]" "$work/build/.config" || { echo "$option is not set"; status=1; }
	done
	[ "$(echo "$options" | wc -w)" -ge 8 ]
	exit $status
	;;
compile-fail)
	read -ra args <"$kernel/make-args"
	mkdir -p build/module/compile-fail
	# The compiler is called once more as it was for this.
	make -C "$kernel/build" "${args[@]}" M=/project MO=/project/build/module/compile-fail \
		-j"$(nproc)" modules >&2
	python3 scripts/virtgpu compile-fail build/module/compile-fail
	;;
driver-patch)
	# Most runs build no mutant, so that a patch which does not apply would be found much later.
	work=$(mktemp -d)
	cp -r src "$work/"
	(cd "$work" && busybox patch -p1 -i /project/tests/mutants/driver.patch)
	# A hunk that was lost with its file is a mutant that does nothing.
	for mutant in $(sed -nE 's/^    ([A-Z][A-Za-z]+) = [0-9]+,$/\1/p' "$work/src/mutant.rs"); do
		grep -rqE "(Mutant|Window)::$mutant\b" "$work/src" || { echo "mutant $mutant is nowhere"; exit 1; }
	done
	;;
shell)
	shellcheck -x -S warning -P scripts scripts/*.sh scripts/in-root .ci/run
	;;
*)
	echo "usage: lint.sh rustfmt-module|rustfmt-workspace|clippy-module|clippy-workspace|layers|links|prose|checkpatch|kconfig|compile-fail|driver-patch|shell" >&2
	exit 1
	;;
esac
