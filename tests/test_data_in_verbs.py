"""Every verb that asks for samples takes them in every form, and asks for a spec only where nobody knows it."""

import inspect
import logging
import re
from pathlib import Path

import pytest
import torch
from kinds_of_data import FIRST, KINDS, LABELS, UNIT, WANTED, Items, X, Y, picture
from pixels import COLOR
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import dynext as dx
from dynext.data.given import TOLD
from dynext.errors import SourceError
from dynext.seeding import seeded

SAMPLES = dx.data.Samples(pixels=FIRST, y=LABELS, spec=COLOR)
QUICK = {"steps": 2, "batch_size": 8, "progress": False}


def teacher() -> nn.Module:
    with seeded(0):
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


@pytest.fixture
def net() -> dx.DynamicNet:
    return dx.attach(dx.split(teacher(), torch.zeros(1, *COLOR.shape), after=[0.5]), dx.default_heads(5))


@pytest.mark.parametrize("kind", KINDS)
def test_collect_takes_every_form(net: dx.DynamicNet, kind: str) -> None:
    table, wanted = dx.collect(net, KINDS[kind](), spec=COLOR), dx.collect(net, SAMPLES)
    assert_close(table.logits_nek, wanted.logits_nek, atol=1e-4, rtol=1e-4)
    assert torch.equal(table.label_n, LABELS)


LOADER = DataLoader(TensorDataset(UNIT, LABELS), batch_size=7)
VERBS = {
    "embed": lambda net, data, **spec: dx.align.embed(net, data, **spec).logits_nek,
    "distill": lambda net, data, **spec: state(dx.distill(net, None, data, **QUICK, **spec)),
    "joint": lambda net, data, **spec: state(dx.train.joint(net, data, **QUICK, **spec)),
    "zero_time_waste": lambda net, data, **spec: state(dx.train.zero_time_waste(net, data, **QUICK, **spec)),
    "few_shot": lambda net, data, **spec: state(dx.align.few_shot(net, data, **spec)),
    "adapt": lambda net, data, **spec: state(dx.meta.adapt(net, data, **spec).net),
    "finetune": lambda net, data, **spec: state(dx.prune.finetune(net, teacher(), data, **QUICK, **spec)),
    "features": lambda net, data, **spec: dx.zeroshot.cache_features(net, None, data, **spec).logits_nk,
}
LOOKING = {
    **VERBS,
    "rank": lambda net, data, **spec: dx.prune.rank(net, budget=0.9, by="taylor", source=data, **spec),
    "rechoose": lambda net, data, **spec: dx.align.rechoose(net, net, dx.Policy.never(2), data, **spec),
    "make_smaller": lambda net, data, **spec: dx.prune.make_smaller(
        net, data, held_out=data, remove=dx.prune.Removal(budget=0.9), **spec
    ),
}


def state(net: dx.DynamicNet) -> dict[str, torch.Tensor]:
    return dict(net.state_dict())


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_do_the_same_with_arrays_and_loaders_as_with_samples(net: dx.DynamicNet, verb: str) -> None:
    wanted = VERBS[verb](net, SAMPLES)
    for data in ((X, Y), LOADER, Items(lambda i: (picture(i), int(Y[i])))):
        given = VERBS[verb](net, data, spec=COLOR)
        assert_close(given, wanted, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("verb", LOOKING)
def test_verbs_refuse_what_is_normalized_already_and_ask_for_a_spec(net: dx.DynamicNet, verb: str) -> None:
    with pytest.raises(SourceError, match=r"^\w+: pixels lie between -2 and 3: they look normalized by the spec's own"):
        LOOKING[verb](net, (WANTED, LABELS), spec=COLOR)
    with pytest.raises(SourceError, match=r"give spec=dx\.InputSpec\(shape=\(3, 6, 5\), mean=\(\.\.\., \.\.\., \.\.\."):
        LOOKING[verb](net, LOADER)
    with pytest.raises(SourceError, match=r"would be once more"):
        LOOKING[verb](net, dx.data.Samples(pixels=WANTED, y=LABELS, spec=COLOR))
    with pytest.raises(SourceError, match=r"spec is a tuple; give dx\.InputSpec"):
        LOOKING[verb](net, LOADER, spec=(3, 6, 5))


def test_a_net_that_knows_its_spec_asks_nobody(net: dx.DynamicNet, tmp_path) -> None:
    wanted = dx.collect(net, SAMPLES).logits_nek
    dx.save(net, tmp_path / "net", policy=dx.Policy.never(2), spec=COLOR)
    loaded = dx.load(tmp_path / "net", model=teacher()).net
    assert loaded.spec == COLOR
    assert_close(dx.collect(loaded, LOADER).logits_nek, wanted)
    adapted = dx.align.few_shot(loaded, LOADER)
    assert adapted.spec == COLOR
    other = dx.InputSpec(shape=COLOR.shape, mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(SourceError, match=r"the net's own mean .*leave spec= out, or correct net\.spec"):
        dx.collect(loaded, LOADER, spec=other)
    with pytest.raises(SourceError, match=r"the net's spec says .*dataclasses\.replace\(samples, spec=spec\)"):
        dx.collect(loaded, dx.data.Samples(pixels=FIRST, spec=other))


def test_labels_are_asked_for_where_they_are_needed(net: dx.DynamicNet) -> None:
    with pytest.raises(SourceError, match="the samples have no labels, and this method learns from them"):
        dx.train.joint(net, X, spec=COLOR, **QUICK)
    assert dx.collect(net, X, spec=COLOR).label_n is None


def test_other_mistakes_are_told_as_before(net: dx.DynamicNet) -> None:
    with pytest.raises(TypeError, match=r"collect\(\) missing 1 required positional argument: 'source'"):
        dx.collect(net)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sauce'"):
        dx.collect(net, SAMPLES, sauce=1)


def test_help_tells_of_it() -> None:
    for verb in (dx.collect, dx.distill, dx.train.joint, dx.meta.adapt, dx.align.embed):
        assert TOLD.split("{names}")[1].strip() in inspect.getdoc(verb)
    assert "spec" in inspect.signature(dx.collect).parameters


CONVERT = {
    "training": dx.Frozen(steps=2),
    "synthesis": dx.Synthesis(n=16),
    "run": dx.Run(progress=False),
}


@pytest.mark.parametrize(
    "kind", ["uint8 arrays, channels last", "DataLoader", "Dataset of Pillow's images", "Hugging Face, decoded"]
)
def test_convert_calibrates_on_every_form(kind: str) -> None:
    wanted = dx.convert(teacher(), COLOR, calibrate=SAMPLES, **CONVERT)
    given = dx.convert(teacher(), COLOR, calibrate=KINDS[kind](), **CONVERT)
    assert_close(given.table.logits_nek, wanted.table.logits_nek, atol=1e-4, rtol=1e-4)
    assert given.policy.threshold_e == pytest.approx(wanted.policy.threshold_e, abs=1e-3)
    assert given.table.label_n is None
    assert given.net.spec == COLOR
    wrapped = dx.convert(teacher(), COLOR, calibrate=dx.Unlabelled(KINDS[kind](), distill=True, views=2), **CONVERT)
    assert wrapped.net.spec == COLOR


def test_convert_distils_on_every_form() -> None:
    asked = {**CONVERT, "synthesis": LOADER}
    given = dx.convert(teacher(), COLOR, **asked)
    assert len(given.samples) == len(LABELS)
    assert next(iter(given.samples)).y is None


def test_convert_refuses_what_cost_all_savings() -> None:
    for data in ((WANTED, LABELS), WANTED, DataLoader(TensorDataset(WANTED, LABELS))):
        with pytest.raises(SourceError, match=r"^calibrate: pixels lie .* normalized=True\)$"):
            dx.convert(teacher(), COLOR, calibrate=data, **CONVERT)
    with pytest.raises(SourceError, match=r"calibrate: nothing says how .*dx\.convert\(net, dx\.InputSpec\("):
        dx.convert(teacher(), torch.zeros(1, *COLOR.shape), calibrate=(X, Y), **CONVERT)
    said = dx.data.as_source((WANTED, LABELS), COLOR, normalized=True)
    given = dx.convert(teacher(), COLOR, calibrate=said, **CONVERT)
    assert_close(given.table.logits_nek, dx.convert(teacher(), COLOR, calibrate=SAMPLES, **CONVERT).table.logits_nek)


def test_convert_takes_the_spec_that_timm_keeps(caplog) -> None:
    model = teacher()
    model.pretrained_cfg = {"input_size": (3, 6, 5), "mean": COLOR.mean, "std": COLOR.std}
    for example in (None, torch.zeros(1, *COLOR.shape)):
        with caplog.at_level(logging.INFO, "dynext"):
            given = dx.convert(model, example, calibrate=(X, Y), **CONVERT)
        assert given.spec == COLOR
        assert "the net keeps its normalization" in caplog.text


def test_a_guessed_spec_is_not_taken_for_known() -> None:
    assert dx.convert(teacher(), torch.zeros(1, *COLOR.shape), **CONVERT).net.spec is None


def test_more_than_memory_holds_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("dynext.data.read_sources.MOST_BYTES", 100)
    with pytest.raises(SourceError, match=r"calibrate holds 40 samples, .* a few hundred do, such as torch\.utils"):
        dx.convert(teacher(), COLOR, calibrate=LOADER, **CONVERT)


def test_the_page_about_data_runs() -> None:
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 2
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)
    assert len(scope["source"]) == 64


def test_every_verb_that_takes_a_source_takes_the_rest() -> None:
    """A new verb must not forget the decorator."""
    spaces = [dx, *(getattr(dx, name) for name in ("align", "meta", "policies", "prune", "train", "zeroshot"))]
    verbs = [verb for space in spaces for verb in vars(space).values() if inspect.isfunction(verb)]
    asking = {
        f"{verb.__module__}.{verb.__name__}": verb
        for verb in verbs
        if any(re.search(r"\b(Source|Data)\b", str(p.annotation)) for p in inspect.signature(verb).parameters.values())
    }
    del asking["dynext.zeroshot.convert.convert"]  # has two forms of its own: see its tests
    assert len(asking) >= 35
    told = TOLD.split("{names}")[1].strip()
    assert not [name for name, verb in asking.items() if told not in (inspect.getdoc(verb) or "")]
