"""Class biases in the exits' last layers: what they put right, what they must not touch, and how they are judged."""

from dataclasses import replace

import torch
from torch.testing import assert_close
from zoo import NETS

import dynext as dx
from dynext.policy.class_bias import class_biases
from dynext.testing import check_net
from dynext.zeroshot.cross_fit import BIAS_FOLDS, dealt, recalibrated, with_biases

SPEC = dx.InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


def lopsided(count: int = 60) -> tuple[dx.DynamicNet, dx.data.Samples]:
    """A net whose exits are copies of each other's kind and shout one class; samples for it."""
    model, example = NETS["residual"]()
    net = dx.attach(dx.split(model, example, after=[0.3, 0.6]), dx.heads.conv_heads(10, hidden=8))
    with torch.no_grad():
        for exit in net.exits:
            exit.classifier.bias[3] += 9.0
    pixels = torch.rand(count, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    return net, dx.data.Samples(pixels=pixels, spec=SPEC)


def test_biases_are_added_to_early_exits_alone() -> None:
    net, rows = lopsided()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = rows.take(torch.arange(5)).x
    bias_ek = torch.randn(3, 10, dtype=torch.double)
    found = with_biases(net, bias_ek)
    with torch.no_grad():
        assert_close(found.all_exits(x)[:, :2], net.all_exits(x)[:, :2] + bias_ek[:2].float(), rtol=1e-4, atol=1e-5)
        assert torch.equal(found(x), net(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert found.head_macs_e == net.head_macs_e
    check_net(found, x)


def test_what_an_exit_says_too_often_is_put_right() -> None:
    net, rows = lopsided(200)
    table = dx.collect(net, rows)
    found, judged = recalibrated(net, table)

    def agreement(of: dx.ExitTable) -> torch.Tensor:
        return of.right_ne[:, :2].double().mean(0)

    assert (agreement(dx.collect(found, rows)) > agreement(table)).all()
    assert judged.rows.endswith("each answered with class biases that were found without it")


def test_a_row_is_judged_by_biases_that_did_not_see_it() -> None:
    net, rows = lopsided()
    table = dx.collect(net, rows)
    _, judged = recalibrated(net, table)
    fold = dealt(table.target_n) == 2
    own = int(fold.nonzero()[0])
    biases_ek = class_biases(table.subset((~fold).nonzero()[:, 0]))
    assert_close(judged.logits_nek[fold], table.logits_nek[fold] + biases_ek.float())
    logits_nek = table.logits_nek.clone()
    logits_nek[own, :-1] = logits_nek[own, :-1].flip(-1)  # moves no other sample of its fold
    _, other = recalibrated(net, replace(table, logits_nek=logits_nek))
    fold[own] = False
    assert torch.equal(other.logits_nek[fold], judged.logits_nek[fold])


def test_rows_that_come_class_by_class_in_turn_are_judged_like_any() -> None:
    net, rows = lopsided(100)
    wanted_nk = torch.nn.functional.one_hot(torch.arange(100) % 10, 10).float()  # every fifth sample is of two classes
    noise_nk = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    logits_nek = torch.stack([3 * wanted_nk + noise_nk] * 2 + [9 * wanted_nk], 1)
    table = replace(dx.collect(net, rows), logits_nek=logits_nek)
    shuffled = table.subset(torch.randperm(100, generator=torch.Generator().manual_seed(1)))
    in_turn, like_any = (recalibrated(net, one)[1].right_ne[:, 0].float().mean() for one in (table, shuffled))
    assert abs(in_turn - like_any) < 0.05


def test_fewer_rows_than_folds_change_nothing() -> None:
    net, rows = lopsided(BIAS_FOLDS - 1)
    table = dx.collect(net, rows)
    assert recalibrated(net, table) == (net, table)


def test_cosine_classifiers_have_no_bias_and_stay_as_they_are() -> None:
    net, rows = lopsided()
    cosine = dx.attach(net.staged, dx.heads.cosine_heads(dx.heads.conv_heads(10, hidden=8)), at=[0])
    table = dx.collect(cosine, rows)
    found, judged = recalibrated(cosine, table)
    assert torch.equal(judged.logits_nek, table.logits_nek)
    assert_close(dx.collect(found, rows).logits_nek, table.logits_nek)
