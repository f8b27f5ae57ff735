"""What BatchNorm normalizes by inside a task, said openly, since it decides what a few samples can teach.

``"task"``      the statistics of the samples at hand, in each pass; running statistics are neither read nor written
``"frozen"``    the net's running statistics
``"per_step"``  running statistics for each inner step of its own, gathered in meta-training and read in adapting

Shapes: t inner steps, c channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynext.meta.functional import called_with
from dynext.modules.modes import batch_statistics, evaluating

Norm = Literal["task", "frozen", "per_step"]


class StepStatistics(nn.Module):
    """Running statistics for each inner step, and for the pass over the queries after the last: ``[t + 1 c]`` each.

    Source: per-step batch normalization, Antoniou et al., ICLR 2019, arXiv:1810.09502, section 4 (there also a scale
    and a shift for each step, which are shared here).
    """

    def __init__(self, net: nn.Module, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.names: list[str] = []
        for name, m in net.named_modules():
            if isinstance(m, _BatchNorm) and m.running_mean is not None:
                for key, buffer in m.named_buffers(recurse=False):
                    self.names.append(f"{name}.{key}")
                    self.register_buffer(_safe(self.names[-1]), torch.stack([buffer] * (steps + 1)).clone())

    def at(self, step: int) -> dict[str, Tensor]:
        """A copy of the statistics of one step by their names in the net."""
        return {name: self.get_buffer(_safe(name))[step].clone() for name in self.names}

    @torch.no_grad()
    def put(self, step: int, statistics: Mapping[str, Tensor]) -> None:
        """Keep what a pass at ``step`` has made of them."""
        for name, tensor in statistics.items():
            self.get_buffer(_safe(name))[step] = tensor


def _safe(name: str) -> str:
    return name.replace(".", "|")


class Norms:
    """Calls modules of one net with other parameters, and with BatchNorms that normalize as was asked.

    No buffer of the net changes. ``gathering`` says whether per-step statistics are made (meta-training) or read.
    """

    def __init__(
        self, net: nn.Module, norm: Norm, statistics: StepStatistics | None = None, *, gathering: bool = False
    ) -> None:
        self.net, self.norm, self.statistics, self.gathering = net, norm, statistics, gathering

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Inside, the net's flags are as the calls need them: in evaluation but for BatchNorms."""
        with evaluating(self.net):
            if self.norm == "per_step" and self.gathering:
                for m in self.net.modules():
                    if isinstance(m, _BatchNorm) and m.running_mean is not None:
                        m.training = True
            with batch_statistics(self.net) if self.norm == "task" else nullcontext():
                yield

    def call(self, module: nn.Module, parameters: Mapping[str, Tensor], inputs: tuple[Tensor, ...], step: int) -> Any:
        """``module(*inputs)``, a part of the net, with ``parameters`` by their names in it, at an inner step."""
        if self.statistics is None or self.norm != "per_step":
            return called_with(module, parameters, inputs)
        here = {id(buffer): name for name, buffer in module.named_buffers()}
        own = dict(self.net.named_buffers())
        buffers = {
            here[id(own[name])]: tensor for name, tensor in self.statistics.at(step).items() if id(own[name]) in here
        }
        out = called_with(module, {**parameters, **buffers}, inputs)
        if self.gathering:
            back = {here[id(own[name])]: name for name in self.statistics.names if id(own[name]) in here}
            self.statistics.put(step, {back[name]: tensor for name, tensor in buffers.items()})
        return out


@torch.no_grad()
def statistics_of(module: nn.Module, parameters: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """What samples ``x [b ...]`` make of ``module``'s running statistics, with ``parameters`` in it; nothing is
    changed.

    Both by their names in the module.
    """
    norms = {name: m for name, m in module.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    kept = {name: m.momentum for name, m in norms.items()}
    buffers = {
        f"{name}.{key}": torch.zeros_like(buffer)
        for name, m in norms.items()
        for key, buffer in m.named_buffers(recurse=False)
    }
    with evaluating(module):
        try:
            for m in norms.values():
                m.training, m.momentum = True, None  # without a momentum torch takes the plain mean
            called_with(module, {**parameters, **buffers}, (x,))
        finally:
            for name, m in norms.items():
                m.momentum = kept[name]
    return buffers


@torch.no_grad()
def settle(module: nn.Module, x: Tensor) -> None:
    """Set the running statistics of ``module``'s BatchNorms to those of the samples ``x [b ...]``, in place."""
    for name, tensor in statistics_of(module, {}, x).items():
        module.get_buffer(name).copy_(tensor)
