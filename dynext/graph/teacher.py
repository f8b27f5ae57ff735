"""Any classifier as what the rest of dynext takes: a module that can be copied and that gives logits."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dynext.graph.answers import logits_of
from dynext.graph.private import private_copy
from dynext.graph.wrapped import unwrapped


class LogitsOnly(nn.Module):
    """Gives the logits alone where ``model`` gives an object, a dict or a tuple; `split` looks through it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return logits_of(self.model(x), type(self.model).__name__)


def plain_classifier(model: nn.Module, x: Tensor) -> nn.Module:
    """``model`` out of its wrappers; a private copy where ``copy.deepcopy`` refuses it; logits alone as its answer.

    Args:
        x: a batch by which the answer is looked at, in evaluation.

    Raises:
        SplitError: no module, or several tensors as an answer.
    """
    inner = unwrapped(model)
    if not _can_be_copied(inner):
        inner = private_copy(inner)
    answer = _answer(inner, x)
    return LogitsOnly(inner).train(inner.training) if logits_of(answer, type(inner).__name__) is not answer else inner


def _can_be_copied(model: nn.Module) -> bool:
    try:
        copy.deepcopy(model)
    except Exception:
        return False
    return True


@torch.no_grad()
def _answer(model: nn.Module, x: Tensor) -> Any:
    """``None`` where the model fails: whoever needs its answer says why."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        like = next((p for p in model.parameters() if p.is_floating_point()), x)
        return model.eval()(x.to(like.device, like.dtype))
    except Exception:
        return None
    finally:
        for module, training in flags:
            module.training = training
