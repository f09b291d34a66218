#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Writes rust-project.json, so that rust-analyzer understands the module.
. "$(dirname "$0")/lib.sh"

kernel=$("$TOP/scripts/kernel.sh" stock)
root=$("$TOP/scripts/root.sh")
"$TOP/scripts/module.sh" stock modules
"$TOP/scripts/module.sh" stock rust-analyzer
[ -s "$BUILD/module/stock/rust-project.json" ] || die "kbuild wrote no rust-project.json"

# The paths in it are those inside the build root, but the editor is outside;
# and the module includes a generated file through an environment variable.
"$TOP/scripts/in-root" python3 - "$root" "$CACHE" "$TOP" <<'PYTHON'
import json, re, sys

root, cache, top = sys.argv[1:]
outside = {"/cache": cache, "/project": top, "/usr": root + "/usr"}

def move(value):
    if isinstance(value, str):
        return re.sub(r"^/(cache|project|usr)(?=/|$)", lambda m: outside[m[0]], value)
    if isinstance(value, list):
        return [move(v) for v in value]
    if isinstance(value, dict):
        return {k: move(v) for k, v in value.items()}
    return value

with open("/project/build/module/stock/rust-project.json") as f:
    project = move(json.load(f))
ours = [c for c in project["crates"] if c["root_module"] == top + "/src/main.rs"]
for crate in ours:
    crate.setdefault("env", {})["VIRTGPU_USERPTR_OBJ"] = top + "/build/module/stock"
with open("/project/rust-project.json", "w") as f:
    json.dump(project, f, indent=1)
if not ours:
    sys.exit("rust-project.json lacks the module: does src/Makefile mention main.o?")
PYTHON
note "wrote rust-project.json (kernel: ${kernel##*/})"
