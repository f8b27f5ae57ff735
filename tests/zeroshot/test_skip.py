"""Taught to skip without data: every kind, compared with the teacher, refused where it is not safe."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from zoo import NETS

import dynext as dx
from dynext.errors import SplitError
from dynext.graph.split import split
from dynext.modules.exits import default_heads
from dynext.zeroshot import convert_steps, thresholds
from dynext.zeroshot.convert import Conversion, convert
from dynext.zeroshot.skip import KEEPS, attach_around_blocks, teach_to_skip

SPEC = dx.InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
SMALL = {"example": SPEC, "synthesis": dx.Synthesis(method="leaves", n=64), "run": dx.Run(progress=False)}


def skipping(kind: str) -> dx.Skip:
    return dx.Skip(kind, steps=4, skip_steps=6)


KINDS = ("skipnet", "blockdrop", "static")


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "ROWS", 64)


def teacher() -> torch.nn.Module:
    return NETS["residual"]()[0]


def real(count: int = 48) -> dx.data.Samples:
    pixels = torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return dx.data.Samples(pixels=pixels, spec=SPEC)


def same_weights(one: Conversion, two: Conversion) -> bool:
    other = two.net.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.net.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("calibrated", [False, True])
def test_where_much_may_be_lost_samples_skip(kind: str, calibrated: bool, tmp_path: Path) -> None:
    model = teacher()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    images = real() if calibrated else None
    conversion = convert(model, training=skipping(kind), calibrate=images, target=dx.Target(max_drop=1.0), **SMALL)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert conversion.provenance["skip"]["kind"] == kind
    assert conversion.table.keep_g == conversion.policy.skip_rule
    report = dx.report(conversion.table, conversion.policy)
    assert report.saved > 0
    if calibrated:
        x = SPEC.normalize(real().pixels)
        if conversion.table.skipped is not None:
            assert_close(conversion.table.skipped.full_nk, model(x).detach(), rtol=1e-4, atol=1e-4)
        observed = conversion.net.run(x, conversion.policy)
        assert float(observed.macs.double().mean()) == pytest.approx(report.macs, rel=0.1)
    assert conversion.net.run(SPEC.normalize(real(4).pixels), conversion.policy).logits.shape == (4, 10)
    folder = dx.save(conversion.net, tmp_path / "net", policy=conversion.policy, spec=SPEC, table=conversion.table)
    assert dx.load(folder, model=model).policy == conversion.policy


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_may_be_lost_the_static_net_stays(kind: str) -> None:
    model = teacher()
    conversion = convert(model, training=skipping(kind), calibrate=real(), target=dx.Target(max_drop=0.0), **SMALL)
    assert conversion.policy.skip_rule is None
    assert conversion.table.skipped is None
    assert "neither exits nor skipping are safe" in conversion.policy.note
    x = SPEC.normalize(real(4).pixels)
    assert_close(conversion.net(x), model(x), rtol=1e-5, atol=1e-5)


def test_exits_stand_where_they_would_without_skipping() -> None:
    model, example = NETS["residual"]()
    net = attach_around_blocks(model, example, None, None, seed=0)
    assert net.trunk_macs_e == dx.attach(split(model, example), default_heads(10)).trunk_macs_e
    assert_close(net(example), model(example))
    model, example = NETS["vit_like"]()  # where an exit would stand inside a block, it stands behind one
    plain = dx.attach(split(model, example), default_heads(10))
    net = attach_around_blocks(model, example, None, None, seed=0)
    block = max(stage.macs for stage in net.staged.stages)
    assert all(min(abs(ours - theirs) for theirs in plain.trunk_macs_e) <= block for ours in net.trunk_macs_e)
    assert len(net.exits) >= 3
    model, example = NETS["plain"]()
    with pytest.raises(SplitError, match="no residual block that a sample may skip; train it otherwise"):
        attach_around_blocks(model, example, None, None, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_teaching_is_seeded_and_keeps_buffers(kind: str) -> None:
    model, example = NETS["residual"]()
    net = attach_around_blocks(model, example, None, None, seed=0)
    bank = dx.synthesize(model, shape=(3, 8, 8), n=64, seed=0, method="leaves", spec=SPEC, progress=False)
    one, two = (teach_to_skip(net, model, bank, kind, steps=6, progress=False) for _ in range(2))
    assert_close(one.net.state_dict(), two.net.state_dict(), rtol=0, atol=0)
    other = teach_to_skip(net, model, bank, kind, steps=6, seed=1, progress=False)
    assert any(not torch.equal(a, b) for a, b in zip(one.net.parameters(), other.net.parameters(), strict=True))
    for (name, ours), theirs in zip(one.net.staged.named_buffers(), net.staged.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    assert not all(torch.equal(a, b) for a, b in zip(one.net.staged.parameters(), net.staged.parameters(), strict=True))
    if kind != "static":
        assert one.rules == tuple((keep,) * 3 for keep in KEEPS)


def test_fixed_sets_are_nested_and_the_threshold_picks_one() -> None:
    model, example = NETS["in_place_pre_activation"]()
    net = attach_around_blocks(model, example, [0.5], None, seed=0)
    bank = dx.synthesize(model, shape=(3, 8, 8), n=32, seed=0, method="leaves", spec=SPEC, progress=False)
    skipper = teach_to_skip(net, model, bank, "static", steps=2, progress=False)
    num_gates = skipper.net.num_gates
    assert len(skipper.rules) == num_gates // 2 == 2
    order = skipper.record["order"]
    for dropped, rule in enumerate(skipper.rules, 1):
        policy = dx.Policy.skipping(skipper.net.num_exits, num_gates, keep=rule[0])
        ran = skipper.net.run(SPEC.normalize(real(3).pixels), policy).ran
        assert ran.tolist() == [[g not in order[:dropped] for g in range(num_gates)]] * 3


def test_a_killed_conversion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**SMALL, "training": skipping("skipnet"), "calibrate": real(), "target": dx.Target(max_drop=1.0)}
    kept = {**given, "run": dx.Run(progress=False, folder=tmp_path)}
    whole = convert(teacher(), **given)

    def dying(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert_steps, "recalibrated", dying)
        with pytest.raises(KeyboardInterrupt):
            convert(teacher(), **kept)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == [
        "bank-leaves-0",
        "convert.json",
        "heads-skipping.ckpt",
        "heads.ckpt",
        "skipnet.first.ckpt",
        "skipnet.second.ckpt",
    ]
    assert same_weights(whole, convert(teacher(), **kept))
