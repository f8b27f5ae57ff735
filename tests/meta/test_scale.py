"""Class means of embeddings of any size: the temperatures of what they answer lie inside their bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tables import make_table

import dynext as dx
from dynext.meta.prototypes import known_scale, prototype_layer
from dynext.policy.calibrate import calibrate


def embedded(size: float, *, apart: float, n: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Four classes that overlap, in embeddings of any length."""
    draw = torch.Generator().manual_seed(0)
    label_n = torch.arange(n) % 4
    mean_kd = apart * torch.randn(4, 64, generator=draw)
    return size * (mean_kd[label_n] + torch.randn(n, 64, generator=draw)), label_n


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("apart", [0.3, 0.4])
@pytest.mark.parametrize("shots", [1, 5, 20])
def test_the_temperature_lies_inside_whatever_the_size(size: float, apart: float, shots: int) -> None:
    f_nd, label_n = embedded(size, apart=apart)
    weight, bias = prototype_layer(f_nd[: 4 * shots], label_n[: 4 * shots], 4)
    scale = known_scale(weight / 2)
    raw_nk = f_nd[4 * shots :] @ weight.T + bias
    asked_n = label_n[4 * shots :]
    table = make_table(len(asked_n), 1, 4, logits_nek=(scale * raw_nk)[:, None], label_n=asked_n, basis="labels")
    calibration = calibrate(table)
    assert 0.05 < calibration.temperature_e[0] < 20
    assert torch.equal((scale * raw_nk).argmax(1), raw_nk.argmax(1))


def test_raw_distances_of_large_embeddings_end_at_the_bound() -> None:
    f_nd, label_n = embedded(30.0, apart=0.3)
    weight, bias = prototype_layer(f_nd[:20], label_n[:20], 4)
    raw_nk = f_nd[20:] @ weight.T + bias
    table = make_table(380, 1, 4, logits_nek=raw_nk[:, None], label_n=label_n[20:], basis="labels")
    assert calibrate(table).temperature_e[0] == 20.0


def test_classes_that_cannot_be_told_apart_have_a_scale_too() -> None:
    assert known_scale(torch.ones(3, 8)) == 1.0


@pytest.mark.parametrize("options", [{}, {"method": "head", "steps": 2}])
def test_adapting_to_large_inputs_gives_temperatures_inside(digit_net, digit_samples, options) -> None:
    new = digit_samples[1]
    loud = replace(new, spec=replace(new.spec, std=(0.02,)))
    support = loud.subset(torch.cat([(new.y == c).nonzero()[:10, 0] for c in range(4)]))
    adaptation = dx.meta.adapt(digit_net, support, **options)
    assert all(0.05 < t < 20 for t in adaptation.calibration.temperature_e), adaptation.calibration
