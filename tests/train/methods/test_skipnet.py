"""SkipNet's two trainings learn to skip, repeat themselves, are resumed, and leave alone what they should."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import dynext as dx
from dynext.errors import FitError, SourceError
from dynext.train import gate_loop


def kept(net: dx.DynamicNet, samples: dx.data.Samples) -> tuple[float, float]:
    """Mean share of gated stages that run, and accuracy."""
    policy = dx.Policy.skipping(net.num_exits, net.num_gates)
    report = dx.report(dx.collect(net, samples, keep=policy.keep_g), policy)
    return sum(report.kept) / len(report.kept), report.accuracy


@pytest.mark.parametrize(
    "kind", [dx.gates.recurrent_gates(), dx.gates.feedforward_gates("I")], ids=["recurrent", "feedforward"]
)
def test_a_price_makes_stages_skipped_while_the_job_is_still_done(
    kind, static, train_samples, test_samples, with_trunk
) -> None:
    net = dx.attach_gates(static, kind)
    before, right = kept(net, test_samples)
    assert before > 0.9
    assert right > 0.9, "the static net knows its job, else this says nothing"
    trained, history = dx.train.skipnet_pretrain(net, train_samples, with_trunk, steps=80, price=1.0)
    after, still_right = kept(trained, test_samples)
    assert after < 0.7
    assert still_right > 0.8
    assert history.records[0].kept == pytest.approx([1.0] * 4, abs=0.2)
    assert "SkipNet, supervised, 80 steps" in str(history)


def test_without_a_trunks_rate_the_trunk_stays_bit_for_bit(static, train_samples, quick) -> None:
    net = dx.attach_gates(static, dx.gates.recurrent_gates())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flags, rng = [m.training for m in net.modules()], torch.get_rng_state()
    for train in (dx.train.skipnet_pretrain, dx.train.skipnet_reinforce):
        trained, _ = train(net, train_samples, quick)
        state = trained.state_dict()
        same = {name for name, tensor in before.items() if torch.equal(tensor, state[name])}
        assert {name for name in before if name.startswith("staged")} <= same
        assert any(name not in same for name in before if name.startswith("gates"))
        assert flags == [m.training for m in trained.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items()), (
        "verbs change no argument"
    )
    assert torch.equal(rng, torch.get_rng_state())


def test_from_labels_the_trunks_statistics_move_and_from_a_teacher_they_do_not(
    static, train_samples, with_trunk
) -> None:
    net = dx.attach_gates(static, dx.gates.recurrent_gates())
    buffers = dict(net.staged.named_buffers())
    moved = [
        any(not torch.equal(buffer, buffers[name]) for name, buffer in trained.staged.named_buffers())
        for trained, _ in (
            dx.train.skipnet_pretrain(net, train_samples, with_trunk),
            dx.train.skipnet_pretrain(net, train_samples.unlabelled(), with_trunk, teacher=static),
            dx.train.skipnet_pretrain(net, train_samples.unlabelled(), with_trunk, bn="batch", teacher=static),
        )
    ]
    assert moved == [True, False, False]


def test_reward_of_skipping_makes_stages_skipped(static, train_samples, test_samples, quick) -> None:
    net = dx.attach_gates(static, dx.gates.recurrent_gates(openness=1.0))
    config, reward = replace(quick, steps=60, lr=2e-2), dx.train.SkipNetReward(alpha=5.0, weight=1.0, baseline=True)
    greedy, history = dx.train.skipnet_reinforce(net, train_samples, config, reward=reward)
    assert kept(greedy, test_samples)[0] < kept(net, test_samples)[0]
    first, last = history.records[0], history.records[-1]
    assert sum(last.kept) < sum(first.kept)
    assert last.reward > first.reward
    assert abs(last.reward - last.baseline) < 0.1, "the mean of the others is, on average, one's own"
    careful, _ = dx.train.skipnet_reinforce(net, train_samples, config, reward=replace(reward, alpha=0.0))
    assert kept(careful, test_samples)[0] > kept(greedy, test_samples)[0]


@pytest.mark.parametrize("method", ["pretrain", "reinforce"])
def test_the_same_seed_gives_the_same_gates_and_a_killed_run_goes_on(
    method: str, static, train_samples, with_trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"pretrain": dx.train.skipnet_pretrain, "reinforce": dx.train.skipnet_reinforce}[method]
    net = dx.attach_gates(static, dx.gates.recurrent_gates())
    whole, history = train(net, train_samples, with_trunk)
    again, _ = train(net, train_samples, with_trunk)
    assert_close(whole.state_dict(), again.state_dict(), rtol=0, atol=0)
    other, _ = train(net, train_samples, replace(with_trunk, seed=1))
    assert not torch.equal(whole.gates.body.decide.weight, other.gates.body.decide.weight)

    saved = replace(with_trunk, checkpoint=tmp_path / "run.ckpt", checkpoint_seconds=0.0)
    record = gate_loop.GateStep.record

    def dying(self: gate_loop.GateStep, step: int) -> gate_loop.StepRecord:
        if step == 17:
            raise KeyboardInterrupt
        return record(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(gate_loop.GateStep, "record", dying)
        with pytest.raises(KeyboardInterrupt):
            train(net, train_samples, saved)
    resumed, continued = train(net, train_samples, saved)
    assert continued.resumed_at == 17
    assert continued.records == history.records
    assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    with pytest.raises(FitError, match="belongs to another run"):
        train(net, train_samples, replace(saved, trunk_lr=2e-3))
    with pytest.raises(FitError, match="augmented was False, is True"):
        train(net, train_samples, saved, augment=dx.data.augment)


def test_checkpoints_know_a_run_by_what_version_0_1_wrote_of_it(
    static, train_samples, with_trunk, tmp_path: Path
) -> None:
    net = dx.attach_gates(static, dx.gates.recurrent_gates())
    saved = replace(with_trunk, steps=1, checkpoint=tmp_path / "run.ckpt")
    dx.train.skipnet_pretrain(net, train_samples, saved, price=0.5, augment=dx.data.augment)
    state = torch.load(saved.checkpoint, weights_only=True)
    assert (state["identity"]["label"], state["identity"]["about"]) == ("SkipNet, supervised", "400 rows")
    gates = state["module"]["_extra_state"]
    figures = {"price": 0.5, "trunk_lr": 1e-3, "batch_size": 64, "weight_decay": 0.0, "augmented": True, "bn": "frozen"}
    assert gates["options"] == figures
    assert [set(moment) for moment in gates["moments"]] == [{"step", "loss", "reward", "baseline", "kept", "paths"}]


def test_without_a_config_the_papers_rates_are_taken(static, train_samples) -> None:
    net = dx.attach_gates(static, dx.gates.recurrent_gates())
    for train in (dx.train.skipnet_pretrain, dx.train.skipnet_reinforce):
        trained, history = train(net, train_samples, steps=2, progress=False)
        assert history.steps == 2
        pairs = zip(trained.staged.parameters(), static.parameters(), strict=True)
        assert any(not torch.equal(ours, theirs) for ours, theirs in pairs), "they train the trunk as well"


def test_a_fixed_set_of_blocks_is_fine_tuned_by_the_same_verb(static, train_samples, test_samples, with_trunk) -> None:
    net = dx.attach_gates(static, dx.gates.static_gates([1, 0, 0, 1]))
    bare = kept(net, test_samples)
    tuned, _ = dx.train.skipnet_pretrain(net, train_samples, with_trunk, steps=60)
    assert kept(tuned, test_samples)[0] == bare[0] == 0.5
    assert kept(tuned, test_samples)[1] >= bare[1]
    with pytest.raises(FitError, match="nothing would be trained"):
        dx.train.skipnet_pretrain(net, train_samples, with_trunk, trunk_lr=0.0)


def test_what_cannot_be_trained_is_refused(static, train_samples, quick) -> None:
    net = dx.attach_gates(static, dx.gates.recurrent_gates())
    with pytest.raises(FitError, match="the samples have no labels; give teacher="):
        dx.train.skipnet_pretrain(net, train_samples.unlabelled(), quick)
    with pytest.raises(dx.errors.PolicyError, match="the net has no gates; attach some"):
        dx.train.skipnet_pretrain(dx.attach(static, None, at=[]), train_samples, quick)
    with pytest.raises(SourceError, match="the source has no samples; give at least 1"):
        dx.train.skipnet_pretrain(net, train_samples.subset(torch.arange(0)), quick)
    with pytest.raises(FitError, match="price=-1"):
        dx.train.skipnet_pretrain(net, train_samples, quick, price=-1)
    with pytest.raises(FitError, match="alpha=-1, weight=0.01, gamma=1.0"):
        dx.train.SkipNetReward(alpha=-1)
    with pytest.raises(FitError, match=r"there is no option trunk_lrs; did you mean trunk_lr=\?"):
        dx.train.skipnet_pretrain(net, train_samples, quick, trunk_lrs=1e-3)
