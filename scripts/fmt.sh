#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Formats all Rust code: the module with the kernel's style, the rest with Cargo's.
. "$(dirname "$0")/lib.sh"

kernel=$("$TOP/scripts/kernel.sh" stock)
# shellcheck disable=SC2016
"$TOP/scripts/in-root" sh -c '
	rustfmt --config-path "$(readlink -f "$1/build/source")/.rustfmt.toml" src/main.rs &&
	cargo fmt --all' sh "/cache/${kernel##*/}"
