#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""man.py TITLE SECTION DATE WHAT FILE [HEADING...]: prints a manual page made from
the Markdown in FILE: all of it, or the parts under the `## ` headings named.

It knows the Markdown that docs/ and README.md are written in: headings, paragraphs,
lists, tables, fenced code, and in the text code, bold and links.
"""

import re
import sys


def text(line):
    """Inline Markdown as roff."""
    # Code is taken out first: nothing in it means anything.
    parts = re.split(r"(`[^`]+`)", line)
    out = []
    for part in parts:
        code = part.startswith("`") and part.endswith("`") and len(part) > 1
        part = part[1:-1] if code else part
        part = part.replace("\\", "\\e").replace("-", "\\-" if code else "-")
        if code:
            part = f"\\fB{part}\\fR"
        else:
            part = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", part)
            part = re.sub(r"\*\*(.+?)\*\*", r"\\fB\1\\fR", part)
            part = re.sub(r"(?<!\w)\*([^*]+)\*", r"\\fI\1\\fR", part)
        out.append(part)
    line = "".join(out)
    # Bold text with code in it: roff does not nest fonts.
    line = re.sub(r"\*\*", "", line)
    return "\\&" + line if line[:1] in (".", "'") else line


def table(rows):
    """A table as tbl wants it; the last column takes what is left of the line."""
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", row.strip().strip("|"))] for row in rows]
    head, body = cells[0], cells[2:]
    width = max(len(row) for row in cells)
    out = [".TS", "allbox;" if width > 2 else "tab(@);"]
    out[1] = "tab(@) " + ("box;" if width > 2 else ";")
    out.append(" ".join(["l"] * (width - 1) + ["lx"]) + ".")
    rows = ([head] if any(head) else []) + body
    for index, row in enumerate(rows):
        row += [""] * (width - len(row))
        out.append("@".join("T{\n" + text(cell.replace("\\|", "|")) + "\nT}" for cell in row))
        if index == 0 and any(head):
            out.append("_")
    out.append(".TE")
    return out


def page(lines):
    """Markdown lines as roff lines."""
    out, i = [], 0
    while i < len(lines):
        line = lines[i]
        if line.lstrip().startswith("```"):
            end = next(j for j in range(i + 1, len(lines)) if lines[j].lstrip().startswith("```"))
            out += [".PP", ".EX"]
            for code in lines[i + 1:end]:
                code = code.replace("\\", "\\e").replace("-", "\\-")
                out.append("\\&" + code if code[:1] in (".", "'") else code)
            out.append(".EE")
            i = end + 1
        elif line.startswith("|"):
            end = i
            while end < len(lines) and lines[end].startswith("|"):
                end += 1
            out += table(lines[i:end])
            i = end
        elif m := re.match(r"(#+) (.*)", line):
            kind = ".SH" if len(m[1]) <= 2 else ".SS"
            out.append(f"{kind} \"{text(m[2])}\"")
            i += 1
        elif m := re.match(r"( *)(?:[*-]|(\d+\.)) (.*)", line):
            out += [f".IP \"{m[2] or chr(92) + '(bu'}\" 4", text(m[3])]
            i += 1
        elif line.strip():
            if i == 0 or not lines[i - 1].strip() or lines[i - 1].startswith(("|", "#")):
                out.append(".PP")
            out.append(text(line.strip()))
            i += 1
        else:
            i += 1
    return out


def select(lines, headings):
    """The parts under the headings; all but the first heading if none is named."""
    if not headings:
        return lines[1:]
    out, taking, found = [], False, set()
    code = False
    for line in lines:
        code ^= line.lstrip().startswith("```")
        if not code and re.match(r"##? ", line):
            title = line.lstrip("# ")
            taking = title in headings
            found |= {title} & set(headings)
        if taking:
            out.append(line)
    missing = set(headings) - found
    if missing:
        sys.exit(f"man.py: no such heading: {', '.join(sorted(missing))}")
    return out


def main():
    title, section, date, what, path, *headings = sys.argv[1:]
    with open(path) as f:
        lines = f.read().split("\n")
    print("'\\\" t")
    print(f".TH {title.upper()} {section} {date} virtgpu\\-userptr")
    print(".SH NAME")
    print(f"{title} \\- {what}")
    print("\n".join(page(select(lines, headings))))


if __name__ == "__main__":
    main()
