# SPDX-License-Identifier: GPL-2.0
"""Whether files of the driver or of the device name each other in circles, and where the driver has
`unsafe`.

The layers say which folder may use which; here it is the files of a folder. A file uses another if
it names something of it, by a path of its own or through what another file makes public again.
That a file uses the one of the folder it is in, and the other way round, is how modules are made,
and no circle.

src/kapi/drm/ is left out: a device, its files and its buffers have each other as parameters in C,
too.

`unsafe` of the driver belongs into kapi/; trace/ has it as well, as trace events are C functions.
"""

import collections
import glob
import os

from . import layers

DRIVER, DEVICE = "src", "device/src"
WITHOUT = ("kapi", "drm")
UNSAFE = (("kapi",), ("trace",))


def modules(top, crate):
    """The files of a crate by their modules."""
    files = sorted(glob.glob(f"{crate}/**/*.rs", root_dir=top, recursive=True))
    if f"{crate}/lib.rs" in files:
        # The program beside a library is another crate.
        files = [file for file in files if file != f"{crate}/main.rs"]
    return {tuple(layers.module_of(file, crate)): file for file in files}


def read(top, file):
    with open(f"{top}/{file}") as f:
        return f.read()


def resolve(inside, path, files):
    """The path from the root of the crate on, also of one that begins with a module of the file."""
    found = layers.resolve(inside, path)
    if found is None and tuple(inside + path[:1]) in files:
        found = inside + path
    return None if found is None else tuple(found)


def public_again(files, texts):
    """What a module makes public that is of another: its path, by module and name."""
    found = {}
    for module, text in texts.items():
        tokens = layers.tokens(text)
        for at, token in enumerate(tokens):
            if token.text != "use" or not at or tokens[at - 1].text not in ("pub", ")"):
                continue
            leaves = []
            layers.tree(tokens, at + 1, [], leaves)
            for path, _ in leaves:
                target = resolve(list(module), path, files)
                if target and path[-1] != "self":
                    found[module, path[-1]] = target
    return found


def home(path, files, again):
    """The module of what a path names."""
    seen = set()
    while path not in seen:
        seen.add(path)
        module = next(path[:end] for end in range(len(path), -1, -1) if path[:end] in files)
        rest = path[len(module):]
        if not rest or (module, rest[0]) not in again:
            break
        path = again[module, rest[0]] + rest[1:]
    return module


def uses(files, texts):
    """Which module uses which, and where it does so first."""
    again = public_again(files, texts)
    found = collections.defaultdict(dict)
    for module, text in texts.items():
        for inside, path, line in layers.paths(text, list(module)):
            target = resolve(inside, path, files)
            if target is None:
                continue
            other = home(target, files, again)
            shorter = min(len(module), len(other))
            if module[:shorter] != other[:shorter]:
                found[module].setdefault(other, f"{files[module]}:{line}")
    return found


def circle_from(start, found):
    """The shortest way from a module to itself, if there is one."""
    ways, waiting = {}, collections.deque([start])
    while waiting:
        module = waiting.popleft()
        for other in found.get(module, ()):
            if other == start:
                way = [module]
                while way[-1] != start:
                    way.append(ways[way[-1]])
                return way[::-1]
            if other not in ways:
                ways[other] = module
                waiting.append(other)
    return None


def unsafe_outside(files, texts):
    """Where the driver has `unsafe` that does not belong there, a line for each."""
    wrong = []
    for module, text in texts.items():
        if module[:1] not in UNSAFE:
            lines = sorted({token.line for token in layers.tokens(text) if token.text == "unsafe"})
            wrong += [f"{files[module]}:{line}: unsafe outside of kapi/" for line in lines]
    return wrong


def circles(files, texts, without=None):
    """The circles, a line for each, but for those of a folder."""
    found = uses(files, texts)
    wrong, reported = [], set()
    for module in sorted(found):
        circle = circle_from(module, found)
        if not circle or module[:2] == without or reported & set(circle):
            continue
        reported |= set(circle)
        steps = zip(circle, circle[1:] + circle[:1])
        wrong.append("a circle: " + ", ".join(
            f"{found[one][other]} uses {files[other]}" for one, other in steps))
    return wrong


def check(top):
    """What is wrong, a line for each."""
    wrong = []
    for crate, without in ((DRIVER, WITHOUT), (DEVICE, None)):
        files = modules(top, crate)
        texts = {module: read(top, file) for module, file in files.items()}
        if crate == DRIVER:
            wrong += unsafe_outside(files, texts)
        wrong += circles(files, texts, without)
    return wrong


def main(_):
    wrong = check(".")
    for line in wrong:
        print(line)
    return 1 if wrong else 0
