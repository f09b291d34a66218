# SPDX-License-Identifier: GPL-2.0
"""Checks that what the documentation links to is there.

A link or picture in a file .md names a file or folder of the tree, by a path from that file's
folder, and with `#` a heading of it. Where `§N` or `, "Title"` follows a link, that names a
heading, too. Other sites are not asked.

Prints a line for each link that leads nowhere, and returns 1 if there is any. Runs in the top
folder of the tree.
"""

import glob
import os
import re

FENCE = re.compile(r"^( *)```.*?^\1```$", re.M | re.S)
CODE = re.compile(FENCE.pattern + r"|`[^`\n]+`", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)(?:\s+§(?P<number>\d+(?:\.\d+)*))?"
                  r"(?:,?\s+\"(?P<title>[^\"]+)\")?")
HEADING = re.compile(r"^#+ (?:(\d+(?:\.\d+)*)\.? )?(.*)$", re.M)


def without_code(text):
    """`text` with blanks for code; lines stay where they are."""
    return CODE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)


def headings(path):
    """Numbers, titles, and anchors as sites that show Markdown make them."""
    with open(path) as f:
        found = HEADING.findall(FENCE.sub("", f.read()))
    whole = [f"{number}. {title}" if number else title for number, title in found]
    anchors = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in whole}
    return {number for number, _ in found}, {title for _, title in found}, anchors


def problems(path):
    """Where links of the file lead nowhere, and why."""
    with open(path) as f:
        text = without_code(f.read())
    for link in LINK.finditer(text):
        target, _, anchor = link[1].partition("#")
        if re.match(r"\w+:", target):
            continue
        place = os.path.normpath(os.path.join(os.path.dirname(path), target)) if target else path
        line = f"{path}:{text.count(chr(10), 0, link.start()) + 1}: {link[1]}"
        if not os.path.exists(place) or place.startswith(".."):
            yield f"{line}: there is no {place}"
        elif anchor or link["number"] or link["title"]:
            known = headings(place) if place.endswith(".md") else (set(), set(), set())
            numbers, titles, anchors = known
            if anchor and anchor not in anchors:
                yield f"{line}: {place} has no heading #{anchor}"
            if link["number"] and link["number"] not in numbers:
                yield f"{line}: {place} has no §{link['number']}"
            if link["title"] and link["title"] not in titles:
                yield f"{line}: {place} has no heading \"{link['title']}\""


def check(files):
    """Where links of these files lead nowhere, and why."""
    return [problem for path in sorted(files) for problem in problems(path)]


def main(_):
    wrong = check(glob.glob("*.md") + glob.glob("docs/**/*.md", recursive=True))
    for line in wrong:
        print(line)
    return 1 if wrong else 0
