# SPDX-License-Identifier: GPL-2.0
"""Checks that each module of src/ uses only what is below it.

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
    """What the text of `module` names: the module in which it does (there may be modules in it),
    the path, and the line."""
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


def module_of(path, crate="src"):
    """The module that a file of a crate's folder is."""
    parts = os.path.splitext(os.path.relpath(path, crate))[0].split("/")
    if parts[-1] in ("mod", "main", "lib"):
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
                wrong.append(f"{where} uses {what}, which is of the root of the crate, "
                             "above all layers")
            elif layers[used] >= layers[own]:
                wrong.append(f"{where} uses {what} of {used} (layer {layers[used]}), "
                             "which is not below it")
            carried = data.get(target[1]) if used == "drm" and len(target) > 1 else None
            if carried not in (None, own) and layers[carried] >= layers[own]:
                wrong.append(
                    f"{where} uses {what}, whose data is of {carried} (layer {layers[carried]}), "
                    "which is not below it"
                )
    return wrong


def main(_):
    wrong = check(".")
    for line in wrong:
        print(line)
    return 1 if wrong else 0
