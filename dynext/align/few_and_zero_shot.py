"""Few- and zero-shot use at every exit: classes from examples, or from the final exit, and no gradient.

Shapes: n samples, k classes, d the size of an embedding or a projection. There are e exits, numbered from 0, the last
is the full net.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynext.align.projection_heads import ProjectionHeads, final_prototypes
from dynext.data.given import takes_data
from dynext.errors import SourceError
from dynext.net.dynamic_net import DynamicNet
from dynext.net.embeddings import Embeddings, embed
from dynext.net.prototypes import Prototypes, prototypes
from dynext.net.reclassify import reclassify
from dynext.types import Data, InputSpec
from dynext.usual_modes import in_usual_modes


@in_usual_modes
@takes_data("examples", unlabelled=("center_on",), own_classes=True)
def few_shot(
    net: DynamicNet,
    examples: Data,
    *,
    space: ProjectionHeads | None = None,
    center_on: Data | None = None,
    spec: InputSpec | None = None,
) -> DynamicNet:
    """A copy of ``net`` whose exits all, the last included, know the classes of a few labelled examples.

    Each exit answers by the cosine to the mean direction of a class's examples there (`dynext.align.prototypes`). The
    classes are the labels', from 0; they need not be those that the net was trained on.

    Args:
        space: compare early exits' embeddings in the space that they were aligned in; its heads then run with the exit,
            and their MACs count. As they are, without it.
        center_on: further samples, unlabelled, whose mean is taken off; the examples' own without it.

    Raises:
        SourceError: no labels, one class, a class without an example, or NaN.
        FitError: a cascade, or a net that does not end in a linear layer.
    """
    embedded = embed(net, examples)
    if embedded.label_n is None:
        raise SourceError("examples without labels; give each the number of its class, from 0")
    if not int(embedded.label_n.max()):
        raise SourceError("all examples are of class 0; there is nothing to tell it from, give two classes or more")
    center = None if center_on is None else _projected(embed(net, center_on), space)
    vectors = prototypes(_projected(embedded, space), embedded.label_n, center_on=center)
    return reclassify(net, vectors, projections=None if space is None else list(space.early))


@in_usual_modes
@takes_data(unlabelled=("rows",))
def zero_shot(
    net: DynamicNet, space: ProjectionHeads, *, rows: Data | None = None, spec: InputSpec | None = None
) -> DynamicNet:
    """A copy of ``net`` whose early exits know all classes that the final exit knows, also those they never saw.

    The final exit's class vectors are reused at each early exit, through the space that it was aligned in. No label is
    looked at. The last exit stays as it is.

    Args:
        rows: unlabelled samples with all classes among them: a class's vector is then the mean direction of those
            that the full net takes for it. Without it, the final classifier's own weights, which needs a space of the
            last exit's features (``loss="cosine"`` or ``"l2"``).

    Raises:
        FitError: a space in which the classifier's weights mean nothing.
        SourceError: a class that the full net takes no sample for.
    """
    if rows is None:
        vector_kd = space.class_vectors(net)
    else:
        vector_kd = final_prototypes(space.project(embed(net, rows)), net.num_classes)
    zero = torch.zeros(vector_kd.shape[1])
    early = len(net.exits)
    vectors = Prototypes(vector_e=(vector_kd,) * early, center_e=(zero,) * early)
    return reclassify(net, vectors, projections=list(space.early), last=False)


def _projected(embedded: Embeddings, space: ProjectionHeads | None) -> tuple[Tensor, ...]:
    """Embeddings of every exit, the early ones' projected where there is a space."""
    if space is None:
        return embedded.embedding_e
    return (*space.project(embedded).embedding_e[:-1], embedded.embedding_e[-1])
