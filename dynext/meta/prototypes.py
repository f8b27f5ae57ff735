"""Class means as classifiers, at every exit: no gradient, and a plain linear layer in the end.

Shapes: b rows, d numbers in an embedding, w classes of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynext.core.net import DynamicNet
from dynext.errors import FitError
from dynext.meta.learner import Learner
from dynext.meta.linear import last_linear, noting_input
from dynext.meta.norms import Norms


def classifier_of(net: DynamicNet, exit: int) -> nn.Linear:
    """The linear layer that gives the logits of ``exit`` (-1: the full net).

    Raises:
        FitError: the full net ends in something else.
    """
    if exit in (-1, net.num_exits - 1):
        return last_linear(net).module
    layer = net.exits[exit].classifier
    assert isinstance(layer, nn.Linear)  # noqa: S101  heads of a cascade alone have another
    return layer


def embeddings(learner: Learner, layers: Sequence[nn.Linear], norms: Norms, x: Tensor, step: int) -> list[Tensor]:
    """What each of the learner's exits' classifiers ``layers`` sees of rows ``x [b ...]``: ``[b d]`` each."""
    with ExitStack() as stack:
        seen = [stack.enter_context(noting_input(layer)) for layer in layers]
        norms.call(learner, {}, (x,), step)
    return [inputs[0] for inputs in seen]


def prototype_layer(embedding_bd: Tensor, y_b: Tensor, way: int) -> tuple[Tensor, Tensor]:
    """Weight ``[w d]`` and bias ``[w]`` by which a row's logits are its squared distances to the class means, negative.

    ``-||f - c||^2 = 2 c f - ||c||^2 - ||f||^2``, and the last term is the same for all classes.

    >>> weight, bias = prototype_layer(torch.tensor([[0.0], [2.0]]), torch.tensor([0, 1]), 2)
    >>> (torch.tensor([[0.5], [1.5]]) @ weight.T + bias).argmax(1).tolist()
    [0, 1]

    Source: Snell et al., NeurIPS 2017, arXiv:1703.05175, eq. 1, 2 and 8; as the start of an inner loop, Triantafillou
    et al., ICLR 2020, arXiv:1903.03096, section 3 (Proto-MAML).
    """
    one_hot_bw = F.one_hot(y_b, way).to(embedding_bd)
    mean_wd = (one_hot_bw.T @ embedding_bd) / one_hot_bw.sum(0)[:, None]
    return 2 * mean_wd, -mean_wd.square().sum(1)


def prototype_loss(
    learner: Learner,
    layers: Sequence[nn.Linear],
    norms: Norms,
    support: tuple[Tensor, Tensor],
    query: tuple[Tensor, Tensor],
) -> Tensor:
    """Cross-entropy of the queries by the support's class means, summed over the learner's exits.

    Rows ``[b ...]`` and labels ``[b]`` each; the support holds every class.
    """
    way = int(support[1].max()) + 1
    learned = embeddings(learner, layers, norms, support[0], 0)
    judged = embeddings(learner, layers, norms, query[0], 0)
    losses = []
    for support_bd, query_bd in zip(learned, judged, strict=True):
        weight, bias = prototype_layer(support_bd, support[1], way)
        losses.append(F.cross_entropy(F.linear(query_bd, weight, bias), query[1]))
    return torch.stack(losses).sum()


def prototype_parameters(net: DynamicNet, embedding_e: Sequence[Tensor], y_b: Tensor) -> Mapping[str, Tensor]:
    """The classifiers of all exits as class means of what they see ``[b d]``, by their names in the net.

    Raises:
        FitError: a classifier without a bias, or for another number of classes.
    """
    way = int(y_b.max()) + 1
    names = {id(p): name for name, p in net.named_parameters()}
    found: dict[str, Tensor] = {}
    for e, embedding_bd in enumerate(embedding_e):
        layer = classifier_of(net, e)
        if layer.bias is None or layer.out_features != way:
            with_bias = "no bias" if layer.bias is None else "a bias"
            raise FitError(
                f"the classifier of exit {e} has {layer.out_features} outputs and {with_bias}; prototypes of {way} "
                f"classes need as many and a bias (dx.with_classes)"
            )
        found[names[id(layer.weight)]], found[names[id(layer.bias)]] = prototype_layer(embedding_bd, y_b, way)
    return found
