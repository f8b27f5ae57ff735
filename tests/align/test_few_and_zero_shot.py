"""Classes from a few examples, or from the final exit, at every exit, in nets that run like any other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gated_nets import gated_net

import dynext as dx
from dynext.errors import FitError, SourceError
from dynext.modules.exit_layers import Cosine
from dynext.net.cascade import cascade
from dynext.net.last_layer import last_linear
from dynext.net.reclassify import reclassify
from dynext.seeding import seeded
from dynext.testing import check_net

Quick = Callable[..., dx.align.Alignment]


@pytest.fixture
def examples(samples: dx.data.Samples) -> dx.data.Samples:
    """Three of each of five classes, which the net calls otherwise."""
    of_five = samples.subset((samples.y >= 5).nonzero()[:, 0])
    of_five = replace(of_five, y=9 - of_five.y)
    return of_five.subset(dx.align.draw_shots(of_five.y, 3))


@pytest.mark.parametrize("in_space", [False, True], ids=["embedding", "space"])
def test_few_shots_are_prototypes_at_every_exit(
    in_space: bool,
    net: dx.DynamicNet,
    samples: dx.data.Samples,
    examples: dx.data.Samples,
    x: torch.Tensor,
    quick: Quick,
    tmp_path: Path,
) -> None:
    aligned = quick(net, samples)
    space = aligned.space if in_space else None
    five_way = dx.align.few_shot(aligned.net, examples, space=space)
    assert five_way.num_classes == 5

    embedded = (dx.align.embed(aligned.net, examples), dx.align.embed(aligned.net, samples))
    if space is not None:
        projected = [(*space.project(each).embedding_e[:-1], each.embedding_e[-1]) for each in embedded]
    else:
        projected = [each.embedding_e for each in embedded]
    expected = dx.align.prototypes(projected[0], examples.y).logits(projected[1])
    table = dx.collect(five_way, samples.unlabelled())
    torch.testing.assert_close(table.logits_nek, expected, rtol=1e-4, atol=1e-4)
    right = dx.collect(five_way, examples).right_ne.double().mean(0)
    assert (right >= 0.5).all(), "examples lie near their own prototypes"

    check_net(five_way, x)
    policy = dx.choose(dx.collect(five_way, examples), budget=0.9, rule=dx.policies.SafeRule(min_support=0))
    outcome = dx.simulate(dx.collect(five_way, samples.unlabelled()), policy)
    assert five_way.run(x, policy).macs.tolist() == outcome.macs_n[:12].tolist()

    # Projections run with the exit, and are paid for; five classes cost less than ten, at the last exit too.
    width = last_linear(net).in_features
    assert five_way.trunk_macs_e[-1] == net.trunk_macs_e[-1] - 5 * width
    assert all(
        (new > old) == in_space for new, old in zip(five_way.head_macs_e[:-1], net.head_macs_e[:-1], strict=True)
    )

    dx.save(five_way, tmp_path / "net", policy=policy, spec=samples.spec)
    for model in (net.staged, five_way.staged):
        again = dx.load(tmp_path / "net", model=model)
        torch.testing.assert_close(again.net.all_exits(x), five_way.all_exits(x), rtol=0, atol=0)
        assert again.net.trunk_macs_e == five_way.trunk_macs_e
    onward = dx.align.few_shot(five_way, samples.subset(dx.align.draw_shots(samples.y, 2)))
    assert onward.num_classes == 10
    assert net.num_classes == 10
    assert isinstance(last_linear(net), torch.nn.Linear)


def test_the_final_classifier_is_reused_at_exits_that_see_as_it_does(
    net: dx.DynamicNet, samples: dx.data.Samples, quick: Quick
) -> None:
    aligned = quick(net, samples, loss="l2", steps=60, lr=1e-2, batch_size=32)
    zero_shot = dx.align.zero_shot(aligned.net, aligned.space)
    asked = dx.align.embed(aligned.net, samples)
    z = aligned.space.project(asked).embedding_e

    # In the standardized space the vectors are the final classifier: w f + b = (w sigma) z + (w mu + b).
    final, norm = last_linear(net), aligned.space.final
    vectors = aligned.space.class_vectors(net)
    exact = z[-1] @ vectors.T + (final.weight @ norm.running_mean + final.bias)
    torch.testing.assert_close(exact, asked.logits_nek[:, -1], rtol=1e-4, atol=1e-4)

    logits = dx.collect(zero_shot, samples.unlabelled()).logits_nek
    cosine = torch.nn.functional.cosine_similarity(z[0][:, None], vectors[None], dim=-1)
    torch.testing.assert_close(logits[:, 0], 10 * cosine, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits[:, -1], asked.logits_nek[:, -1])
    assert isinstance(last_linear(zero_shot), torch.nn.Linear)
    check_net(zero_shot, samples.take(torch.arange(8)).x)


def test_prototypes_of_the_final_exit_need_no_label(net: dx.DynamicNet, samples: dx.data.Samples, quick: Quick) -> None:
    aligned = quick(net, samples, loss="ntxent")
    with pytest.raises(FitError, match="heads of loss 'ntxent' stand between"):
        dx.align.zero_shot(aligned.net, aligned.space)
    asked = dx.align.embed(aligned.net, samples.unlabelled())
    answer_n = asked.logits_nek[:, -1].argmax(1)
    seen = answer_n.unique()
    with pytest.raises(SourceError, match=r"the full net finds no example of class .*; give more unlabelled samples"):
        dx.align.zero_shot(aligned.net, aligned.space, rows=samples.unlabelled())
    z = aligned.space.project(asked)
    vectors = dx.align.final_prototypes(replace(z, logits_nek=z.logits_nek[..., seen]), len(seen))
    mine = torch.nn.functional.normalize(z.embedding_e[-1][answer_n == seen[0]], dim=-1).mean(0)
    torch.testing.assert_close(vectors[0], mine)


def test_cosine_heads_are_trained_like_others(net: dx.DynamicNet, samples: dx.data.Samples, tmp_path: Path) -> None:
    cosine = dx.attach(net.staged, dx.heads.cosine_heads(dx.heads.conv_heads(10, hidden=8)), at=[0, 1])
    assert all(isinstance(exit.classifier, Cosine) for exit in cosine.exits)
    with seeded(0):
        trained = dx.train.joint(cosine, samples, dx.FitConfig(steps=10, lr=1e-2, progress=False))
    x = samples.take(torch.arange(6)).x
    with torch.no_grad():
        embedding = trained.exits[0].embed(trained.taps(x)[0][0])
        scaled = trained.exits[0].classifier(3 * embedding)
        torch.testing.assert_close(scaled, trained.exits[0].classifier(embedding))
    assert (scaled.abs() <= trained.exits[0].classifier.scale.abs() + 1e-4).all()
    check_net(trained, x)
    dx.save(trained, tmp_path / "net", policy=dx.Policy.never(3), spec=samples.spec)
    again = dx.load(tmp_path / "net", model=net.staged).net
    assert torch.equal(again.all_exits(x), trained.all_exits(x))
    assert dx.align.align_exits(trained, samples, steps=2, batch_size=8, progress=False).snapshots


def test_gates_are_kept(samples: dx.data.Samples) -> None:
    gated = gated_net()
    pixels = torch.rand(20, *gated.staged.input_shape, generator=torch.Generator().manual_seed(0))
    spec = dx.InputSpec(shape=gated.staged.input_shape, mean=(0.5,) * 3, std=(0.25,) * 3)
    few_shot = dx.align.few_shot(gated, dx.data.Samples(pixels=pixels, y=torch.arange(20) % 4, spec=spec))
    assert few_shot.num_gates == gated.num_gates
    assert all(torch.equal(a, b) for a, b in zip(few_shot.gates.parameters(), gated.gates.parameters(), strict=True))


class Mixed(torch.nn.Module):
    """Ends in one linear layer or the mean of two, as distilled ViTs do; one of ten numbers before it is no answer."""

    def __init__(self, *, mixes: bool) -> None:
        super().__init__()
        self.mixes = mixes
        self.body = torch.nn.Conv2d(3, 10, 3, 4)
        self.first, self.second = torch.nn.Linear(10, 10), torch.nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x).relu().mean((2, 3))
        return (self.second(x) + self.first(x)) / 2 if self.mixes else self.first(self.second(x).relu())


def test_the_last_linear_layer_is_the_one_that_answers(samples: dx.data.Samples, examples: dx.data.Samples) -> None:
    mixed, plain = (
        dx.attach(
            dx.split(Mixed(mixes=mixes).eval(), torch.zeros(1, *samples.shape), after=["body"]),
            dx.heads.pooled_heads(10),
        )
        for mixes in (True, False)
    )
    few_shot = dx.align.few_shot(plain, examples)
    assert isinstance(few_shot.staged.stages[-1].body.get_submodule("first"), Cosine)
    with pytest.raises(FitError, match="the net mixes the answers of 2 linear layers"):
        dx.align.few_shot(mixed, examples)


def test_what_gives_no_classes_is_refused(
    net: dx.DynamicNet, samples: dx.data.Samples, examples: dx.data.Samples
) -> None:
    with pytest.raises(SourceError, match="examples without labels"):
        dx.align.few_shot(net, examples.unlabelled())
    with pytest.raises(SourceError, match="all examples are of class 0; .* give two classes or more"):
        dx.align.few_shot(net, replace(examples, y=torch.zeros_like(examples.y)))
    dark = replace(examples, pixels=examples.pixels.float().index_fill(0, torch.tensor([1]), torch.nan))
    with pytest.raises(SourceError, match="examples: some pixels are NaN or infinite"):
        dx.align.few_shot(net, dark)
    plain = dx.InputSpec(shape=dark.shape, mean=(0.0,) * dark.shape[0], std=(1.0,) * dark.shape[0])
    with pytest.raises(SourceError, match="an embedding holds NaN"):  # numbers of any kind go with a spec of 0 and 1
        dx.align.few_shot(net, replace(dark, spec=plain))
    with pytest.raises(FitError, match="exits of a cascade hand on logits"):
        dx.align.few_shot(cascade(net, "boost"), examples)
    vectors = dx.align.prototypes(dx.align.embed(net, examples).embedding_e, examples.y)
    with pytest.raises(FitError, match="vectors of 5 classes, but the full net keeps its own 10"):
        reclassify(net, vectors, last=False)
    short = replace(vectors, vector_e=vectors.vector_e[:1], center_e=vectors.center_e[:1])
    with pytest.raises(FitError, match="vectors at 1 exits for a net with 3"):
        reclassify(net, short)
    odd = replace(vectors, vector_e=(*vectors.vector_e[:-1], torch.zeros(5, 3)))
    with pytest.raises(FitError, match="the vectors at exit 2 are of size 3, what it sees is of size"):
        reclassify(net, odd)
