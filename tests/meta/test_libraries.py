"""The same meta-gradients through higher and learn2learn; how learn2learn is installed, and what is said without it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from meta_nets import NETS, assert_same, assert_untouched, episode_tensors, meta_loss, smooth_net, state_of
from torch import nn
from torch.testing import assert_close

from dynext.errors import FitError
from dynext.meta.external_engines import INSTALL
from dynext.meta.inner import InnerLoop
from dynext.meta.loss import gradients

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("engine", ["higher", "learn2learn"])
@pytest.mark.parametrize("rule", ["second_order", "first_order"])
@pytest.mark.parametrize(("adapts", "name"), [("head", "residual"), ("used", "batch norm"), ("used", "attention")])
def test_engines_give_the_same_meta_gradients(name: str, adapts: str, rule: str, engine: str) -> None:
    if engine == "learn2learn":
        learn2learn_or_skip()
    net = NETS[name]()
    episode = episode_tensors(net.num_classes)
    inner = InnerLoop(adapts=adapts, rule=rule, steps=2)
    own = gradients(meta_loss(net, inner), *episode)
    before, kinds = state_of(net), [type(m) for m in net.modules()]
    assert_same(gradients(meta_loss(net, inner, engine=engine), *episode), own, atol=1e-12)
    assert_untouched(net, before)
    assert kinds == [type(m) for m in net.modules()]


@pytest.mark.parametrize("engine", ["higher", "learn2learn"])
def test_engines_take_learned_step_sizes_and_float32(engine: str) -> None:
    if engine == "learn2learn":
        learn2learn_or_skip()
    net = smooth_net(nn.BatchNorm2d).float()
    sx, sy, qx, qy = episode_tensors(3)
    episode = (sx.float(), sy, qx.float(), qy)
    own, other = (meta_loss(net, InnerLoop.of("meta_sgd"), engine=e) for e in ("dynext", engine))
    assert_same(gradients(other, *episode), gradients(own, *episode), atol=1e-6)
    for mine, theirs in zip(own.rates.values(), other.rates.values(), strict=True):
        wanted = torch.autograd.grad(own(*episode), mine)[0]
        assert_close(torch.autograd.grad(other(*episode), theirs)[0], wanted, rtol=0, atol=1e-6)


def learn2learn_or_skip() -> None:
    from dynext.meta.external_engines import learn2learn

    try:
        learn2learn()
    except FitError as error:
        pytest.skip(str(error))


def test_without_learn2learn_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "learn2learn", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(FitError, match=r"pip install --no-deps .*build_ext learn2learn==0.2.0"):
        meta_loss(smooth_net(), InnerLoop(), engine="learn2learn")(*episode_tensors(3))
    assert not any(name.startswith("learn2learn.") and not hasattr(m, "__path__") and m.__spec__ is None
                   for name, m in sys.modules.items())  # fmt: skip


class Absent:
    """Finds no learn2learn."""

    def find_spec(self, name: str, path=None, target=None) -> None:
        if name == "learn2learn":
            raise ModuleNotFoundError("No module named 'learn2learn'")


def test_the_command_is_the_one_that_make_test_runs_and_the_docs_tell() -> None:
    told = INSTALL.removeprefix("pip install ")
    assert told != INSTALL
    assert f"LEARN2LEARN := {told}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"`{INSTALL}`" in (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
