"""Lent attention: taken away without a trace, learned from samples of every kind, the loss as written."""

import copy
from pathlib import Path

import pytest
import torch
from killed import killed_at_save
from methods import METHODS, SPEC, config, setting
from reference import maps as slow
from zoo import NETS

import dynext as dx
from dynext.errors import FitError
from dynext.graph.deepest import DEEPEST, with_deepest
from dynext.io.run_onnx import OnnxNet
from dynext.modules.modes import batch_statistics
from dynext.net.cascade import cascade
from dynext.prune import attention as training
from dynext.prune.attention import distill_attention, transfer_attention
from dynext.prune.auxiliary import Auxiliary, detach, lend_attention, watching
from dynext.testing import check_net


def lent(name: str = "residual", **options: object) -> tuple[Auxiliary, torch.Tensor]:
    model, example = NETS[name]()
    net = dx.attach(dx.split(model, example), dx.default_heads(10, hidden=8))
    x = torch.randn(6, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    return lend_attention(net, **options), x


def make_distinct(auxiliary: Auxiliary) -> None:
    """As they are drawn, all masks are nearly a half everywhere, so that any of them would do for any other."""
    with torch.no_grad():
        for parameter in [*auxiliary.attention_modules.parameters(), *auxiliary.net.exits.parameters()]:
            parameter.mul_(3)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_detaching_changes_no_bit_of_the_students_answers(name: str, strength: float) -> None:
    auxiliary, x = lent(name)
    auxiliary.strength = strength
    make_distinct(auxiliary)
    plain = dx.attach(auxiliary.net.staged, dx.default_heads(10, hidden=8))

    net = detach(auxiliary)

    with torch.no_grad():
        assert torch.equal(net.all_exits(x), auxiliary.all_exits(x))
        assert torch.equal(net(x), plain(x))
    paths, attached = auxiliary.paths(x), auxiliary.attached(x)
    for e, path in enumerate(paths):
        torch.testing.assert_close(path.own_bk, net.all_exits(x)[:, e], rtol=1e-4, atol=1e-5)
        assert torch.equal(path.lent_bk, attached[:, e])
        assert not torch.allclose(path.lent_bk, path.own_bk, rtol=1e-3, atol=1e-4)
    assert not [key for key in net.state_dict() if "attention_module" in key]
    if strength == 0:
        assert net.head_macs_e == plain.head_macs_e
        assert [exit.spec for exit in net.exits] == [exit.spec for exit in plain.exits]
        assert net.state_dict().keys() == plain.state_dict().keys()
    else:
        assert all(more > less for more, less in zip(net.head_macs_e[:-1], plain.head_macs_e[:-1], strict=True))
    if name in ("residual", "vit_like", "convnext_like"):
        check_net(net, x)


def test_masks_half_faded_out_stay_on() -> None:
    auxiliary, _ = lent()
    auxiliary.strength = 0.25
    with pytest.raises(FitError, match=r"still count 0\.25; finish the training"):
        detach(auxiliary)


@pytest.mark.parametrize("name", ["residual", "two_branches", "vit_like", "dense_concat", "convnext_like"])
def test_the_deepest_map_is_cut_out_of_the_last_stage(name: str) -> None:
    auxiliary, x = lent(name)
    staged = with_deepest(auxiliary.net.staged)
    assert staged.stages[-2].name == DEEPEST
    assert staged.macs == auxiliary.net.staged.macs
    with torch.no_grad():
        torch.testing.assert_close(staged(x), auxiliary.net(x))
        taps, _ = watching(auxiliary.net).taps(x)
    assert taps[-1].ndim in (3, 4)
    own = {id(p) for p in auxiliary.net.parameters()}
    assert all(id(p) in own for p in staged.parameters())


def test_stages_by_hand_are_tapped_at_their_last_tap() -> None:
    model, example = NETS["plain"]()
    staged = dx.graph.stages_by_hand([model.features[:2], model.features[2:], model.head], example)
    assert with_deepest(staged) is staged
    auxiliary = lend_attention(dx.attach(staged, dx.heads.conv_heads(10, hidden=8), at=[0]))
    assert auxiliary.attached(example).shape == (2, 2, 10)


@pytest.mark.parametrize("later", ["deepest", "next"])
def test_the_module_sees_what_it_is_said_to_see(later: str) -> None:
    auxiliary, x = lent(later=later)
    watch = watching(auxiliary.net)
    with torch.no_grad():
        reduced_e = [exit.reduce(tap) for exit, tap in zip(watch.exits, watch.taps(x)[0], strict=True)]
        before = [path.lent_mask for path in auxiliary.paths_of_reduced(reduced_e)]
        for index, concerned in (
            (1, [0, 1] if later == "next" else [1]),
            (-1, range(4) if later == "deepest" else [3]),
        ):
            changed = list(reduced_e)
            changed[index] = changed[index] + 1
            after = [path.lent_mask for path in auxiliary.paths_of_reduced(changed)]
            assert [e for e in range(4) if not torch.equal(before[e], after[e])] == list(concerned)


def test_lending_takes_over_what_heads_have_learned() -> None:
    model, example = NETS["residual"]()
    net = dx.attach(dx.split(model, example), dx.default_heads(10, hidden=8), seed=5)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    random = torch.get_rng_state()
    auxiliary = lend_attention(net)
    again = lend_attention(net)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    for (key, value), other in zip(auxiliary.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    auxiliary.strength = 0.0
    with torch.no_grad():
        assert torch.equal(auxiliary.all_exits(example), net.all_exits(example))
    assert lend_attention(auxiliary.net).net.exits[0].spec == auxiliary.net.exits[0].spec  # masked already


def test_heads_keep_their_own_way_to_answer_behind_a_mask() -> None:
    model, example = NETS["residual"]()
    cosine = dx.heads.cosine_heads(dx.default_heads(10, hidden=8))
    for heads in (cosine, dx.heads.cosine_heads(dx.heads.masked_heads(dx.default_heads(10, hidden=8)))):
        net = dx.attach(dx.split(model, example), heads)
        auxiliary = lend_attention(net)
        auxiliary.strength = 0.0
        with torch.no_grad():
            assert torch.equal(detach(auxiliary).all_exits(example), net.all_exits(example))
    masked = dx.attach(net.staged, dx.heads.masked_heads(cosine))
    assert all(type(exit.classifier) is type(net.exits[0].classifier) for exit in masked.exits)


def test_a_net_in_training_is_left_alone() -> None:
    net, samples = setting(METHODS["joint"], n=8)
    net.train().staged.stages[0].eval()
    before, flags = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    auxiliary = lend_attention(net).train()
    mimic = transfer_attention(net, samples, config(1), weight=0.0)
    for staged in (net.staged, auxiliary.net.staged, mimic.staged):
        assert all(torch.equal(value, before[f"staged.{key}"]) for key, value in staged.state_dict().items())
    assert [m.training for m in net.modules()] == flags
    auxiliary.net.exits[0].eval()
    before, flags = copy.deepcopy(auxiliary.state_dict()), [m.training for m in auxiliary.modules()]
    auxiliary.attached(samples.take(torch.arange(2)).x)
    assert all(torch.equal(value, before[key]) for key, value in auxiliary.state_dict().items())
    assert [m.training for m in auxiliary.modules()] == flags


def test_the_loss_is_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    net, samples = setting(METHODS["joint"], n=16)
    auxiliary = lend_attention(net)
    make_distinct(auxiliary)
    steps = []
    monkeypatch.setattr(training, "fit", lambda module, step, config, **modes: steps.append((module, step)))
    for source, y in ((samples, samples.y), (samples.unlabelled(), None)):
        distill_attention(auxiliary, source, config(), attention=0.7, temperature=3.0, alpha=0.3, batch_size=8)
        module, step = steps.pop()
        module.eval()
        loss = step(module, torch.Generator().manual_seed(3), 0.0)
        index = torch.randint(16, (8,), generator=torch.Generator().manual_seed(3))
        x = samples.take(index).x
        wanted = 0.0
        with torch.no_grad():
            final = net(x).double().numpy()
        for path in auxiliary.paths(x):
            own, theirs, b, a = (t.double().numpy() for t in (path.own_bk, path.lent_bk, path.own_mask, path.lent_mask))
            labels = None if y is None else y[index].numpy()
            wanted += slow.lent(own, theirs, (b, a), final, labels, 3.0, 0.3, 0.7)
        torch.testing.assert_close(
            float(loss.detach()), wanted, rtol=5e-3, atol=1e-3
        )  # features are kept in half precision


def test_masks_fade_out_and_then_are_gone() -> None:
    net, samples = setting(METHODS["joint"])
    auxiliary = lend_attention(net)
    before = {key: value.clone() for key, value in auxiliary.state_dict().items()}
    random = torch.get_rng_state()
    for anneal, kind in ((True, "conv"), (False, "masked")):
        taught = distill_attention(auxiliary, samples, config(30), anneal=anneal)
        assert taught.strength == (0.0 if anneal else 1.0)
        assert [exit.spec["kind"] for exit in detach(taught).exits] == [kind, kind]
        assert not any(m.training for m in taught.modules())
    assert auxiliary.strength == 1.0
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in auxiliary.state_dict().items())


@pytest.mark.parametrize("kind", ["labels", "unlabelled", "bank"])
def test_exits_learn_from_samples_of_every_kind(kind: str) -> None:
    net, samples = setting(METHODS["joint"])
    x = samples.take(torch.arange(64)).x
    source = {"labels": samples, "unlabelled": samples.unlabelled()}.get(kind)
    if source is None:
        source = dx.synthesize(net.staged, shape=(3, 8, 8), n=64, seed=0, spec=SPEC, method="gaussian")
    student = detach(distill_attention(lend_attention(net), source, config(60)))
    assert torch.equal(student(x), net(x))
    first = next(iter(source)).x
    with torch.no_grad(), batch_statistics(student.staged if kind == "bank" else torch.nn.Identity()):
        logits_bek = student.all_exits(first)
        fresh_bek = dx.attach(net.staged, dx.heads.conv_heads(10, hidden=8)).all_exits(first)
    for e in range(2):
        learned, before = (
            torch.nn.functional.cross_entropy(logits[:, e], samples.y[: len(first)])
            if kind == "labels"
            else dx.losses.distillation(logits[:, e], logits[:, -1], 4.0)
            for logits in (logits_bek, fresh_bek)
        )
        assert learned < before


def test_a_killed_run_ends_where_an_unbroken_one_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, samples = setting(METHODS["joint"])
    auxiliary = lend_attention(net)
    whole = distill_attention(auxiliary, samples, config(4, tmp_path / "whole.ckpt"))
    with killed_at_save(monkeypatch):
        distill_attention(auxiliary, samples, config(4, tmp_path / "broken.ckpt"))
    resumed = distill_attention(auxiliary, samples, config(4, tmp_path / "broken.ckpt"))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    with pytest.raises(FitError, match="attention 1.*attention 2"):
        distill_attention(auxiliary, samples, config(4, tmp_path / "broken.ckpt"), attention=2.0)


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("name", ["residual", "vit_like"])
def test_a_detached_net_is_saved_like_any_other(name: str, strength: float, tmp_path: Path) -> None:
    auxiliary, x = lent(name)
    auxiliary.strength = strength
    net = detach(auxiliary).requires_grad_(False)
    policy = dx.Policy.never(net.num_exits)
    dx.save(net, tmp_path / "net", policy=policy, spec=SPEC)
    again = dx.load(tmp_path / "net", model=NETS[name]()[0]).net
    assert torch.equal(again.all_exits(x), net.all_exits(x))
    assert again.head_macs_e == net.head_macs_e


def test_a_mask_is_exported_and_the_module_is_not(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, example = NETS["residual"]()
    net = dx.attach(dx.split(model, example, after=[0.3]), dx.heads.pooled_heads(10))
    detached = detach(lend_attention(net)).requires_grad_(False)
    x = torch.randn(6, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    dx.export(detached, tmp_path / "out", policy=dx.Policy.always(2), spec=SPEC, formats=["onnx"])
    logits = torch.from_numpy(OnnxNet(tmp_path / "out").run(x.numpy()).logits)
    torch.testing.assert_close(logits, detached.all_exits(x)[:, 0], rtol=1e-3, atol=1e-4)
    kept = {tensor.name for tensor in onnx.load(tmp_path / "out" / "exit_00.onnx").graph.initializer}
    assert any("embedder" in name for name in kept)
    assert not any("attention_module" in name for name in kept)


def test_what_cannot_learn_is_refused() -> None:
    net, samples = setting(METHODS["joint"])
    with pytest.raises(FitError, match="this net has none: attach some"):
        lend_attention(dx.DynamicNet(net.staged, []))
    with pytest.raises(FitError, match="is a cascade"):
        lend_attention(cascade(net, "boost"))
    with pytest.raises(FitError, match="later='earlier'; give one of deepest, next"):
        lend_attention(net, later="earlier")
    with pytest.raises(FitError, match="squeeze=0; give how many"):
        lend_attention(net, squeeze=0)
    with pytest.raises(FitError, match="alpha 2"):
        distill_attention(lend_attention(net), samples, config(), alpha=2)
    spec = dx.InputSpec(shape=(3, 4, 4), mean=SPEC.mean, std=SPEC.std)
    small = dx.data.Samples(pixels=samples.pixels[..., :4, :4], y=samples.y, spec=spec)
    auxiliary = lend_attention(net)
    with pytest.raises(dx.errors.SourceError, match=r"samples of shape \(3, 4, 4\)"):
        distill_attention(auxiliary, small, config())
    with pytest.raises(FitError, match="makes no map"):
        transfer_attention(dx.attach(net.staged, dx.heads.pooled_heads(10)), samples, config())
    for heads in (
        dx.heads.attention_heads(10),
        dx.heads.masked_heads(dx.heads.conv_heads(10)),
    ):  # a mask stands before the first map
        with pytest.raises(FitError, match="makes no map"):
            transfer_attention(dx.attach(net.staged, heads), samples, config())
    with pytest.raises(FitError, match="no early exit"):
        transfer_attention(dx.DynamicNet(net.staged, []), samples, config())
