# SPDX-License-Identifier: GPL-2.0
"""Checks that lines of prose have at most 100 columns.

Prose is what comments of Rust code say, and the paragraphs and lists of files .md: no tables,
headings, pictures, code, nor what is one word. checkpatch looks at C.

Prints a line for each that is too long, and returns 1 if there is any. Runs in the top folder of
the tree.
"""

import glob
import itertools
import re

WIDTH = 100
FOLDERS = ["src", "protocol", "client", "device", "tests", "bench", "compare", "render"]
COMMENT = re.compile(r"\s*//[/!]? ?(.*)")


def is_too_long(line, text):
    """Whether a line is, of which `text` is the prose."""
    return len(line) > WIDTH and " " in text.strip() and not text.lstrip().startswith("|")


def in_rust(text):
    """Numbers of lines, from 1 on."""
    for number, line in enumerate(text.splitlines(), 1):
        comment = COMMENT.match(line)
        if comment and is_too_long(line, comment[1]):
            yield number


def in_markdown(text):
    """Numbers of lines, from 1 on."""
    is_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code and not line.startswith(("#", "![")) and is_too_long(line, line):
            yield number


def problems():
    """Lines that are too long, with their files."""
    rust = (glob.glob(f"{folder}/**/*.rs", recursive=True) for folder in FOLDERS)
    files = [(path, in_rust) for path in itertools.chain(*rust)]
    documents = glob.glob("*.md") + glob.glob("docs/**/*.md", recursive=True)
    files += [(path, in_markdown) for path in documents]
    for path, numbers in sorted(files, key=lambda file: file[0]):
        with open(path) as f:
            for number in numbers(f.read()):
                yield f"{path}:{number}: more than {WIDTH} columns"


def main(_):
    found = list(problems())
    print("\n".join(found) if found else "all lines of prose have their width")
    return 1 if found else 0
