"""What a channel is worth: by its weights, by BatchNorm scales, by a Taylor expansion, by attention.

Shapes: b samples, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from dynext.data.indexing import check_samples
from dynext.errors import PlanError
from dynext.modules.modes import evaluating, statistics
from dynext.net.dynamic_net import DynamicNet
from dynext.prune.attention_maps import as_map, attention_map, of_reduced, resized
from dynext.prune.auxiliary import Auxiliary
from dynext.prune.channels import Channels
from dynext.types import Source

By = Literal["magnitude", "bn", "taylor", "attention"]

Worth = Callable[[Channels, str], Tensor]
"""``worth(channels, layer)``: what each output channel of a layer is worth ``[c]``, its group included."""


def channel_worth(
    net: DynamicNet, by: By, source: Source | None, auxiliary: Auxiliary | None, num_samples: int
) -> Worth:
    """How to rank the channels of ``net``; `dynext.prune.rank` describes the ways and has checked the arguments.

    ``by="taylor"`` leaves gradients on the parameters of ``net``.

    Args:
        num_samples: how many of the source's samples are used, its first ones.

    Raises:
        PlanError: no BatchNorm with scales for ``"bn"``, or an ``auxiliary`` of another net.
        SourceError: no samples, or samples of another shape.
    """
    import torch_pruning

    if by == "attention":
        assert source is not None  # noqa: S101
        assert auxiliary is not None  # noqa: S101
        return _by_attention(net, source, auxiliary, num_samples)
    if by == "bn" and not any(isinstance(m, _BatchNorm) and m.affine for m in net.staged.modules()):
        raise PlanError("by='bn' ranks by BatchNorms' scales, and this net has none; give by='magnitude' or 'taylor'")
    kinds = {
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "bn": torch_pruning.importance.BNScaleImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
    }
    importance: Any = kinds[by]()

    def worth(channels: Channels, layer: str) -> Tensor:
        width = channels.width(channels.known(layer))
        worth_c = importance(channels.group(layer, range(width)))
        # a group that is zero everywhere is divided by a mean of zero, and is worth nothing
        return torch.ones(width) if worth_c is None else worth_c.detach().cpu().nan_to_num(nan=0.0)

    if by == "taylor":
        assert source is not None  # noqa: S101
        _leave_gradients(net, source, num_samples)
    return worth


def _leave_gradients(net: DynamicNet, source: Source, num_samples: int) -> None:
    """Leave on every parameter the gradient of the exits' cross-entropy with the full net's answers."""
    x = _first_samples(net, source, num_samples)
    net.requires_grad_(True)
    with evaluating(net), statistics(net.staged, source.bn), torch.enable_grad():
        logits_bek = net.all_exits(x)
        target_b = logits_bek[:, -1].detach().argmax(-1)
        losses = [F.cross_entropy(logits, target_b) for logits in logits_bek.unbind(1)]
        torch.stack(losses).sum().backward()


def _first_samples(net: DynamicNet, source: Source, num_samples: int) -> Tensor:
    """The source's first samples ``[b ...]`` (of its first batch at most), on the net's device and of its type."""
    check_samples(source, net.staged.input_shape)
    batch = next(iter(source))
    return batch.x[:num_samples].to(next(net.parameters()))


@torch.no_grad()
def _by_attention(net: DynamicNet, source: Source, auxiliary: Auxiliary, num_samples: int) -> Worth:
    """Mean activity of a layer's channels, weighted by the attention map of the next exit's mask."""
    x = _first_samples(net, source, num_samples)
    attention_of = attention_by_layer(net, auxiliary, x)
    outputs: dict[str, Tensor] = {}
    channels = Channels(net)
    with evaluating(net), statistics(net.staged, source.bn), ExitStack() as open_hooks:
        for name in channels.roots():
            handle = channels.known(name).register_forward_hook(
                lambda _, __, out, name=name: outputs.update({name: out.detach()})
            )
            open_hooks.callback(handle.remove)
        net.all_exits(x)

    def worth(_: Channels, layer: str) -> Tensor:
        feature_bchw = as_map(outputs[layer])
        attention_b1hw = resized(attention_of(layer), (feature_bchw.shape[2], feature_bchw.shape[3]))
        return (feature_bchw.abs() * attention_b1hw).mean((0, 2, 3)).cpu()

    return worth


def attention_by_layer(net: DynamicNet, auxiliary: Auxiliary, x: Tensor) -> Callable[[str], Tensor]:
    """For a layer of ``net``, the attention map ``[b 1 h w]`` of the first exit behind it, or else of the last exit.

    An exit's map is that of its own mask, or of the lent one where training has faded its own out.

    Raises:
        PlanError: ``auxiliary`` is of a net without some of this one's stages.
    """
    names = [stage.name for stage in auxiliary.net.staged.stages]
    strange = [stage.name for stage in net.staged.stages if stage.name not in names]
    if strange:
        raise PlanError(f"auxiliary= was made of another net: it has no stage {strange[0]!r}; lend this one attention")
    # by name: with blocks left out, stages of the two nets have other numbers
    number = [names.index(stage.name) for stage in net.staged.stages]
    places = [int(exit.after) for exit in auxiliary.net.exits]
    masks = [path.own_mask if auxiliary.strength == 1 else path.lent_mask for path in auxiliary.paths(x)]
    maps = [attention_map(of_reduced(mask))[:, None] for mask in masks]

    def attention_of(layer: str) -> Tensor:
        stage = number[int(layer.split(".")[2])]
        return maps[next((e for e, after in enumerate(places) if after >= stage), len(maps) - 1)]

    return attention_of
