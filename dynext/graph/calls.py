"""How the code that torch.fx writes for a graph finds the modules that it calls."""

from __future__ import annotations

import re

from torch import fx

NAME = r'\.(\w+)|, "([^"]*)"\)'
CALLED = re.compile(rf"(?<= = )(?:getattr\()*self(?:{NAME})+(?=\()")


def calling_from_dicts(graph: fx.Graph) -> fx.Graph:
    """Have it written ``self._modules["layer1"]._modules["0"](x)`` where fx writes ``getattr(self.layer1, "0")(x)``.

    The same module; but torch looks up attributes of modules in Python, which at batch 1 is a twentieth of a small
    net's time. And a module may be called ``in`` or ``global``.
    """
    graph.on_generate_code(lambda _: _from_dicts)
    return graph


def _from_dicts(lines: list[str]) -> list[str]:
    return [CALLED.sub(_path, line, count=1) for line in lines]


def _path(called: re.Match[str]) -> str:
    names = [plain or other for plain, other in re.findall(NAME, called[0])]
    return "self" + "".join(f'._modules["{name}"]' for name in names)
