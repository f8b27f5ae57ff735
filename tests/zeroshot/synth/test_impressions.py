"""Class impressions follow ZSKD's formulas, with betas that really differ."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import synthesis as slow
from torch import nn
from torch.testing import assert_close

from dynext.errors import SourceError
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.synth.impressions import Impressions, impressions, similarity, targets
from dynext.zeroshot.synth.inversion import balanced_targets
from dynext.zeroshot.synth.procedural import leaves


def weight(k: int = 10) -> torch.Tensor:
    return torch.randn(k, 12, generator=generator(0), dtype=torch.double)


def test_similarity_is_the_formula() -> None:
    assert_close(similarity(weight()).numpy(), slow.similarity(weight().numpy()))
    assert bool((similarity(weight()).diagonal() == 1).all())


def test_similarity_of_few_dead_or_equal_classes() -> None:
    assert_close(similarity(weight(2)), torch.eye(2, dtype=torch.double))
    dead = weight(3)
    dead[1] = 0
    found = similarity(dead)
    assert torch.isfinite(found).all()
    assert found[1].tolist() == [0, 1, 0]
    assert_close(similarity(torch.ones(3, 5)), torch.eye(3, dtype=torch.double))


def test_the_public_code_cancels_beta_and_ours_does_not() -> None:
    row = similarity(weight()).numpy()[0]
    published = [slow.published_concentration(row, beta) for beta in (1.0, 0.1)]
    assert np.allclose(*published), "the flaw that ours is to avoid"
    class_n = torch.zeros(2000, dtype=torch.long)
    wide, narrow = (targets(class_n, similarity(weight()), (beta,), generator(1)) for beta in (1.0, 0.1))
    # The variance of a Dirichlet's part is m (1 - m) / (1 + sum of concentrations).
    for found, beta in ((wide, 1.0), (narrow, 0.1)):
        alpha = beta * row + 1e-4
        mean = alpha / alpha.sum()
        assert np.abs(found.mean(0).numpy() - mean).max() < 0.03
        assert np.abs(found.var(0).numpy() - mean * (1 - mean) / (1 + alpha.sum())).max() < 0.02
    assert float(narrow.amax(1).mean()) > float(wide.amax(1).mean()) + 0.2


def test_each_class_sees_both_betas_half_the_rows_each() -> None:
    class_n = torch.arange(40) % 10  # in step with any rule that goes by the sample's number
    even = torch.ones(10, 10, dtype=torch.double)
    found = targets(class_n, even, (1e6, 1e-3), generator(0))
    soft_n = found.amax(1) < 0.2
    assert int(soft_n.sum()) == 20
    assert [int(soft_n[class_n == c].sum()) for c in range(10)] == [2] * 10
    assert_close(found.sum(1), torch.ones(40, dtype=torch.double))


def test_rows_come_nearer_to_their_targets(teacher: nn.Module, spec: InputSpec, monkeypatch) -> None:
    losses: list[float] = []
    descent = torch.autograd.grad

    def spy(loss: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        losses.append(loss.item())
        return descent(loss, x)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    settings = Impressions(iterations=40, temperature=2.0)
    sampler = impressions(teacher, spec, 0, start="leaves", settings=settings)
    found = sampler.sample(24, generator(3))
    draw = generator(3)
    x = spec.normalize(leaves(24, spec.shape, draw))
    with torch.no_grad():
        logits = teacher(x)
        target = targets(balanced_targets(logits), similarity(teacher.linear.weight), settings.betas, draw)
        after = F.cross_entropy(teacher(found) / 2.0, target.float()).item()
    assert losses[0] == pytest.approx(slow.impression_loss(logits.double().numpy(), target.numpy(), 2.0), rel=1e-4)
    assert after < losses[0] - 0.02
    low, high = spec.normalize(torch.zeros(1, 3, 1, 1)), spec.normalize(torch.ones(1, 3, 1, 1))
    assert bool((found >= low).all() and (found <= high).all())


def test_nothing_is_left_in_the_teacher(teacher: nn.Module, spec: InputSpec) -> None:
    teacher.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    impressions(teacher, spec, 0, start="noise", settings=Impressions(iterations=2)).sample(4, generator(0))
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(module.training for module in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_net_without_a_last_layer_is_told_so(spec: InputSpec) -> None:
    class Nearest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.means = nn.Parameter(torch.randn(3, 192, generator=generator(0)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -torch.cdist(x.flatten(1), self.means)

    with pytest.raises(SourceError, match="Nearest has no last linear layer"):
        impressions(Nearest(), spec, 0, start="noise")


@pytest.mark.parametrize("changes", [{"iterations": -1}, {"lr": 0.0}, {"temperature": 0.0}, {"betas": ()}])
def test_nonsense_is_refused(changes: dict) -> None:
    with pytest.raises(SourceError, match="give"):
        Impressions(**changes)
