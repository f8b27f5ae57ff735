"""Give every exit other classes: cosine classifiers whose vectors are prototypes.

Shapes: k classes, d the size of an embedding, which differs from exit to exit.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import nn

from dynext.errors import FitError
from dynext.graph import StagedNet
from dynext.graph.macs import param_bytes
from dynext.modules.exit_layers import Cosine
from dynext.modules.exits import Exit
from dynext.modules.projections import layers_in_order, projection_spec
from dynext.net.attach import from_specs, own_parts
from dynext.net.dynamic_net import DynamicNet
from dynext.net.embeddings import check_embeddings, embedding_sizes
from dynext.net.last_layer import last_linear
from dynext.net.prototypes import SCALE, Prototypes
from dynext.seeding import seeded


@torch.no_grad()
def reclassify(
    net: DynamicNet, prototypes: Prototypes, *, projections: Sequence[nn.Module] | None = None, last: bool = True
) -> DynamicNet:
    """A copy of ``net`` whose exits answer by the cosine to the vectors of ``prototypes``.

    Nothing is trained. MACs are counted anew; policies and tables of the old net say nothing about the new one.

    Args:
        prototypes: a vector a class at each exit; at the last one too, unless ``last`` is false.
        projections: what each early exit's embedding goes through first (linear layers, BatchNorm1d, ReLU), such as
            `Space.early`; the vectors then are of what comes out.
        last: whether the full net answers by its vectors too. It keeps its own classifier otherwise, which needs as
            many classes as ``prototypes`` has; embeddings of the last exit are never projected.

    Raises:
        FitError: a cascade, another number of exits, of classes, or vectors of another size than the embeddings.
    """
    _check(net, prototypes, last)
    staged = copy.deepcopy(net.staged)
    specs = [{**exit.spec, "num_classes": prototypes.num_classes, "answer": "cosine"} for exit in net.exits]
    if projections is not None:
        for spec, projection in zip(specs, projections, strict=True):
            spec["projection"] = [*spec.get("projection", []), *projection_spec(projection)]
    if last:
        replace_last(staged, prototypes.num_classes)
    gates = None if net.gates is None else net.gates.spec
    with seeded(0):
        reclassified = from_specs(staged, specs, [exit.after for exit in net.exits], gates, **own_parts(net))
    reclassified.spec = net.spec
    if net.gates is not None and reclassified.gates is not None:
        reclassified.gates.load_state_dict(net.gates.state_dict())
    for e, (new, old) in enumerate(zip(reclassified.exits, net.exits, strict=True)):
        _embed_alike(new, old, None if projections is None else projections[e])
        _fill(cast(Cosine, new.classifier), prototypes, e)
    if last:
        _fill(cast(Cosine, last_linear(reclassified)), prototypes, len(net.exits))
    reclassified.seen = net.seen
    return reclassified


def replace_last(staged: StagedNet, num_classes: int, *, answer: Literal["linear", "cosine"] = "cosine") -> None:
    """Put an untrained classifier in the place of the layer that gives the logits, in these very stages."""
    stage = staged.stages[-1]
    old = last_linear(DynamicNet(staged, []))
    like = next(old.parameters())
    name = next(name for name, module in stage.body.named_modules() if module is old)
    new: nn.Module = Cosine(old.in_features, num_classes)
    if answer == "linear":
        new = nn.Linear(old.in_features, num_classes, bias=getattr(old, "bias", None) is not None)
    new.to(like)
    parent, _, child = name.rpartition(".")
    if name:
        setattr(stage.body.get_submodule(parent), child, new)
    else:
        stage.body = new
    stage.macs += old.in_features * (num_classes - old.out_features)
    stage.live_shapes = ((num_classes,),)
    stage.param_bytes = param_bytes(stage.body)
    stage.live_bytes = num_classes * like.element_size()
    staged.num_classes = num_classes
    staged.cosine = answer == "cosine"


def take_classes(staged: StagedNet, names: Sequence[str], live_shapes: Sequence[Sequence[Sequence[int]]]) -> None:
    """Give these very stages an untrained last layer of other classes, where this is all that they differ by from the
    stages of a saved net (``names``, ``live_shapes``): one that was adapted, and whose model has its former classes.
    """
    own = [[list(shape) for shape in stage.live_shapes] for stage in staged.stages]
    *before, last = live_shapes
    if [stage.name for stage in staged.stages] == names and own[:-1] == before and own[-1] != last:
        with seeded(0):
            replace_last(staged, int(last[0][0]), answer="linear")


def _embed_alike(new: Exit, old: Exit, projection: nn.Module | None) -> None:
    """Copy what comes before the classifier, tensor by tensor: the chain is the same, its nesting need not be."""
    before = list(old.embedder.state_dict().values())
    if projection is not None:
        before += [tensor for layer in layers_in_order(projection) for tensor in layer.state_dict().values()]
    for tensor, kept in zip(new.embedder.state_dict().values(), before, strict=True):
        tensor.copy_(kept)


def _fill(classifier: Cosine, prototypes: Prototypes, e: int) -> None:
    size = prototypes.vector_e[e].shape[1]
    if size != classifier.in_features:
        raise FitError(
            f"the vectors at exit {e} are of size {size}, what it sees is of size {classifier.in_features}; "
            f"make them of that"
        )
    classifier.weight.copy_(prototypes.vector_e[e])
    classifier.center.copy_(prototypes.center_e[e])
    classifier.scale.fill_(SCALE)


def _check(net: DynamicNet, prototypes: Prototypes, last: bool) -> None:
    check_embeddings(net)
    wanted = net.num_exits if last else len(net.exits)
    if not wanted <= len(prototypes.vector_e) <= net.num_exits:
        raise FitError(f"vectors at {len(prototypes.vector_e)} exits for a net with {net.num_exits}; give some at each")
    if not last and prototypes.num_classes != net.num_classes:
        raise FitError(
            f"vectors of {prototypes.num_classes} classes, but the full net keeps its own {net.num_classes}; "
            f"give as many, or last=True"
        )
    if last:
        embedding_sizes(net)  # refuses a net whose last linear layer does not see one vector a sample
