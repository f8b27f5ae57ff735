"""Which line of the model's code made a node, and in which module, for messages that send somebody there."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch
from torch import fx

OURS = str(Path(__file__).parent)
TORCH = str(Path(torch.__file__).parent)


class Line(NamedTuple):
    """A line of somebody's code."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"`{linecache.getline(self.file, self.number).strip()}` ({Path(self.file).name}, line {self.number})"


def current_line() -> Line | None:
    """The innermost line that is neither torch's nor of this package's graph code."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((OURS, TORCH, "<")):
        frame = frame.f_back
    return None if frame is None else Line(frame.f_code.co_filename, frame.f_lineno)


def line_of_error(error: BaseException) -> Line | None:
    """The innermost such line that an error came through."""
    trace, last = error.__traceback__, None
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith((OURS, TORCH, "<")):
            last = Line(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return last


def place(traced: fx.GraphModule, node: fx.Node) -> str:
    """A node as a user knows it: the module that it calls, or the line that it stands for, and in which module."""
    asked = node.meta.get("line")
    if node.op == "call_module":
        return f"{node.target} ({type(traced.get_submodule(str(node.target))).__name__})"
    stack = list(node.meta.get("nn_module_stack", {}).values())
    owner = f"{stack[-1][0]} ({stack[-1][1].__name__})" if stack else "the net's own forward"
    return f"node {node.name!r} of {owner}" + ("" if asked is None else f", {asked}")
