"""Looks are chosen by the teacher: those whose statistics it was trained on win, without an image."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.synth.fitted import fit_styles, mixture
from dynext.zeroshot.synth.procedural import paint
from dynext.zeroshot.synth.styles import LEAVES, OBJECTS, PRESETS, Style
from dynext.zeroshot.synth.synthesize import synthesize

SPEC = InputSpec(shape=(1, 16, 16), mean=(0.5,), std=(0.25,))


def trained_on(style: Style) -> nn.Module:
    """A net whose BatchNorms have seen pictures of one style."""
    torch_seeded = generator(0)
    net = nn.Sequential(
        nn.BatchNorm2d(1, momentum=None), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net[1].parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch_seeded))
        net[-1].weight.zero_()
        net[-1].bias.zero_()
        for i in range(4):
            net(SPEC.normalize(paint(256, SPEC.shape, generator(100 + i), style)))
    return net.eval()


@pytest.mark.parametrize("name", ["leaves", "objects on dark", "objects on light", "strokes on dark"])
def test_the_look_a_teacher_was_trained_on_is_found_among_the_presets(name: str) -> None:
    best = fit_styles(trained_on(PRESETS[name]), SPEC, seed=0, styles=len(PRESETS), candidates=len(PRESETS))
    assert best[0].style == PRESETS[name]
    assert best[0].distance < 0.1 < best[-1].distance
    assert [f.loss for f in best] == sorted(f.loss for f in best)
    assert best[0].balance == pytest.approx(1.0)


def test_variations_come_nearer_than_the_presets() -> None:
    odd = replace(OBJECTS, level=0.8, contrast=0.1, radius=(0.2, 0.5), ground="light")
    teacher = trained_on(odd)
    presets = fit_styles(teacher, SPEC, seed=0, candidates=len(PRESETS))
    fitted = fit_styles(teacher, SPEC, seed=0, styles=3, candidates=40)
    assert len(fitted) == 3
    assert fitted[0].loss < 0.8 * presets[0].loss


def test_an_uneven_answer_costs() -> None:
    teacher = trained_on(LEAVES)
    with torch.no_grad():
        teacher[-1].bias[0] = 50.0
    best = fit_styles(teacher, SPEC, seed=0, candidates=8)
    assert all(f.balance < 1e-3 and f.loss == pytest.approx(f.distance + 1, abs=1e-3) for f in best)


def test_without_batch_norm_balance_decides(layer_norm_teacher: nn.Module) -> None:
    spec = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
    best = fit_styles(layer_norm_teacher, spec, seed=0, candidates=8)
    assert all(f.distance == 0 for f in best)
    assert best[0].balance == max(f.balance for f in best) > best[-1].balance


def test_mixture_is_half_of_the_best_and_the_rest_in_equal_parts() -> None:
    dark, light = replace(OBJECTS, radius=(0.1, 0.2)), replace(OBJECTS, radius=(0.1, 0.2), ground="light")
    x = mixture(101, (1, 16, 16), generator(0), [dark, light])
    is_light = x[:, 0, 0, 0] > 0.5
    assert int(is_light.sum()) == 50
    assert not torch.equal(is_light, is_light.sort().values)
    assert mixture(7, (1, 16, 16), generator(0), [dark]).shape == (7, 1, 16, 16)
    assert mixture(2, (1, 16, 16), generator(0), [dark, light, LEAVES, LEAVES]).shape[0] == 2


def test_provenance_names_the_chosen_styles() -> None:
    teacher = trained_on(OBJECTS)
    bank = synthesize(
        teacher, shape=SPEC.shape, n=4, seed=0, method="fitted", spec=SPEC, progress=False, styles=2, candidates=8
    )
    styles = bank.provenance.notes["styles"]
    assert len(styles) == 2
    assert styles[0]["style"]["layout"] == "objects"
    assert styles[0]["distance"] <= styles[1]["distance"] + 1
