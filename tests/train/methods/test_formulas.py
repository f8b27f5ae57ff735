"""Each method's loss and schedule against the paper's formula, slowly."""

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
from dynext.train.methods.be_your_own_teacher import AdaptedExits
from dynext.train.methods.boostnet import boosted
from dynext.train.methods.jei_dnn import exit_costs
from dynext.train.methods.multi_exit_distillation import AnnealedExits

DRAW = torch.Generator().manual_seed(3)
LOGITS = 3 * torch.randn(4, 9, 5, generator=DRAW, dtype=torch.float64)
Y = torch.randint(5, (9,), generator=DRAW)
close = partial(pytest.approx, rel=1e-9)


def test_weighted_cross_entropy() -> None:
    weights = (1.0, 0.5, 0.0, 0.3)
    expected = sum(w * slow.cross_entropy(logits.numpy(), Y.numpy()) for logits, w in zip(LOGITS, weights, strict=True))
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
    loss = losses.multi_exit_loss(list(LOGITS), temperature, teachers)
    assert float(loss) == close(slow.multi_exit(LOGITS.numpy(), temperature, teachers))


def test_a_teacher_learns_nothing_from_its_students() -> None:
    logits = [exit_logits.clone().requires_grad_(True) for exit_logits in LOGITS]
    losses.multi_exit_loss(logits, 2.0).backward()
    assert logits[-1].grad is None
    assert logits[0].grad is not None
    logits = [exit_logits.clone().requires_grad_(True) for exit_logits in LOGITS]
    losses.self_distillation(logits, Y, alpha=1.0, temperature=3.0).backward()
    alone = LOGITS[-1].clone().requires_grad_(True)
    torch.nn.functional.cross_entropy(alone, Y).backward()
    torch.testing.assert_close(logits[-1].grad, alone.grad)


def test_the_temperature_rises_while_the_teacher_is_sure() -> None:
    sure, torn = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.2, 0.0, 0.0]])
    assert losses.annealed_temperature(1.0, sure) == 1.05
    assert losses.annealed_temperature(1.0, torn) == 1.0
    tau = 1.0
    for _ in range(200):
        tau = losses.annealed_temperature(tau, sure)
    assert slow.softmax(sure.numpy(), tau).max() <= 0.5 < slow.softmax(sure.numpy(), tau / 1.05).max()
    net, _ = setting(METHODS["joint"])
    module = AnnealedExits(net)
    module.anneal(sure)
    again = AnnealedExits(net)
    again.load_state_dict(module.state_dict())
    assert again.tau == 1.05


@pytest.mark.parametrize(("alpha", "temperature"), [(0.3, 3.0), (0.1, 1.0), (0.0, 2.0)])
def test_self_distillation(alpha: float, temperature: float) -> None:
    loss = losses.self_distillation(list(LOGITS), Y, alpha=alpha, temperature=temperature)
    expected = slow.self_distillation(LOGITS.numpy(), Y.numpy(), alpha, temperature, LOGITS[-1].numpy())
    assert float(loss) == close(expected)
    other = LOGITS[0].flip(0)
    loss = losses.self_distillation(list(LOGITS), Y, alpha=alpha, temperature=temperature, teacher_bk=other)
    assert float(loss) == close(slow.self_distillation(LOGITS.numpy(), Y.numpy(), alpha, temperature, other.numpy()))


def test_hint_loss() -> None:
    features = LOGITS.numpy()
    expected = sum(
        np.mean([((f - g) ** 2).sum() for f, g in zip(early, features[-1], strict=True)]) for early in features[:2]
    )
    assert float(losses.hint_loss(list(LOGITS[:2]), LOGITS[-1])) == close(expected)


def test_embeddings_are_those_that_the_classifiers_see() -> None:
    net, samples = setting(METHODS["be_your_own_teacher"])
    x = samples.take(torch.arange(5)).x
    outputs = AdaptedExits(net, seed=0)(x)
    torch.testing.assert_close(torch.stack(outputs.logits_e, dim=1), net.all_exits(x))
    torch.testing.assert_close(last_linear(net)(outputs.final_bd), net(x))
    taps, _ = net.taps(x)
    assert not torch.equal(outputs.adapted_e[0], net.exits[0].embed(taps[0]))
    assert all(f.shape == outputs.final_bd.shape for f in outputs.adapted_e)


def test_gates() -> None:
    loss_be = LOGITS[:, :, 0].T.abs()
    gate_be = LOGITS[:3, :, 1].T.sigmoid()
    cost_e = torch.tensor([0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    torch.testing.assert_close(losses.exit_probabilities(gate_be).numpy(), slow.exit_probabilities(gate_be.numpy()))
    assert losses.exit_probabilities(gate_be).sum(1).numpy() == pytest.approx(np.ones(9))
    for price in (0.0, 0.5, 5.0):
        expected = slow.gate_targets(loss_be.numpy(), cost_e.numpy(), price)
        assert (losses.gate_targets(loss_be, cost_e, price).numpy() == expected).all()
        loss = float(losses.gated_exit_loss(loss_be, gate_be, cost_e, price))
        assert loss == close(slow.gated_exit_loss(loss_be.numpy(), gate_be.numpy(), cost_e.numpy(), price))


def test_the_dearer_the_macs_the_earlier_gates_let_samples_go() -> None:
    net, samples = setting(METHODS["jei_dnn"])
    left = []
    for price in (0.0, 50.0):
        student, policy = dx.train.jei_dnn(net, samples, config(steps=80), lr=0.1, price=price)
        left.append(float(student.run(samples.take(torch.arange(64)).x, policy).exit.double().mean()))
    assert left[1] == 0.0 < left[0]
    assert exit_costs(net)[-1] > 1


def test_boosting() -> None:
    answers = torch.stack(boosted(list(LOGITS)))
    torch.testing.assert_close(answers.numpy(), slow.boosted(LOGITS.numpy()))
    logits = [exit_logits.clone().requires_grad_(True) for exit_logits in LOGITS]
    boosted(logits)[-1].sum().backward()
    assert logits[-2].grad is None


def test_weights_and_shares_that_make_no_sense_are_refused() -> None:
    net, samples = setting(METHODS["joint"])
    for weights in ((1.0,), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0)):
        with pytest.raises(FitError, match="for 3 exits; give one of each"):
            dx.train.joint(net, samples, config(), weight_e=weights)
    with pytest.raises(FitError, match="teachers='first'"):
        dx.train.multi_exit_distillation(net, samples, config(), teachers="first")
    with pytest.raises(FitError, match="trunk='thawed'"):
        dx.train.shallow_deep(net, samples, config(), trunk="thawed")
    with pytest.raises(FitError, match="alpha=2"):
        dx.train.be_your_own_teacher(net, samples, config(), alpha=2)
    with pytest.raises(FitError, match="gamma=-1"):
        dx.train.imta(net, samples, config(), gamma=-1)
    with pytest.raises(FitError, match="price=-1, gate_warmup=0.3"):
        dx.train.jei_dnn(net, samples, config(), price=-1)
    with pytest.raises(FitError, match=r"has no attention; attach exits with dx.heads.attention_heads"):
        dx.train.scan(net, samples, config())
