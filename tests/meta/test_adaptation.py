"""Adapting: a new net, the old one untouched; class means, steps, thresholds left out; save and load; errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from meta_nets import assert_untouched, first_episode, state_of, zoo_net
from reference import meta as reference
from torch import nn
from torch.testing import assert_close

import dynext as dx
from dynext.errors import FitError, SourceError
from dynext.meta.adapt_config import AdaptConfig, as_start
from dynext.meta.adaptation import learner_for, left_out_logits
from dynext.meta.prototypes import classifier_of
from dynext.testing import check_net

SPEC = dx.InputSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("bn", ["frozen", "task"])
@pytest.mark.parametrize("method", ["prototypes", "head", "used"])
def test_the_original_is_untouched_and_the_new_net_is_one_like_any_other(
    method: str, bn: str, digit_net, digit_samples, tmp_path: Path
) -> None:
    digit_net.train()
    before, flags, state = state_of(digit_net), [m.training for m in digit_net.modules()], torch.get_rng_state()
    episode = first_episode(digit_samples[1])
    steps = None if method == "prototypes" else 2
    adapted = dx.meta.adapt(digit_net, episode.support, method=method, steps=steps, bn=bn)
    assert_untouched(digit_net, before)
    assert flags == [m.training for m in digit_net.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert adapted.net.num_classes == 4
    assert len(adapted.table) == len(episode.support.x)
    assert "support samples, each left out" in adapted.table.rows
    assert adapted.policy.temperature_e == adapted.calibration.temperature_e
    check_net(adapted.net, episode.query.x)

    dx.save(adapted.net, tmp_path / "net", policy=adapted.policy, spec=SPEC, table=adapted.table)
    x = episode.query.x
    for classes in (4, 3):  # the model as it is now, or as it was before it was adapted
        arch = dx.models.ResNet(8, num_classes=classes, width=4, channels=1)
        again = dx.load(tmp_path / "net", model=arch)
        assert_close(again.net.all_exits(x), adapted.net.all_exits(x), rtol=0, atol=0)
        assert (again.net.staged.macs, again.net.num_classes) == (adapted.net.staged.macs, 4)
        assert again.policy == adapted.policy
    recipe = {"kind": "cifar", "name": "resnet8", "arguments": {"width": 4, "channels": 1, "num_classes": 3}}
    dx.save(adapted.net, tmp_path / "net", policy=adapted.policy, spec=SPEC, model_recipe=recipe)
    assert_close(dx.load(tmp_path / "net").net.all_exits(x), adapted.net.all_exits(x), rtol=0, atol=0)


def test_class_means_are_the_papers_at_every_exit(digit_net, digit_samples) -> None:
    episode = first_episode(digit_samples[1])
    net = dx.meta.adapt(digit_net, episode.support).net
    seen: list[list[np.ndarray]] = []
    for x in (episode.support.x, episode.query.x):
        embedded = [[]]
        hook = classifier_of(digit_net, -1).register_forward_pre_hook(lambda _m, given, e=embedded: e.append(given[0]))
        with torch.no_grad():
            taps, _ = digit_net.taps(x)
        hook.remove()
        early = [exit.embed(tap) for exit, tap in zip(digit_net.exits, taps, strict=True)]
        seen.append([t.detach().double().numpy() for t in (*early, embedded[-1])])
    with torch.no_grad():
        logits_bek = net.all_exits(episode.query.x).double().log_softmax(-1).numpy()
    for e, (known, asked) in enumerate(zip(*seen, strict=True)):
        wanted = reference.prototype_log_probabilities(known, episode.support.y.numpy(), asked, 4)
        means = [known[episode.support.y.numpy() == c].mean(0) for c in range(4)]
        apart = np.mean([((a - b) ** 2).sum() for i, a in enumerate(means) for j, b in enumerate(means) if i != j])
        scaled = torch.tensor(10 / apart * wanted).log_softmax(-1).numpy()  # ours: a known scale, the same answers
        np.testing.assert_allclose(logits_bek[:, e], scaled, rtol=1e-3, atol=1e-3)


def test_steps_lower_the_loss_on_the_support_samples(digit_net, digit_samples) -> None:
    samples = first_episode(digit_samples[1]).support

    def losses(steps: int | None, method: str) -> torch.Tensor:
        net = dx.meta.adapt(digit_net, samples, method=method, steps=steps).net
        with torch.no_grad():
            return torch.stack([nn.functional.cross_entropy(z, samples.y) for z in net.all_exits(samples.x).unbind(1)])

    means, stepped, further = losses(None, "prototypes"), losses(1, "head"), losses(4, "head")
    assert (stepped <= means).all()
    assert (further <= stepped).all()
    assert (further < means).any()


def test_exits_that_share_a_trunk_step_on_it_together(digit_net, digit_samples) -> None:
    samples, never, lr = first_episode(digit_samples[1]).support, dx.Policy.never(3), 1e-3
    means = dx.meta.adapt(digit_net, samples, policy=never).net
    loss = sum(nn.functional.cross_entropy(z, samples.y) for z in means.all_exits(samples.x).unbind(1))
    gradients = torch.autograd.grad(loss, list(means.parameters()))
    adapted = dx.meta.adapt(digit_net, samples, method="used", steps=1, lr=lr, policy=never).net
    for (name, p), q, gradient in zip(means.named_parameters(), adapted.parameters(), gradients, strict=True):
        assert_close((p - q) / lr, gradient, rtol=0.01, atol=0.01, msg=lambda told, name=name: f"{name}: {told}")


@pytest.mark.parametrize("bn", ["frozen", "task"])
@pytest.mark.parametrize(("method", "steps"), [("prototypes", 0), ("head", 2)])
def test_left_out_samples_are_answered_by_nets_that_had_not_seen_them(
    method: str, steps: int, bn: str, digit_net, digit_samples
) -> None:
    samples = first_episode(digit_samples[1], way=3, shot=2).support
    config = AdaptConfig(method=method, steps=steps, lr=0.1, bn=bn, classifiers="prototypes", careful=True)
    learner = learner_for(as_start(digit_net), config, 3)
    logits_nek = left_out_logits(learner, samples.x, samples.y, seed=0)
    never = dx.Policy.never(3)
    for i in range(len(samples.x)):
        others = torch.arange(len(samples.x)) != i
        rest = dx.data.Batch(x=samples.x[others], y=samples.y[others])
        alone = dx.meta.adapt(digit_net, rest, method=method, steps=steps, bn=bn, policy=never).net
        with torch.no_grad():
            assert_close(logits_nek[i], alone.all_exits(samples.x[i : i + 1])[0], rtol=1e-4, atol=1e-4)


def test_many_samples_are_left_out_in_groups(digit_net, digit_samples) -> None:
    adapted = dx.meta.adapt(digit_net, first_episode(digit_samples[1], way=4, shot=20).support)
    assert len(adapted.table) == 80
    assert torch.isfinite(adapted.table.logits_nek).all()


def test_the_same_classes_keep_their_classifiers(digit_net, digit_samples) -> None:
    samples = first_episode(digit_samples[0], way=2, shot=3).support  # two of the net's three classes
    adapted = dx.meta.adapt(digit_net, samples, method="classifier", steps=1, classifiers="kept", lr=0.05)
    assert adapted.net.num_classes == 3
    (names,) = {tuple(claim.adapts) for claim in dx.meta.ownership(digit_net, [[0]], adapts="classifier").claims}
    moved = {n for n, p in adapted.net.named_parameters() if not torch.equal(p, digit_net.get_parameter(n))}
    assert set(names) <= moved
    assert moved == {n for claim in dx.meta.ownership(digit_net, adapts="classifier").claims for n in claim.adapts}


def test_a_meta_learned_start_goes_on_as_it_was_trained(digit_net, digit_samples) -> None:
    base, new = digit_samples
    inner = dx.meta.InnerLoop(steps=2, lr=0.3, bn="per_step")
    config = dx.FitConfig(steps=2, lr=1e-3, progress=False)
    start = dx.meta.meta_train(
        digit_net, dx.data.Episodes(rows=base, way=3, shot=2, query=3), config, inner=inner, batch=1
    )
    samples = first_episode(new, way=3, shot=2).support
    adapted = dx.meta.adapt(start, samples, policy=dx.Policy.never(3))
    for name, buffer in adapted.net.named_buffers():
        if name.endswith("running_mean"):
            assert torch.equal(buffer, start.statistics[name][2])
    with pytest.raises(FitError, match=r"\(2 steps' here, 3 steps asked\)"):
        dx.meta.adapt(start, samples, steps=3)
    with pytest.raises(SourceError, match="is of class 3, the net knows 3; give classifiers='prototypes'"):
        dx.meta.adapt(start, first_episode(new).support)


@pytest.mark.parametrize("bn", ["task", "frozen"])
def test_steps_go_on_with_the_statistics_that_they_were_trained_on(bn: str, digit_net, digit_samples) -> None:
    samples, never = first_episode(digit_samples[1], way=3).support, dx.Policy.never(3)
    start = dx.meta.MetaStart(net=digit_net, inner=dx.meta.InnerLoop(steps=2, bn=bn))

    def statistics(**given) -> list[torch.Tensor]:
        buffers = dx.meta.adapt(start, samples, policy=never, **given).net.named_buffers()
        return [buffer for name, buffer in buffers if "running" in name]

    default, wanted = statistics(), statistics(bn=bn)
    assert all(torch.equal(a, b) for a, b in zip(default, wanted, strict=True))
    own = [buffer for name, buffer in digit_net.named_buffers() if "running" in name]
    assert all(torch.equal(a, b) for a, b in zip(default, own, strict=True)) == (bn == "frozen")
    means = statistics(method="prototypes")  # change no layer that statistics come after
    assert all(torch.equal(a, b) for a, b in zip(means, own, strict=True))


def test_a_start_for_class_means_goes_on_from_class_means(digit_net, digit_samples) -> None:
    samples, never = first_episode(digit_samples[1], way=3).support, dx.Policy.never(3)
    start = dx.meta.MetaStart(net=digit_net, inner=dx.meta.InnerLoop.of("prototypes"))
    for given in ({"method": "head", "steps": 2}, {}):
        one, other = (dx.meta.adapt(net, samples, policy=never, **given).net for net in (start, digit_net))
        assert torch.equal(one.all_exits(samples.x), other.all_exits(samples.x))
    with pytest.raises(FitError, match="steps=2, but class means take none; give method='head'"):
        dx.meta.adapt(start, samples, steps=2)


def test_learned_step_sizes_are_for_as_many_classes_and_not_overruled(digit_net, digit_samples) -> None:
    sizes = {name: torch.full_like(p, 0.1) for name, p in digit_net.named_parameters()}
    start = dx.meta.MetaStart(net=digit_net, inner=dx.meta.InnerLoop.of("meta_sgd", steps=1), step_sizes=sizes)
    with pytest.raises(FitError, match=r"learned step sizes of shape \(3, .* is \(4, .* here; give samples of as many"):
        dx.meta.adapt(start, first_episode(digit_samples[1]).support, classifiers="prototypes")
    with pytest.raises(FitError, match="lr=0.5, but this start has learned its own step sizes"):
        dx.meta.adapt(start, first_episode(digit_samples[1], way=3).support, lr=0.5)


def test_classifiers_that_class_means_do_not_fit_into(digit_net, digit_samples) -> None:
    samples = first_episode(digit_samples[1], way=3).support
    heads = dx.heads.cosine_heads(dx.heads.conv_heads(3, hidden=8, separable=0))
    with pytest.raises(FitError, match="exit 0 answers by Cosine, not by an nn.Linear .* or use dx.align.few_shot"):
        dx.meta.adapt(dx.attach(digit_net.staged, heads, at=[0]), samples)
    digit_net.exits[1].classifier.register_parameter("bias", None)
    with pytest.raises(FitError, match="the classifier of exit 1 has 3 outputs and no bias; .* use dx.align.few_shot"):
        dx.meta.adapt(digit_net, samples)


def test_statistics_of_the_support_become_the_nets(digit_net, digit_samples) -> None:
    samples = first_episode(digit_samples[1]).support
    net = dx.meta.adapt(digit_net, samples, bn="task", policy=dx.Policy.never(3)).net
    stem = digit_net.staged.stages[0].body.get_submodule("conv1")
    mean = net.staged.stages[0].body.get_submodule("bn1").running_mean
    with torch.no_grad():
        assert_close(mean, stem(samples.x).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_like", "unet_like", "shared_weights"])
def test_other_shapes_of_nets_learn_new_classes(name: str) -> None:
    net = zoo_net(name)
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = dx.data.Batch(x=x, y=torch.arange(8) % 2)
    adapted = dx.meta.adapt(net, batch, method="owned", steps=1)
    assert adapted.net.num_classes == 2
    check_net(adapted.net.float(), x.float())


def test_new_classes_keep_everything_but_the_classifiers(digit_net) -> None:
    seven_way = dx.meta.with_classes(digit_net, 7)
    kept, own = digit_net.state_dict(), seven_way.state_dict()
    assert kept.keys() == own.keys()
    changed = {name for name in kept if kept[name].shape != own[name].shape}
    assert changed == {n for claim in dx.meta.ownership(digit_net, adapts="classifier").claims for n in claim.adapts}
    assert all(torch.equal(kept[name], own[name]) for name in kept if name not in changed)
    assert [exit.spec["num_classes"] for exit in seven_way.exits] == [7, 7]
    assert seven_way.staged.macs - digit_net.staged.macs == 16 * (7 - 3)
    whole = dx.split(dx.models.ResNet(8, num_classes=7, width=4, channels=1), torch.zeros(1, 1, 8, 8))
    assert seven_way.staged.macs == whole.macs
    with pytest.raises(FitError, match="num_classes=1"):
        dx.meta.with_classes(digit_net, 1)


def test_recipes_of_other_classes() -> None:
    recipe = {"kind": "cifar", "name": "resnet8", "arguments": {"width": 2, "num_classes": 10}}
    assert dx.meta.recipe_with_classes(recipe, 4)["arguments"] == {"width": 2, "num_classes": 4}
    assert recipe["arguments"]["num_classes"] == 10
    assert dx.meta.recipe_with_classes({"kind": "file", "name": "a.py:f", "arguments": {}}, 4) is None
    assert dx.meta.recipe_with_classes(None, 4) is None
