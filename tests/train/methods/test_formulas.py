"""Each method's loss and schedule against the paper's formula, slowly."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from methods import METHODS, config, setting
from reference import losses as slow

import dynext as dx
from dynext.errors import FitError
from dynext.losses import exits as losses
from dynext.net.last_layer import last_linear
from dynext.train.methods.be_your_own_teacher import Embedding
from dynext.train.methods.boostnet import boosted
from dynext.train.methods.jei_dnn import costs, gated_loss
from dynext.train.methods.multi_exit_distillation import Heated

DRAW = torch.Generator().manual_seed(3)
LOGITS = 3 * torch.randn(4, 9, 5, generator=DRAW, dtype=torch.float64)
Y = torch.randint(5, (9,), generator=DRAW)
close = partial(pytest.approx, rel=1e-9)


def test_weighted_cross_entropy() -> None:
    weights = (1.0, 0.5, 0.0, 0.3)
    expected = sum(w * slow.cross_entropy(one.numpy(), Y.numpy()) for one, w in zip(LOGITS, weights, strict=True))
    assert float(losses.weighted_cross_entropy(list(LOGITS), Y, weights)) == close(expected)


def test_shallow_deep_weights_rise_to_each_exits_depth() -> None:
    depths = [0.15, 0.3, 0.45, 0.6, 0.75, 0.9]  # the paper's
    for done in (0.0, 0.25, 0.99, 1.0):
        expected = [*(min(d, 0.01 + done * d) for d in depths), 1.0]
        assert losses.shallow_deep_weights(done, depths) == pytest.approx(expected)
    assert losses.shallow_deep_weights(1.0, depths) == [*depths, 1.0]
    assert losses.shallow_deep_weights(0.0, depths)[:2] == [0.01, 0.01]


@pytest.mark.parametrize("teachers", ["last", "later"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_multi_exit_distillation(teachers: str, temperature: float) -> None:
    found = losses.multi_exit_loss(list(LOGITS), temperature, teachers)
    assert float(found) == close(slow.multi_exit(LOGITS.numpy(), temperature, teachers))


def test_a_teacher_learns_nothing_from_its_pupils() -> None:
    logits = [one.clone().requires_grad_(True) for one in LOGITS]
    losses.multi_exit_loss(logits, 2.0).backward()
    assert logits[-1].grad is None
    assert logits[0].grad is not None
    logits = [one.clone().requires_grad_(True) for one in LOGITS]
    losses.taught_by_last(logits, Y, alpha=1.0, temperature=3.0).backward()
    alone = LOGITS[-1].clone().requires_grad_(True)
    torch.nn.functional.cross_entropy(alone, Y).backward()
    torch.testing.assert_close(logits[-1].grad, alone.grad)


def test_the_temperature_rises_while_the_teacher_is_sure() -> None:
    sure, torn = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.2, 0.0, 0.0]])
    assert losses.heated(1.0, sure) == 1.05
    assert losses.heated(1.0, torn) == 1.0
    tau = 1.0
    for _ in range(200):
        tau = losses.heated(tau, sure)
    assert slow.softmax(sure.numpy(), tau).max() <= 0.5 < slow.softmax(sure.numpy(), tau / 1.05).max()
    net, _ = setting(METHODS["joint"])
    module = Heated(net)
    module.heat(sure)
    again = Heated(net)
    again.load_state_dict(module.state_dict())
    assert again.tau == 1.05


@pytest.mark.parametrize(("alpha", "temperature"), [(0.3, 3.0), (0.1, 1.0), (0.0, 2.0)])
def test_taught_by_last(alpha: float, temperature: float) -> None:
    found = losses.taught_by_last(list(LOGITS), Y, alpha=alpha, temperature=temperature)
    expected = slow.taught_by_last(LOGITS.numpy(), Y.numpy(), alpha, temperature, LOGITS[-1].numpy())
    assert float(found) == close(expected)
    other = LOGITS[0].flip(0)
    found = losses.taught_by_last(list(LOGITS), Y, alpha=alpha, temperature=temperature, teacher_bk=other)
    assert float(found) == close(slow.taught_by_last(LOGITS.numpy(), Y.numpy(), alpha, temperature, other.numpy()))


def test_hints() -> None:
    features = LOGITS.numpy()
    expected = sum(
        np.mean([((f - g) ** 2).sum() for f, g in zip(one, features[-1], strict=True)]) for one in features[:2]
    )
    assert float(losses.hints(list(LOGITS[:2]), LOGITS[-1])) == close(expected)


def test_embeddings_are_those_that_the_classifiers_see() -> None:
    net, rows = setting(METHODS["be_your_own_teacher"])
    x = rows.take(torch.arange(5)).x
    seen = Embedding(net, seed=0)(x)
    torch.testing.assert_close(torch.stack(seen.logits_e, dim=1), net.all_exits(x))
    torch.testing.assert_close(last_linear(net)(seen.final_bd), net(x))
    taps, _ = net.taps(x)
    assert not torch.equal(seen.adapted_e[0], net.exits[0].embed(taps[0]))
    assert all(f.shape == seen.final_bd.shape for f in seen.adapted_e)


def test_gates() -> None:
    loss_be = LOGITS[:, :, 0].T.abs()
    gate_be = LOGITS[:3, :, 1].T.sigmoid()
    cost_e = torch.tensor([0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    torch.testing.assert_close(losses.exit_probabilities(gate_be).numpy(), slow.exit_probabilities(gate_be.numpy()))
    assert losses.exit_probabilities(gate_be).sum(1).numpy() == pytest.approx(np.ones(9))
    for price in (0.0, 0.5, 5.0):
        expected = slow.gate_targets(loss_be.numpy(), cost_e.numpy(), price)
        assert (losses.gate_targets(loss_be, cost_e, price).numpy() == expected).all()
        found = float(gated_loss(loss_be, gate_be, cost_e, price))
        assert found == close(slow.gated(loss_be.numpy(), gate_be.numpy(), cost_e.numpy(), price))


def test_the_dearer_the_macs_the_earlier_gates_let_rows_go() -> None:
    net, rows = setting(METHODS["jei_dnn"])
    left = []
    for price in (0.0, 50.0):
        found, policy = dx.train.jei_dnn(net, rows, replace(config(steps=80), lr=0.1), price=price)
        left.append(float(found.run(rows.take(torch.arange(64)).x, policy).exit.double().mean()))
    assert left[1] == 0.0 < left[0]
    assert costs(net)[-1] > 1


def test_boosting() -> None:
    found = torch.stack(boosted(list(LOGITS)))
    torch.testing.assert_close(found.numpy(), slow.boosted(LOGITS.numpy()))
    logits = [one.clone().requires_grad_(True) for one in LOGITS]
    boosted(logits)[-1].sum().backward()
    assert logits[-2].grad is None


def test_weights_and_shares_that_make_no_sense_are_refused() -> None:
    net, rows = setting(METHODS["joint"])
    for weights in ((1.0,), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0)):
        with pytest.raises(FitError, match="for 3 exits; give one of each"):
            dx.train.joint(net, rows, config(), weight_e=weights)
    with pytest.raises(FitError, match="teachers='first'"):
        dx.train.multi_exit_distillation(net, rows, config(), teachers="first")
    with pytest.raises(FitError, match="trunk='thawed'"):
        dx.train.shallow_deep(net, rows, config(), trunk="thawed")
    with pytest.raises(FitError, match="alpha=2"):
        dx.train.be_your_own_teacher(net, rows, config(), alpha=2)
    with pytest.raises(FitError, match="gamma=-1"):
        dx.train.imta(net, rows, config(), gamma=-1)
    with pytest.raises(FitError, match="price=-1"):
        dx.train.jei_dnn(net, rows, config(), price=-1)
    with pytest.raises(FitError, match=r"has no attention; attach exits with dx.heads.attention_heads"):
        dx.train.scan(net, rows, config())
