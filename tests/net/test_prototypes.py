"""Classes as vectors: means, shots, and embeddings that they are made of."""

import pytest
import torch
from methods import METHODS, setting
from reference import alignment as slow

import dynext as dx
from dynext.errors import FitError, PolicyError, SourceError
from dynext.modules.exits import build_exit
from dynext.modules.projections import build_projection, projection_spec
from dynext.net.cascade import cascade
from dynext.net.embeddings import embedding_sizes
from dynext.net.last_layer import last_linear
from dynext.net.prototypes import class_means, cosine_logits

DRAW = torch.Generator().manual_seed(0)
F = torch.randn(12, 4, generator=DRAW, dtype=torch.float64) + 2
Y = torch.arange(12) % 3
QUERIES = torch.randn(5, 4, generator=DRAW, dtype=torch.float64)


def test_prototypes_are_the_papers() -> None:
    prototypes = dx.align.prototypes([F, 2 * F], Y)
    expected = slow.prototype_logits(F.numpy(), Y.numpy(), QUERIES.numpy(), F.numpy().mean(0))
    torch.testing.assert_close(prototypes.logits([QUERIES, 2 * QUERIES])[:, 0].numpy(), expected)
    torch.testing.assert_close(prototypes.logits([QUERIES, 2 * QUERIES])[:, 1].numpy(), expected)
    elsewhere = dx.align.prototypes([F], Y, center_on=[QUERIES]).logits([QUERIES])[:, 0].numpy()
    expected = slow.prototype_logits(F.numpy(), Y.numpy(), QUERIES.numpy(), QUERIES.numpy().mean(0))
    torch.testing.assert_close(elsewhere, expected)
    assert (prototypes.num_classes, elsewhere.shape) == (3, (5, 3))


def test_gradients_flow_through_class_means() -> None:
    f = F.clone().requires_grad_(True)
    cosine_logits(QUERIES, class_means(f, Y, 3)).sum().backward()
    assert f.grad is not None
    assert f.grad.abs().sum() > 0


def test_a_class_without_an_example_is_refused() -> None:
    with pytest.raises(SourceError, match="no example of class 3, 4"):
        dx.align.prototypes([F], Y, num_classes=5)
    with pytest.raises(SourceError, match="labels 0 to 2 for 2 classes"):
        dx.align.prototypes([F], Y, num_classes=2)
    with pytest.raises(SourceError, match="3 labels for 12 samples"):
        dx.align.prototypes([F], Y[:3])


def test_shots_are_drawn_of_each_class_by_seed() -> None:
    y = torch.tensor([4, 1, 1, 4, 4, 1, 4])
    index = dx.align.draw_shots(y, 2, seed=1)
    assert y[index].tolist() == [1, 1, 4, 4]
    assert len(index.unique()) == 4
    assert torch.equal(index, dx.align.draw_shots(y, 2, seed=1))
    assert len({tuple(dx.align.draw_shots(y, 2, seed=seed).tolist()) for seed in range(8)}) > 1
    with pytest.raises(SourceError, match="3 samples of class 1, 4 asked for"):
        dx.align.draw_shots(y, 4)


def test_embeddings_are_what_classifiers_see() -> None:
    net, samples = setting(METHODS["joint"])
    state = torch.get_rng_state()
    embedded = dx.align.embed(net, samples)
    assert torch.equal(state, torch.get_rng_state())
    assert tuple(f.shape[1] for f in embedded.embedding_e) == embedding_sizes(net)
    torch.testing.assert_close(embedded.logits_nek, dx.collect(net, samples).logits_nek)
    classifiers = [*(exit.classifier for exit in net.exits), last_linear(net)]
    for e, (f, classifier) in enumerate(zip(embedded.embedding_e, classifiers, strict=True)):
        torch.testing.assert_close(classifier(f).detach(), embedded.logits_nek[:, e])
    assert torch.equal(embedded.label_n, samples.y)
    part = embedded.subset(torch.tensor([3, 1]))
    assert len(part) == 2
    assert torch.equal(part.embedding_e[1], embedded.embedding_e[1][[3, 1]])
    assert dx.align.embed(net, samples.unlabelled()).label_n is None


def test_what_has_no_embeddings_is_refused() -> None:
    net, samples = setting(METHODS["joint"])
    with pytest.raises(FitError, match="exits of a cascade"):
        dx.align.embed(cascade(net, "boost"), samples)
    with pytest.raises(SourceError, match="the source has no samples"):
        dx.align.embed(net, samples.subset(torch.arange(0)))
    stages = [torch.nn.Conv2d(3, 4, 3), torch.nn.Sequential(torch.nn.Conv2d(4, 10, 6), torch.nn.Flatten())]
    hand = dx.attach(dx.graph.stages_by_hand(stages, torch.zeros(1, 3, 8, 8)), dx.default_heads(10))
    with pytest.raises(FitError, match="does not end in a linear layer"):
        dx.align.embed(hand, samples)


def test_projections_are_kept_as_json() -> None:
    given = torch.nn.Sequential(
        torch.nn.Sequential(torch.nn.Linear(4, 6, bias=False), torch.nn.BatchNorm1d(6, affine=False), torch.nn.ReLU()),
        torch.nn.Linear(6, 2),
    )
    spec = projection_spec(given)
    assert spec == [["linear", 4, 6, False], ["norm", 6, False], ["relu"], ["linear", 6, 2, True]]
    built, width = build_projection(spec, 4)
    assert width == 2
    assert [t.shape for t in built.state_dict().values()] == [t.shape for t in given.state_dict().values()]
    with pytest.raises(PolicyError, match=r"\['linear', 4, 6, False\] behind 5 features"):
        build_projection(spec, 5)
    with pytest.raises(PolicyError, match="a projection with GELU"):
        projection_spec(torch.nn.GELU())


def test_an_unknown_answer_is_refused() -> None:
    net, _ = setting(METHODS["joint"])
    with pytest.raises(PolicyError, match="an answer by 'magic'; this version knows linear, cosine"):
        build_exit({**net.exits[0].spec, "answer": "magic"}, after=0, name="x")
