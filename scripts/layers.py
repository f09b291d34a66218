#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""layers.py [--self-test]: whether each module of src/ uses only what is below it.

The layers are in a table of the doc comment of src/main.rs, and nowhere else: a line has the number
of the layer and a module. A module may use what is in it, and modules of layers with lower numbers.
What counts is what `use` names, and paths in code that begin with `crate`, `self` or `super`;
what is in comments and strings does not. Who names an alias of src/drm.rs uses the module of the
driver's data in that type, too, as src/driver.rs says it. There is no list of exceptions.

Prints a line for each use that goes up or sideways, and returns 1 if there is any. Runs in the top
folder of the tree.
"""

import collections
import glob
import os
import re
import shutil
import sys
import tempfile

ROW = re.compile(r"//! \| (\d+) \| \[`(\w+)`\] \|")
TOKEN = re.compile(
    r"""(?P<skip>\s+ | //[^\n]*)
      | (?P<comment>/\*)
      | (?P<raw>\b[bc]?r(?P<hash>\#*)" )
      | (?P<string>\b[bc]?"(?:[^"\\]|\\.)*" | "(?:[^"\\]|\\.)*")
      | (?P<char>\bb?'(?:[^'\\]|\\(?:x..|u\{[^}]*\}|.))' | '(?:[^'\\]|\\(?:x..|u\{[^}]*\}|.))')
      | (?P<lifetime>'\w+)
      | (?P<word>\$?\w+)
      | (?P<punctuation>::|.)""",
    re.X | re.S,
)

Token = collections.namedtuple("Token", "text line")


def tokens(text):
    """Words, `::` and all other characters one by one, without comments and literals."""
    found, at, line = [], 0, 1
    while at < len(text):
        match = TOKEN.match(text, at)
        end = match.end()
        if match["comment"]:
            depth = 1
            while depth:
                mark = re.compile(r"/\*|\*/").search(text, end)
                if not mark:
                    raise ValueError(f"line {line}: a comment without end")
                depth += 1 if mark[0] == "/*" else -1
                end = mark.end()
        elif match["raw"]:
            end = text.index('"' + match["hash"], end) + 1 + len(match["hash"])
        elif match["word"] or match["punctuation"]:
            found.append(Token(match[0], line))
        line += text.count("\n", at, end)
        at = end
    return found


def tree(all_tokens, at, prefix, leaves):
    """Reads what `use` names from `at` on: adds each path, with its line; returns where it ends."""
    path, line = list(prefix), None
    while True:
        token = all_tokens[at]
        if token.text == "{":
            at += 1
            while all_tokens[at].text != "}":
                at = tree(all_tokens, at, path, leaves)
                if all_tokens[at].text == ",":
                    at += 1
            return at + 1
        if token.text in (";", ",", "}"):
            leaves.append((path, line))
            return at
        if token.text == "as":
            at += 2
            continue
        if token.text != "::":
            line = line or token.line
            path.append(token.text)
        at += 1


def paths(text, module):
    """What the text of `module` names: the module in which it does (there may be modules in it), the
    path, and the line."""
    all_tokens = tokens(text)
    inside, depths, depth, at = list(module), [], 0, 0
    while at < len(all_tokens):
        word = all_tokens[at].text
        following = [token.text for token in all_tokens[at + 1 : at + 3]]
        if word == "mod" and len(following) == 2 and following[1] == "{":
            inside.append(following[0])
            depth += 1
            depths.append(depth)
            at += 3
        elif word == "use" and following and following[0] != "<":
            leaves = []
            at = tree(all_tokens, at + 1, [], leaves)
            yield from ((list(inside), path, line) for path, line in leaves)
        elif word in ("crate", "$crate", "self", "super") and following[:1] == ["::"]:
            line, path = all_tokens[at].line, []
            while re.fullmatch(r"\$?\w+", all_tokens[at].text):
                path.append(all_tokens[at].text)
                at += 1
                if all_tokens[at].text != "::":
                    break
                at += 1
            yield list(inside), path, line
        else:
            if word == "{":
                depth += 1
            elif word == "}":
                if depths and depths[-1] == depth:
                    depths.pop()
                    inside.pop()
                depth -= 1
            at += 1


def resolve(inside, path):
    """The path from the root of the crate on; `None` if it is one of another crate, or begins with
    what was named by a path before."""
    if path[:1] in (["crate"], ["$crate"]):
        return path[1:]
    if path[:1] == ["self"]:
        return inside + path[1:]
    if path[:1] == ["super"]:
        while path[:1] == ["super"]:
            inside, path = inside[:-1], path[1:]
        return inside + path
    return None


def module_of(path):
    """The module that a file of src/ is."""
    parts = os.path.splitext(path)[0].split("/")[1:]
    if parts[-1] in ("mod", "main"):
        parts.pop()
    return parts


# The aliases of src/drm.rs, and what the driver says of its data in each.
ALIASES = {"Device": "Data", "File": "File", "Object": "Object"}


def data_of_aliases(top):
    """The module that the driver's data in each alias is of."""
    if not os.path.exists(f"{top}/src/driver.rs"):
        return {}
    with open(f"{top}/src/driver.rs") as f:
        text = f.read()
    named = {}
    for _, path, _ in paths(text, ["driver"]):
        if path[0] == "crate" and len(path) > 1:
            named[path[-2] if path[-1] == "self" else path[-1]] = path[1]
    found = {}
    for alias, kind in ALIASES.items():
        for words in re.findall(rf"^    type {kind} = (.*);", text, re.M):
            modules = [named[word] for word in re.findall(r"\w+", words) if word in named]
            found.update((alias, module) for module in modules)
    return found


def check(top):
    """What is wrong, a line for each."""
    wrong = []
    with open(f"{top}/src/main.rs") as f:
        root = f.read()
    rows = [(match[2], int(match[1])) for match in ROW.finditer(root)]
    layers = dict(rows)
    declared = {name for name in re.findall(r"^mod (\w+);", root, re.M)}
    # A macro makes this one.
    declared |= {"module_parameters"} if re.search(r"^module! \{", root, re.M) else set()
    if len(layers) != len(rows):
        wrong.append("src/main.rs: the table of layers has a module twice")
    for name in sorted(declared - set(layers)):
        wrong.append(f"src/main.rs: module {name} is not in the table of layers")
    for name in sorted(set(layers) - declared):
        wrong.append(f"src/main.rs: the table of layers has a module {name}, which there is not")

    data = data_of_aliases(top)
    for file in sorted(glob.glob("src/**/*.rs", root_dir=top, recursive=True)):
        module = module_of(file)
        if not module:
            # The root of the crate is above all.
            continue
        own = module[0]
        if own not in layers:
            wrong.append(f"{file}: module {own} is not in the table of layers")
            continue
        with open(f"{top}/{file}") as f:
            text = f.read()
        for inside, path, line in paths(text, module):
            target = resolve(inside, path)
            if target is None or target[:1] == [own]:
                continue
            where, what = f"{file}:{line}: {own} (layer {layers[own]})", "::".join(path)
            used = target[0] if target else "*"
            if used not in layers:
                wrong.append(f"{where} uses {what}, which is of the root of the crate, above all layers")
            elif layers[used] >= layers[own]:
                wrong.append(f"{where} uses {what} of {used} (layer {layers[used]}), which is not below it")
            carried = data.get(target[1]) if used == "drm" and len(target) > 1 else None
            if carried not in (None, own) and layers[carried] >= layers[own]:
                wrong.append(
                    f"{where} uses {what}, whose data is of {carried} (layer {layers[carried]}), "
                    "which is not below it"
                )
    return wrong


GOOD = {
    "src/main.rs": """
//! | layer | module | what |
//! |---|---|---|
//! | 3 | [`driver`] | |
//! | 2 | [`top`] | |
//! | 2 | [`beside`] | |
//! | 1 | [`middle`] | |
//! | 0 | [`drm`] | |
//! | 0 | [`module_parameters`] | |
use self::top::Something;
mod beside;
mod driver;
mod drm;
mod middle;
mod top;
module! {
    type: Something,
}
""",
    "src/driver.rs": """use crate::{drm::{self, Device, File, Object}, middle::{self, part::Deep}, top::Something};
impl drm::Driver for Driver {
    type Data = Arc<middle::Gpu>;
    type File = Something;
    type Object = Deep;
}
""",
    "src/drm.rs": "pub(crate) type File = kernel::File<Driver>;\n",
    "src/beside.rs": """use crate::{middle::{self, part::{Deep, Other as Another}}, module_parameters};
use kernel::{prelude::*, sync::Arc};
use middle::top;
""",
    "src/middle/mod.rs": """
mod part;
/// [`crate::top::Something`] is none, and neither is `crate::beside`.
/* use crate::top; /* crate::top */ crate::top */
pub(crate) use self::part::Deep;
const TEXT: &str = "use crate::top; \\" crate::top";
const RAW: &CStr = cr#"crate::top " crate::top"#;
fn quote<'a>(it: &'a str) -> char { '"' }
fn captured() -> impl Sized + use<'static> { crate::module_parameters::number.value() }
""",
    "src/middle/part.rs": """
use super::TEXT;
pub(in crate::middle) struct Deep;
mod tests {
    use super::*;
    use super::super::RAW;
    use crate::middle::quote;
}
use super::RAW;
""",
    "src/top.rs": "use super::middle;\nuse crate::drm::{Device, File, Object};\nfn f() { crate::middle::quote(\"\"); }\n",
}

# Where it is added, what, and which lines must be found wrong; None for the whole file.
BAD = [
    ("src/middle/part.rs", "use crate::top;", "crate::top of top (layer 2)"),
    ("src/middle/part.rs", "use crate::{middle::part, top::{a, b::c}};", "crate::top::b::c of top (layer 2)"),
    ("src/middle/part.rs", "pub(crate) use super::super::top::Something as Other;", "super::super::top::Something of"),
    ("src/middle/part.rs", "mod tests { use super::super::super::beside; }", "super::super::super::beside of"),
    ("src/middle/mod.rs", "fn f() { let x = crate::top::Something::new(); }", "crate::top::Something::new of top"),
    ("src/middle/mod.rs", "impl crate::top::Trait for RAW {}", "crate::top::Trait of top"),
    ("src/middle/mod.rs", "macro_rules! m { () => { $crate::top::f() } }", "$crate::top::f of top"),
    ("src/middle/mod.rs", "mod a { mod b {} fn f() { super::super::top::f() } }", "super::super::top::f of top"),
    ("src/middle/mod.rs", "fn g() { '\\''; crate::top::f() }", "crate::top::f of top"),
    ("src/middle/mod.rs", "use crate::Something;", "crate::Something, which is of the root"),
    ("src/middle/mod.rs", "use crate::*;", "crate::*, which is of the root"),
    ("src/beside.rs", "use crate::top;", "crate::top of top (layer 2)"),
    ("src/beside.rs", "use crate::drm::{Object, File};", "crate::drm::File, whose data is of top (layer 2)"),
    ("src/middle/mod.rs", "fn f(file: &crate::drm::File) {}", "crate::drm::File, whose data is of top (layer 2)"),
    ("src/drm.rs", "mod tests { use super::Device; fn f(x: crate::middle::X) {} }", "crate::middle::X of middle"),
    ("src/main.rs", "mod more;", "module more is not in the table"),
    ("src/main.rs", "//! | 7 | [`less`] | |", "a module less, which there is not"),
    ("src/main.rs", "//! | 0 | [`top`] | |", "a module twice"),
]


def write(top, files):
    for name, text in files.items():
        os.makedirs(os.path.dirname(f"{top}/{name}"), exist_ok=True)
        with open(f"{top}/{name}", "w") as f:
            f.write(text)


def self_test():
    """Whether what is right is found right, and each wrong thing wrong, in the line where it is."""
    with tempfile.TemporaryDirectory() as top:
        write(top, GOOD)
        assert check(top) == [], check(top)
        for name, text, message in BAD:
            write(top, {**GOOD, name: GOOD[name] + text + "\n"})
            found = [wrong for wrong in check(top) if message in wrong]
            place = f"{name}:" if name == "src/main.rs" else f"{name}:{GOOD[name].count(chr(10)) + 1}: "
            assert found and found[0].startswith(place), (text, check(top))

    # The tree itself, with the table upside down, and with an import in the lowest layer.
    with tempfile.TemporaryDirectory() as top:
        shutil.copytree("src", f"{top}/src")
        with open("src/main.rs") as f:
            root = f.read()
        write(top, {"src/main.rs": ROW.sub(lambda m: m[0].replace(m[1], str(99 - int(m[1])), 1), root)})
        assert len(check(top)) > 100, "nothing is wrong with a table that is upside down"
        write(top, {"src/main.rs": root})
        before = check(top)
        with open(f"{top}/src/kapi/task.rs", "a") as f:
            f.write("use crate::driver::VirtgpuUserptr;\n")
        assert len(check(top)) == len(before) + 1, "an import of the driver in kapi is not found"


def main():
    if sys.argv[1:] == ["--self-test"]:
        self_test()
        return 0
    wrong = check(".")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
