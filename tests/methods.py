"""A table of the methods that train exits: how each is called on the smallest net that it takes.

`tests/train/methods/test_methods.py` trains, saves, resumes and reports on each, and checks what it must leave alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from zoo import NETS

import dynext as dx
from dynext.data.samples import Samples
from dynext.modules.exits import Heads
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.seeding import generator

SPEC = dx.InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
Train = Callable[[DynamicNet, Samples, dx.FitConfig], "DynamicNet | tuple[DynamicNet, Policy]"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method that trains exits on labelled samples, and what is to be expected of it."""

    train: Train
    """Called with a net, samples and a config; a ``lambda`` where it has options of its own."""
    heads: Callable[[], Heads] = lambda: dx.heads.conv_heads(10, hidden=8, separable=0)
    frozen: bool = False
    """The trunk must not move."""
    cascade: str | None = None
    """The rule of the cascade that it gives."""
    self_taught: bool = False
    """Samples without labels are learned from, too."""


def second(config: dx.FitConfig) -> dx.FitConfig:
    """The config of a method's other step, with a checkpoint of its own."""
    path = config.checkpoint
    return replace(config, checkpoint=None if path is None else path.with_suffix(".second"))


METHODS = {
    "joint": Method(train=dx.train.joint),
    "branchynet": Method(
        train=lambda net, samples, config: dx.train.joint(net, samples, config, weight_e=(1, 0.6, 0.3))
    ),
    "shallow_deep_frozen": Method(
        train=dx.train.shallow_deep,
        heads=lambda: dx.heads.pooled_heads(10),
        frozen=True,
    ),
    "shallow_deep_joint": Method(
        train=lambda net, samples, config: dx.train.shallow_deep(
            net, samples, config, trunk="joint", most_confident=True
        ),
        cascade="surest",
    ),
    "distillation_last": Method(train=dx.train.multi_exit_distillation),
    "distillation_later": Method(
        train=lambda net, samples, config: dx.train.multi_exit_distillation(
            net, samples, config, teachers="later", unlabelled=samples.unlabelled()
        )
    ),
    "be_your_own_teacher": Method(train=dx.train.be_your_own_teacher),
    "scan": Method(
        train=dx.train.scan,
        heads=lambda: dx.heads.attention_heads(10, hidden=8, squeeze=4),
        cascade="mean",
    ),
    "imta": Method(
        train=lambda net, samples, config: dx.train.imta(net, samples, config, heads=second(config)), cascade="inline"
    ),
    "zero_time_waste": Method(
        train=dx.train.zero_time_waste,
        frozen=True,
        cascade="stack",
        self_taught=True,
    ),
    "boostnet": Method(train=dx.train.boostnet, cascade="boost"),
    "jei_dnn": Method(train=dx.train.jei_dnn, frozen=True),
    "mixed": Method(train=lambda net, samples, config: dx.train.mixed(net, samples, config, backbone=second(config))),
    "meta_fusion": Method(train=dx.meta.meta_fusion),
    "weigh_samples": Method(train=dx.meta.weigh_samples),
}


def setting(method: Method, n: int = 64) -> tuple[DynamicNet, Samples]:
    """An untrained net with two exits, and labelled samples whose class shows in their color."""
    model, example = NETS["residual"]()
    net = dx.attach(dx.split(model, example, after=[0.3, 0.6]), method.heads())
    draw = generator(0)
    y = torch.randint(10, (n,), generator=draw)
    colors = torch.rand(10, 3, 1, 1, generator=draw)
    x = (colors[y] + 0.2 * torch.rand(n, *example.shape[1:], generator=draw)).clamp(0, 1)
    return net, Samples(pixels=x, y=y, spec=SPEC, batch_size=32)


def config(steps: int = 20, checkpoint: Path | None = None) -> dx.FitConfig:
    return dx.FitConfig(
        steps=steps, lr=5e-3, batch_size=64, progress=False, checkpoint=checkpoint, checkpoint_seconds=0
    )


def trained(
    method: Method, net: DynamicNet, samples: Samples, config: dx.FitConfig
) -> tuple[DynamicNet, Policy | None]:
    """The net, and the policy where the method gives one."""
    result = method.train(net, samples, config)
    return result if isinstance(result, tuple) else (result, None)
