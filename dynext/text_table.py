"""Columns of text, aligned."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def text_table(rows: Sequence[Sequence[str]], *, left: Collection[int] = ()) -> str:
    """Rows of cells as lines of equal columns: those in ``left`` begin at the left, the others end at the right.

    >>> print(text_table([("exit", "MACs"), ("layer1", "9")], left=(0,)))
    exit    MACs
    layer1     9
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
