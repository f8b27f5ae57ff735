"""Writes docs/methods.md: the tables of contents of dynext's namespaces, as they stand in their docstrings.

Run `python docs/methods.py`; a test holds the page against what this prints.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import dynext as dx

PAGE = Path(__file__).with_suffix(".md")
NAMESPACES = (
    "train",
    "zeroshot",
    "meta",
    "align",
    "prune",
    "heads",
    "gates",
    "policies",
    "losses",
    "data",
    "models",
    "graph",
)
HEAD = """# Methods, by namespace

What `dynext` offers beside the main road, with the paper that each method comes from and the recipe or notebook that
runs it. Written by `python docs/methods.py` from the docstrings; `help(dx.train)` prints the same.
"""


def page() -> str:
    parts = [HEAD]
    for name in NAMESPACES:
        space = getattr(dx, name)
        parts.append(f"## `dx.{name}`\n\n" + "\n".join(markdown(inspect.getdoc(space) or "", name, space)) + "\n")
    return "\n".join(parts)


def markdown(doc: str, name: str, space: ModuleType) -> Iterator[str]:
    """A docstring with its tables (columns marked by lines of ``=``) as Markdown."""
    lines = doc.split("\n")
    rules = [i for i, line in enumerate(lines) if re.fullmatch(r"=+( +=+)*", line)]
    tables = list(zip(rules[::3], rules[1::3], rules[2::3], strict=True))
    done = 0
    for top, below_titles, bottom in tables:
        yield from lines[done:top]
        columns = [(m.start(), m.end()) for m in re.finditer("=+", lines[top])]
        last = columns[-1][0]
        columns[-1] = (last, 10_000)
        titles = cells(lines[top + 1], columns)
        yield "| " + " | ".join(titles) + " |"
        yield "|---" * len(titles) + "|"
        for row in joined([cells(line, columns) for line in lines[below_titles + 1 : bottom]]):
            yield "| " + " | ".join(linked(cell, name, space) for cell in row) + " |"
        done = bottom + 1
    yield from lines[done:]


def cells(line: str, columns: list[tuple[int, int]]) -> list[str]:
    return [line[start:end].strip() for start, end in columns]


def joined(rows: list[list[str]]) -> list[list[str]]:
    """Lines whose first cell is empty go on with the line before."""
    whole: list[list[str]] = []
    for row in rows:
        if row[0] or not whole:
            whole.append(row)
        else:
            whole[-1] = [f"{a} {b}".strip() for a, b in zip(whole[-1], row, strict=True)]
    return whole


def linked(cell: str, name: str, space: ModuleType) -> str:
    """Names of the namespace with their prefix; recipes as links."""
    cell = re.sub(r"``(.+?)``", r"`\1`", cell)
    cell = re.sub(r"`(\w+\.py)`", lambda m: link(m[1]), cell)
    cell = re.sub(r"`dynext\.", "`dx.", cell)
    return re.sub(r"`(\w+)`", lambda m: f"`dx.{name}.{m[1]}`" if hasattr(space, m[1]) else m[0], cell)


def link(file: str) -> str:
    for folder in ("recipes", "benchmarks"):
        if (PAGE.parents[1] / folder / file).exists():
            return f"[{file}](../{folder}/{file})"
    return f"`{file}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: {len(page().splitlines())} lines")
