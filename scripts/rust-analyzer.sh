#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Writes rust-project.json, so that rust-analyzer understands the module.
. "$(dirname "$0")/lib.sh"

kernel=$("$TOP/scripts/kernel.sh" stock)
"$TOP/scripts/module.sh" stock modules
"$TOP/scripts/module.sh" stock rust-analyzer
# The paths in it are those inside the build root; the editor is outside.
root=$("$TOP/scripts/root.sh")
made=$(find "$BUILD/module/stock" "$TOP" -maxdepth 1 -name rust-project.json | head -n1)
[ -n "$made" ] || die "kbuild wrote no rust-project.json"
sed -e "s|\"/cache/|\"$CACHE/|g" -e "s|\"/project/|\"$TOP/|g" -e "s|\"/usr/|\"$root/usr/|g" \
	-e "s|/cache/${kernel##*/}|$kernel|g" "$made" >"$TOP/rust-project.json.new"
mv "$TOP/rust-project.json.new" "$TOP/rust-project.json"
note "wrote rust-project.json"
