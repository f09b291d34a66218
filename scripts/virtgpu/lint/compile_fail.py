# SPDX-License-Identifier: GPL-2.0
"""Checks that what the documentation of src/ says does not compile does not.

The word is BUILD, a folder in which kbuild has built the module. Such an example is part of a doc
comment:

  /// ```compile_fail,E0382
  /// fn twice(reservation: Reservation<'_, O>, fence: &Fence) {
  ///     reservation.add_writer(fence);
  ///     reservation.add_writer(fence); // error[E0382]: use of moved value
  /// }
  /// ```

It is compiled as part of the module, in a child of the Rust module in which it is
written, of which it sees everything: first without the line that has the error,
which must succeed, and then as it is, which must fail with that error in that
line, and with no other. The compiler is called as it was in BUILD, but makes
metadata only. Prints KTAP.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile

from ..environment import PROJECT

FENCE = re.compile(r"\s*//[/!] ?(.*)")
ERROR = re.compile(r"// error\[(E\d{4})\]")


class Example:
    """An example, and where its error is to be."""

    def __init__(self, path, line, info, lines):
        self.path, self.line, self.lines = path, line, lines
        marked = [(at, m[1]) for at, text in enumerate(lines) if (m := ERROR.search(text))]
        if len(marked) != 1:
            raise ValueError(
                f"{path}:{line}: {len(marked)} lines say which error they have, not one")
        self.at, self.code = marked[0]
        if info != f"compile_fail,{self.code}":
            raise ValueError(f"{path}:{line}: the fence must be compile_fail,{self.code}")

    def name(self):
        return f"{self.path}:{self.line}"


def examples(path):
    """The examples of a file."""
    found, info, start, lines = [], None, 0, []
    with open(path) as f:
        for number, text in enumerate(f, 1):
            comment = FENCE.match(text)
            if not comment:
                if info is not None:
                    raise ValueError(f"{path}:{start}: the example has no end")
                continue
            comment = comment[1]
            if comment.startswith("```"):
                if info is None:
                    info, start, lines = comment[3:].strip(), number, []
                    continue
                if "compile_fail" in info:
                    found.append(Example(path, start, info, lines))
                info = None
            elif info is not None:
                # As rustdoc does: what begins with # is not shown, and is part of it.
                lines.append(re.sub(r"^(\s*)# ", r"\1", comment))
    return found


class Compiler:
    """rustc as kbuild has called it, on a copy of the sources."""

    def __init__(self, build, copy):
        self.build, self.copy = build, copy
        for folder in ("src", "protocol/src"):
            shutil.copytree(f"{PROJECT}/{folder}", f"{copy}/{folder}")
        with open(f"{build}/src/.main.o.cmd") as f:
            saved = next(l for l in f if l.startswith("savedcmd_src/main.o := "))
        # What follows is objtool's.
        words = shlex.split(saved.split(" := ", 1)[1].split(";")[0])
        # As the makefiles of the kernel and Kbuild have it.
        self.env = dict(os.environ, RUSTC_BOOTSTRAP="1", VIRTGPU_USERPTR_OBJ=build)
        while "=" in words[0]:
            name, value = words.pop(0).split("=", 1)
            self.env[name] = value
        if words[-1] != f"{PROJECT}/src/main.rs":
            raise ValueError(f"{build}: main.o was not made of src/main.rs")
        kept, skip = [], False
        for word in words[:-1]:
            if skip:
                skip = False
            elif word == "--out-dir":
                skip = True
            elif not word.startswith("--emit="):
                kept.append(word)
        self.command = kept + [
            "--cap-lints=allow",
            "--error-format=json",
            "--emit=metadata",
            "-o",
            f"{copy}/metadata",
            f"{copy}/src/main.rs",
        ]

    def errors(self, example, without_error):
        """What is wrong with the crate with an example: code, file, line, text."""
        lines = list(example.lines)
        if without_error:
            lines[example.at] = ""
        path = f"{self.copy}/{example.path}"
        with open(path) as f:
            source = f.read()
        head = source.rstrip("\n").count("\n") + 1
        module = "\n#[allow(unused_imports)]\nmod compile_fail {\nuse super::*;\n"
        with open(path, "w") as f:
            f.write(source.rstrip("\n") + module + "\n".join(lines) + "\n}\n")
        try:
            run = subprocess.run(self.command, cwd=self.build, env=self.env, text=True,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        finally:
            with open(path, "w") as f:
                f.write(source)
        found = []
        for line in run.stderr.splitlines():
            try:
                message = json.loads(line)
            except ValueError:
                found.append((None, "", 0, line))
                continue
            # The last ones only sum up.
            if message["level"].startswith("error") and message["spans"]:
                code = (message["code"] or {}).get("code")
                for span in message["spans"]:
                    if span["is_primary"]:
                        at = span["line_start"] - head - module.count("\n")
                        found.append((code, span["file_name"], at, message["message"]))
        if run.returncode and not found:
            ended = f"the compiler ended with {run.returncode}: {run.stderr[-500:]}"
            found.append((None, "", 0, ended))
        if not run.returncode and found:
            found.append((None, "", 0, "the compiler has errors, and did not fail"))
        return found

    def validate(self, example):
        """Why the example does not show what it says."""
        wrong = self.errors(example, True)
        if wrong:
            return ["without the line it does not compile either:", *map(str, wrong)]
        errors = self.errors(example, False)
        want = (example.code, f"{self.copy}/{example.path}", example.at)
        if not errors:
            return ["it compiles"]
        if any(error[:3] != want for error in errors):
            return [f"it does not fail with {want}, but:", *map(str, errors)]
        return []


def main(words):
    build = os.path.abspath(words[0])
    os.chdir(PROJECT)
    found, broken = [], []
    for folder, _, files in sorted(os.walk("src")):
        for name in sorted(files):
            if name.endswith(".rs"):
                try:
                    found += examples(f"{folder}/{name}")
                except ValueError as error:
                    broken.append(str(error))
    print("KTAP version 1")
    print(f"1..{len(found) + len(broken)}")
    number, failed = 0, False
    for error in broken:
        number, failed = number + 1, True
        print(f"# {error}\nnot ok {number} {error.split(': ')[0]}")
    with tempfile.TemporaryDirectory() as copy:
        compiler = Compiler(build, copy)
        for example in found:
            number += 1
            notes = compiler.validate(example)
            for note in notes:
                print(f"# {note}")
            failed |= bool(notes)
            print(f"{'not ok' if notes else 'ok'} {number} {example.name()}", flush=True)
    # There are such examples: a run that finds none has looked at nothing.
    return int(failed or not found)
