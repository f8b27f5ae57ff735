"""Cells as text in columns, for what is printed."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def text_table(rows: Sequence[Sequence[str]], *, left: Collection[int] = ()) -> str:
    """Rows of as many cells each as lines of text: columns as wide as their widest cell, two spaces between them.

    Args:
        left: the columns, counted from 0, whose cells stand to the left; in all others they stand to the right, as
            figures do. Blanks at the end of a line are left out.

    >>> print(text_table([("stage", "MACs"), ("stem", "1,536"), ("head", "80")], left=[0]))
    stage   MACs
    stem   1,536
    head      80
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
