"""What cannot be learned from a support set, and what is said about it."""

from __future__ import annotations

import pytest
import torch
from meta_nets import first_episode, smooth_net
from torch import nn

import dynext as dx
from dynext.errors import FitError, PolicyError, SourceError
from dynext.net.cascade import cascade


class Averaged(nn.Module):
    """Ends in a mean, not in a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).relu()).mean((2, 3))


def test_a_net_that_does_not_end_in_a_linear_layer() -> None:
    net = dx.attach(dx.split(Averaged(), torch.zeros(1, 3, 8, 8), after=["body"]), dx.heads.pooled_heads(3))
    with pytest.raises(FitError, match="do not come out of an nn.Linear"):
        dx.meta.with_classes(net, 4)


def batch(y: list[int], side: int = 8) -> dx.data.Batch:
    return dx.data.Batch(x=torch.zeros(len(y), 1, side, side), y=torch.tensor(y))


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (batch([0, 0, 0]), r"all support samples are of one class \(0\); there is nothing to tell it from"),
        (batch([0, 1]), "class 0 has one support sample; thresholds are chosen by leaving samples out"),
        (batch([0, 0, 1]), "class 1 has one support sample; .* Give another, or policy="),
        (batch([0, 0, 2, 2]), "no support sample of class 1; number the classes from 0 without gaps"),
        (batch([0, 0, 1, 1], side=9), r"support samples of shape \(1, 9, 9\); the model expects \(1, 8, 8\)"),
        (batch([]), "there is not one support sample"),
        (dx.data.Batch(x=torch.zeros(4, 1, 8, 8)), "the support samples have no labels"),
        (batch([-1, -1, 0, 0]), "labels .* from -1 for 4 support samples; give each sample the number of its class"),
        (
            dx.data.Batch(x=torch.zeros(4, 1, 8, 8), y=torch.tensor([0, 1])),
            r"labels \[2\] of torch.int64 .* for 4 support",
        ),
        (dx.data.Batch(x=torch.zeros(2, 1, 8, 8), y=torch.tensor([0.5, 1])), "labels .* of torch.float32"),
        (
            dx.data.Batch(
                x=torch.tensor([0.0, 0, torch.nan, 0])[:, None, None, None].expand(4, 1, 8, 8), y=torch.arange(4) % 2
            ),
            "support sample 2 holds NaN",
        ),
    ],
)
def test_support_samples_that_teach_nothing(samples: dx.data.Batch, told: str, digit_net) -> None:
    with pytest.raises(SourceError, match=told):
        dx.meta.adapt(digit_net, samples)


def test_one_shot_takes_thresholds_from_elsewhere(digit_net, digit_samples) -> None:
    samples = first_episode(digit_samples[1], way=3, shot=1).support
    policy = dx.Policy(threshold_e=(0.9, 0.9, 0.0), temperature_e=(1.0, 2.0, 3.0))
    adapted = dx.meta.adapt(digit_net, samples, policy=policy)
    assert adapted.policy == policy
    assert adapted.table is None
    with pytest.raises(PolicyError, match="the policy is for 2 exits"):
        dx.meta.adapt(digit_net, samples, policy=dx.Policy.never(2))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"method": "heads"}, "method='heads'; give one of prototypes, head, classifier, owned, used"),
        ({"steps": -1}, "steps=-1"),
        ({"step": 3}, "there is no option step; did you mean steps=?"),
        ({"lr": 0.0, "steps": 1}, "lr=0.0"),
        ({"classifiers": "new"}, "classifiers='new'"),
        ({"bn": "batch"}, "bn='batch'"),
        ({"bn": "per_step", "steps": 1}, r"\(none here, 1 steps asked\)"),
        ({"lr": 0.5}, "lr=0.5, but class means take none; give method='head'"),
        ({"classifiers": "kept"}, "classifiers='kept', but class means replace classifiers; give steps"),
    ],
)
def test_arguments_that_make_no_sense(given: dict, told: str, digit_net) -> None:
    with pytest.raises(FitError, match=told):
        dx.meta.adapt(digit_net, batch([0, 0, 1, 1]), **given)


def test_cascades_are_refused() -> None:
    with pytest.raises(FitError, match="the net is a cascade"):
        dx.meta.with_classes(cascade(smooth_net().float(), "boost"), 4)
