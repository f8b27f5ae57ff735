"""Class means as classifiers, at every exit: no gradient, and a plain linear layer in the end.

Shapes: b samples, d numbers in an embedding, w classes of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynext.errors import FitError
from dynext.meta.functional import Learner
from dynext.meta.norms import Norms
from dynext.modules.layer_outputs import given_to, logits_layer
from dynext.net.dynamic_net import DynamicNet
from dynext.net.prototypes import SCALE


def classifier_of(net: DynamicNet, exit: int) -> nn.Linear:
    """The linear layer that gives the logits of ``exit`` (-1: the full net).

    Raises:
        FitError: the exit ends in something else.
    """
    if exit in (-1, net.num_exits - 1):
        linears = [m for m in net.staged.stages[-1].modules() if isinstance(m, nn.Linear)]
        last = logits_layer(net.staged, net.staged.zeros(2), linears)
        if last is None:
            raise FitError(
                "the net's logits do not come out of an nn.Linear, so that its last classifier cannot be replaced; "
                "learn the same classes instead (classifiers='kept', with steps), or use dx.align.few_shot"
            )
        return last
    layer = net.exits[exit].classifier
    if not isinstance(layer, nn.Linear):
        raise FitError(
            f"exit {exit} answers by {type(layer).__name__}, not by an nn.Linear that class means could be put into; "
            f"give classifiers='kept' with steps, or use dx.align.few_shot, which makes cosine classifiers"
        )
    return layer


def embeddings(learner: Learner, layers: Sequence[nn.Linear], norms: Norms, x: Tensor, step: int) -> list[Tensor]:
    """What each of the learner's exits' classifiers ``layers`` sees of samples ``x [b ...]``: ``[b d]`` each."""
    with ExitStack() as stack:
        seen = [stack.enter_context(given_to(layer)) for layer in layers]
        norms.call(learner, {}, (x,), step)
    return [inputs[0] for inputs in seen]


def prototype_layer(embedding_bd: Tensor, y_b: Tensor, way: int) -> tuple[Tensor, Tensor]:
    """Weight ``[w d]`` and bias ``[w]`` by which a sample's logits are its squared distances to the class means,
    negative.

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


def known_scale(mean_wd: Tensor) -> float:
    """What logits of class means ``[w d]`` are multiplied by for a sample at a mean to be `SCALE` nearer to it than to
    another: embeddings of any size then give confidences that a temperature near 1 makes right.

    Squared distances of raw embeddings come to hundreds, and no temperature up to its bound undoes that.

    >>> known_scale(torch.tensor([[0.0], [100.0]])) * 100.0**2
    10.0
    """
    apart_ww = torch.cdist(mean_wd[None].double(), mean_wd[None].double())[0].square()
    mean = float(apart_ww.sum()) / max(len(mean_wd) * (len(mean_wd) - 1), 1)
    return SCALE / mean if mean > 0 else 1.0


def prototype_loss(
    learner: Learner,
    layers: Sequence[nn.Linear],
    norms: Norms,
    support: tuple[Tensor, Tensor],
    query: tuple[Tensor, Tensor],
) -> Tensor:
    """Cross-entropy of the queries by the support's class means, summed over the learner's exits.

    Samples ``[b ...]`` and labels ``[b]`` each. Queries of a class that the support lacks do not count.
    """
    # A draw of always the same classes may lack one: its queries have no mean to be compared with.
    there, support_y = support[1].unique(return_inverse=True)
    asked_b = torch.isin(query[1], there)
    query_y = torch.searchsorted(there, query[1][asked_b])
    support_e = embeddings(learner, layers, norms, support[0], 0)
    query_e = embeddings(learner, layers, norms, query[0], 0)
    losses = []
    for support_bd, query_bd in zip(support_e, query_e, strict=True):
        weight, bias = prototype_layer(support_bd, support_y, len(there))
        logits_bw = F.linear(query_bd[asked_b], weight, bias)
        losses.append(F.cross_entropy(logits_bw, query_y, reduction="sum") / max(len(query_y), 1))
    return torch.stack(losses).sum()


def prototype_parameters(
    net: DynamicNet, embedding_e: Sequence[Tensor], y_b: Tensor, *, scaled: bool = False
) -> Mapping[str, Tensor]:
    """The classifiers of all exits as class means of what they see ``[b d]``, by their names in the net.

    Args:
        scaled: by `known_scale`, which changes no answer; not where gradient steps go on from raw distances.

    Raises:
        FitError: a classifier without a bias, or for another number of classes.
    """
    way = int(y_b.max()) + 1
    names = {id(p): name for name, p in net.named_parameters()}
    parameters: dict[str, Tensor] = {}
    for e, embedding_bd in enumerate(embedding_e):
        layer = classifier_of(net, e)
        if layer.bias is None or layer.out_features != way:
            with_bias = "no bias" if layer.bias is None else "a bias"
            raise FitError(
                f"the classifier of exit {e} has {layer.out_features} outputs and {with_bias}; prototypes of {way} "
                f"classes need as many (dx.meta.with_classes) and a bias; without one, use dx.align.few_shot, or "
                f"keep the classifiers (classifiers='kept', with steps)"
            )
        weight, bias = prototype_layer(embedding_bd, y_b, way)
        if scaled:
            scale = known_scale(weight / 2)
            weight, bias = scale * weight, scale * bias
        parameters |= {names[id(layer.weight)]: weight, names[id(layer.bias)]: bias}
    return parameters
