"""Meta-training: it helps, holds exits out, resumes to the same result, touches nothing, and says what it cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from killed import killed_at_save
from meta_nets import assert_untouched, state_of
from reference import meta as reference

import dynext as dx
from dynext.errors import ArtifactError, FitError, SourceError
from dynext.meta.inner import NAMED
from dynext.meta.l2w_den import WeighedLoss, leaving, sample_weights
from dynext.meta.meta_gf import Fusion
from dynext.modules.modes import batch_statistics


def config(steps: int, checkpoint: Path | None = None) -> dx.FitConfig:
    return dx.FitConfig(steps=steps, lr=5e-3, progress=False, checkpoint=checkpoint, checkpoint_seconds=0)


def episodes(samples: dx.data.Samples, **sizes: int) -> dx.data.Episodes:
    return dx.data.Episodes(rows=samples, **{"way": 3, "shot": 2, "query": 4, **sizes})


def test_meta_training_helps_on_classes_it_never_saw(digit_net, digit_samples) -> None:
    base, new = digit_samples
    start = dx.meta.meta_train(digit_net, episodes(base), config(40), inner=dx.meta.InnerLoop.of("prototypes"), batch=2)
    judged = [
        dx.meta.evaluate_episodes(net, episodes(new), count=15, method="prototypes", progress=False).accuracy_e
        for net in (digit_net, start)
    ]
    assert sum(share.mean for share in judged[1]) > sum(share.mean for share in judged[0]) + 0.05


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_inner_loop_trains_and_leaves_the_original_alone(name: str, digit_net, digit_samples) -> None:
    digit_net.train()
    before, flags, state = state_of(digit_net), [m.training for m in digit_net.modules()], torch.get_rng_state()
    inner = dx.meta.InnerLoop.of(name) if name == "prototypes" else dx.meta.InnerLoop.of(name, steps=1)
    start = dx.meta.meta_train(digit_net, episodes(digit_samples[0]), config(2), inner=inner, batch=1)
    assert_untouched(digit_net, before)
    assert flags == [m.training for m in digit_net.modules()]
    assert torch.equal(state, torch.get_rng_state())
    moved = {n for n, p in start.net.named_parameters() if not torch.equal(p, before[n])}
    assert any(n.startswith("exits.0") for n in moved)
    assert (start.step_sizes is not None) == (name == "meta_sgd")
    assert not any(m.training for m in start.net.modules())


def test_a_held_out_exit_stays_as_it_was(digit_net, digit_samples) -> None:
    start = dx.meta.meta_train(digit_net, episodes(digit_samples[0]), config(2), exits=[[0], [2]], batch=1)
    for name, p in digit_net.exits[1].named_parameters():
        assert torch.equal(p, start.net.exits[1].get_parameter(name)), name
    assert not torch.equal(digit_net.exits[0].classifier.weight, start.net.exits[0].classifier.weight)


def test_a_frozen_trunk_stays_bit_for_bit(digit_net, digit_samples) -> None:
    inner = dx.meta.InnerLoop(bn="frozen", steps=1)
    start = dx.meta.meta_train(digit_net, episodes(digit_samples[0]), config(2), inner=inner, trunk="frozen", batch=1)
    last = len(digit_net.staged.stages) - 1
    for name, tensor in digit_net.staged.state_dict().items():
        if not name.startswith(f"stages.{last}."):
            assert torch.equal(tensor, start.net.staged.state_dict()[name]), name
    with pytest.raises(FitError, match="a frozen trunk keeps its statistics, and bn='task'"):
        dx.meta.meta_train(digit_net, episodes(digit_samples[0]), config(1), trunk="frozen")


@pytest.mark.parametrize("name", ["heads", "meta_sgd", "per_step"])
def test_an_interrupted_training_ends_where_an_unbroken_one_ends(
    name: str, digit_net, digit_samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = dx.meta.InnerLoop(bn="per_step", steps=1) if name == "per_step" else dx.meta.InnerLoop.of(name, steps=1)

    def run(checkpoint: Path) -> dx.meta.MetaStart:
        return dx.meta.meta_train(digit_net, episodes(digit_samples[0]), config(3, checkpoint), inner=inner, batch=1)

    whole = run(tmp_path / "a")
    with killed_at_save(monkeypatch):
        run(tmp_path / "b")
    resumed = run(tmp_path / "b")
    assert_untouched(resumed.net, state_of(whole.net))
    for kept in ("step_sizes", "statistics"):
        mine, theirs = getattr(whole, kept) or {}, getattr(resumed, kept) or {}
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    with pytest.raises(FitError, match="belongs to another run"):
        dx.meta.meta_train(digit_net, episodes(digit_samples[0]), config(3, tmp_path / "a"), inner=inner, batch=2)


def test_all_episodes_at_once_train_the_same(digit_net, digit_samples) -> None:
    inner = dx.meta.InnerLoop(bn="frozen", steps=1)
    looped, vectorized = (
        dx.meta.meta_train(digit_net, episodes(digit_samples[0]), config(2), inner=inner, batch=2, engine=engine).net
        for engine in ("dynext", "vmap")
    )
    for (name, a), b in zip(looped.named_parameters(), vectorized.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)


def test_running_statistics_are_those_of_support_samples_in_the_end(digit_net, digit_samples) -> None:
    before = digit_net.staged.stages[0].state_dict()
    start = dx.meta.meta_train(digit_net, episodes(digit_samples[0]), config(1), batch=1)
    after = start.net.staged.stages[0].state_dict()
    means = [name for name in before if name.endswith("running_mean")]
    assert means
    assert not any(torch.equal(before[name], after[name]) for name in means)


def test_a_start_comes_back_from_its_file(digit_net, digit_samples, tmp_path: Path) -> None:
    inner = dx.meta.InnerLoop.of("meta_sgd", steps=1, adapts="head", bn="per_step")
    start = dx.meta.meta_train(digit_net, episodes(digit_samples[0]), config(1), inner=inner, batch=1)
    again = dx.meta.MetaStart.read(start.write(tmp_path / "start.safetensors"), start.net)
    assert again.inner == inner
    for kept in ("step_sizes", "statistics"):
        mine, theirs = getattr(start, kept), getattr(again, kept)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    (tmp_path / "broken").write_bytes(b"no")
    for path in (tmp_path / "broken", tmp_path / "absent"):
        with pytest.raises(ArtifactError, match="cannot be read as a meta-learned start"):
            dx.meta.MetaStart.read(path, start.net)
    wider = dx.attach(start.net.staged, dx.heads.conv_heads(3, hidden=9, separable=0), at=[0, 1])
    with pytest.raises(ArtifactError, match=r"another net \(exits.0.* has shape \(3, 72\) there, \(3, 81\) is"):
        dx.meta.MetaStart.read(tmp_path / "start.safetensors", wider)
    other = dx.attach(start.net.staged, dx.heads.conv_heads(3, hidden=8), at=[0])
    with pytest.raises(ArtifactError, match="belongs to another net"):
        dx.meta.MetaStart.read(tmp_path / "start.safetensors", other)


def test_what_cannot_be_trained_is_refused(digit_net, digit_samples) -> None:
    base, _ = digit_samples
    with pytest.raises(FitError, match="4-way episodes for a net of 3 classes; make it one of 4"):
        dx.meta.meta_train(digit_net, episodes(base, way=4), config(1))
    with pytest.raises(FitError, match="batch=0"):
        dx.meta.meta_train(digit_net, episodes(base), config(1), batch=0)
    with pytest.raises(FitError, match="trunk='Frozen'; give 'learned' or 'frozen'"):
        dx.meta.meta_train(digit_net, episodes(base), config(1), trunk="Frozen")
    with pytest.raises(FitError, match="give each task its own list of exits"):
        dx.meta.meta_train(digit_net, episodes(base), config(1), exits=[0, 1])
    for inner in (dx.meta.InnerLoop.of("reptile"), dx.meta.InnerLoop(bn="per_step")):
        with pytest.raises(FitError, match="is done by our own loop alone; leave engine='vmap' out"):
            dx.meta.meta_train(digit_net, episodes(base), config(1), inner=inner, engine="vmap")
    inner = dx.meta.InnerLoop.of("prototypes")
    with pytest.raises(FitError, match="vmap does first- and second-order loops .* rule='prototypes'"):
        dx.meta.meta_train(digit_net, episodes(base), config(1), inner=inner, engine="vmap")
    with pytest.raises(FitError, match="batch_size means nothing to meta_train; give batch="):
        dx.meta.meta_train(digit_net, episodes(base), batch_size=8)
    wide = dx.data.Episodes(rows=dx.data.digits(side=9), way=3)
    with pytest.raises(SourceError, match=r"samples of shape \(1, 9, 9\); the model expects \(1, 8, 8\)"):
        dx.meta.meta_train(digit_net, wide, config(1))


def test_same_classes_make_exits_the_only_tasks(digit_net, digit_samples) -> None:
    base = dx.data.split_classes(digit_samples[0], [3])[0]
    start = dx.meta.meta_train(digit_net, dx.data.SameClasses(rows=base, support=8, query=8), config(1), batch=1)
    assert start.net.num_classes == 3


def test_a_class_that_a_draw_lacks_does_not_count(digit_net, digit_samples) -> None:
    three = dx.data.SameClasses(rows=dx.data.split_classes(digit_samples[0], [3])[0], support=2, query=6)
    drawn = set(three.draw(torch.Generator().manual_seed(0)).support.y.tolist())
    assert len(drawn) < 3
    start = dx.meta.meta_train(digit_net, three, config(2), inner=dx.meta.InnerLoop.of("prototypes"), batch=1)
    assert all(p.isfinite().all() for p in start.net.parameters())


class TestFusion:
    """Meta-GF."""

    def test_the_fused_parameters_are_weighted_means_over_the_exits_that_use_them(self, digit_net) -> None:
        fusion = Fusion(digit_net)
        with torch.no_grad():
            fusion.weights.copy_(torch.randn(fusion.weights.shape, generator=torch.Generator().manual_seed(0)))
        experts = [
            {name: torch.full_like(digit_net.get_parameter(name), float(e + 1)) for name in fusion.uses[e]}
            for e in range(3)
        ]
        fused = fusion.fused(experts)
        for n, name in enumerate(fusion.names):
            users = [e for e in range(3) if name in experts[e]]
            share = fusion.weights[:, n].detach().sigmoid()
            wanted = sum(float(share[e]) * (e + 1) for e in users) / sum(float(share[e]) for e in users)
            torch.testing.assert_close(fused[name].detach(), torch.full_like(experts[users[0]][name], wanted))

    def test_it_learns_and_leaves_the_original_alone(self, digit_net, digit_samples) -> None:
        samples = dx.data.split_classes(digit_samples[0], [3])[0]
        before = state_of(digit_net)
        fused = dx.meta.meta_fusion(digit_net, samples, config(12), batch_size=32)
        assert_untouched(digit_net, before)
        right = [dx.collect(net, samples).right_ne.double().mean() for net in (digit_net, fused)]
        assert right[1] > right[0] + 0.1
        assert all(p.requires_grad for p in fused.parameters())
        with pytest.raises(FitError, match="inner_steps=0"):
            dx.meta.meta_fusion(digit_net, samples, config(1), inner_steps=0)


class TestWeights:
    """L2W-DEN."""

    def test_samples_leave_by_quota(self) -> None:
        sure = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
        share = (0.5, 0.3, 0.2)
        assert leaving(sure, share).tolist() == reference.leaving(sure.numpy(), share).tolist()

    def test_weights_have_mean_one(self) -> None:
        weight = sample_weights(torch.rand(8, 3, generator=torch.Generator().manual_seed(0)), 0.8)
        assert float(weight.mean()) == pytest.approx(1)
        assert float(weight.max() - weight.min()) < 0.8 + 1e-6

    def test_each_net_gets_its_own_gradient(self, digit_net, digit_samples) -> None:
        batch = dx.data.split_classes(digit_samples[0], [3])[0].take(torch.arange(0, 300, 10))
        half = len(batch.x) // 2
        weighed = WeighedLoss(digit_net, strength=0.0, q=0.5, pseudo_lr=0.1, hidden=4)
        weighed(batch.x[:half], batch.y[:half], batch.x[half:], batch.y[half:]).backward()
        grads = {name: p.grad.clone() for name, p in digit_net.named_parameters()}
        digit_net.zero_grad()
        with batch_statistics(digit_net):
            logits_bek = digit_net.all_exits(batch.x[:half])
        losses = [torch.nn.functional.cross_entropy(logits, batch.y[:half]) for logits in logits_bek.unbind(1)]
        torch.stack(losses).sum().backward()  # of strength 0: plain joint training
        for name, p in digit_net.named_parameters():
            torch.testing.assert_close(grads[name], p.grad, msg=name)
        assert all(p.grad is not None and not p.grad.any() for p in weighed.weigher.parameters())
        strong = WeighedLoss(digit_net, strength=0.8, q=0.5, pseudo_lr=0.1, hidden=4)
        strong(batch.x[:half], batch.y[:half], batch.x[half:], batch.y[half:]).backward()
        assert any(p.grad.any() for p in strong.weigher.parameters())

    def test_it_learns(self, digit_net, digit_samples) -> None:
        samples = dx.data.split_classes(digit_samples[0], [3])[0]
        before = state_of(digit_net)
        trained = dx.meta.weigh_samples(digit_net, samples, config(12), batch_size=32)
        assert_untouched(digit_net, before)
        right = [dx.collect(net, samples).right_ne.double().mean() for net in (digit_net, trained)]
        assert right[1] > right[0] + 0.1
        with pytest.raises(FitError, match="strength=2"):
            dx.meta.weigh_samples(digit_net, samples, config(1), strength=2)
