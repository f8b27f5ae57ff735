"""BlockDrop's two trainings: the curriculum's order, what stays frozen, what is learned."""

from dataclasses import replace

import pytest
import torch

import dynext as dx
from dynext.errors import FitError
from dynext.train.methods import blockdrop


def policy_net(static: dx.graph.StagedNet, openness: float = 1.0) -> dx.DynamicNet:
    return dx.attach_gates(static, dx.gates.policy_gates(width=4, openness=openness))


def test_gates_are_unlocked_from_the_last_and_locked_ones_run(static, train_samples, quick) -> None:
    slow = dx.train.Curriculum(ramp=1.0)
    _, history = dx.train.blockdrop_curriculum(
        policy_net(static, openness=0.0), train_samples, quick, curriculum=slow, steps=16, lr=1e-3
    )
    assert len(history.records) == 16
    for record in history.records:
        locked = 3 - record.step // 4
        assert record.kept[:locked] == (1.0,) * locked
        assert all(share < 1 for share in record.kept[locked:]), "drawn from mixed probabilities, no gate runs for all"


def test_the_curriculum_learns_gates_in_a_net_that_stays_bit_for_bit(
    static, train_samples, test_samples, quick
) -> None:
    net = policy_net(static)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    config, ramp = replace(quick, steps=60), dx.train.Curriculum(ramp=0.3)
    trained, history = dx.train.blockdrop_curriculum(net, train_samples, config, curriculum=ramp, penalty=0.0)
    state = trained.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in before.items() if name.startswith("staged"))
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())
    keep = (0.5,) * 4
    shares = [sum(dx.collect(one, test_samples, keep=keep).skipped.kept_g) for one in (net, trained)]
    assert shares[1] < shares[0], "with nothing to lose, stages are dropped"
    assert history.records[-1].reward > history.records[0].reward
    strict, _ = dx.train.blockdrop_curriculum(net, train_samples, config, curriculum=ramp, penalty=50.0)
    assert sum(dx.collect(strict, test_samples, keep=keep).skipped.kept_g) > shares[1]


def test_joint_training_moves_both(static, train_samples, with_trunk) -> None:
    net = policy_net(static)
    trained, history = dx.train.blockdrop_finetune(net, train_samples, replace(with_trunk, steps=4), penalty=5.0)
    state = trained.state_dict()
    moved = {name.split(".")[0] for name, tensor in net.state_dict().items() if not torch.equal(tensor, state[name])}
    assert moved == {"staged", "gates"}
    assert history.method == "BlockDrop, joint"
    assert all(-5 <= record.reward <= 1 for record in history.records)


def test_a_teacher_rewards_as_its_labels_would_where_it_is_sure(static, train_samples, quick) -> None:
    sure = train_samples.unlabelled()
    _, history = dx.train.blockdrop_curriculum(policy_net(static), sure, quick, steps=3, teacher=static, penalty=5.0)
    assert all(-5 <= record.reward <= 1 for record in history.records)
    assert history.records[0].baseline <= 1


def test_the_baseline_is_the_reward_of_the_greedy_path(static, train_samples, quick, monkeypatch) -> None:
    """By hand: what the greedy decisions of the same gates earn on the same samples."""
    rewarded = []
    reward = blockdrop.blockdrop_reward

    def watched(run_bg, right_b, penalty):
        rewarded.append((run_bg, right_b))
        return reward(run_bg, right_b, penalty)

    monkeypatch.setattr(blockdrop, "blockdrop_reward", watched)
    net = policy_net(static, openness=3.0)
    at_once = dx.train.Curriculum(ramp=1e-9)
    _, history = dx.train.blockdrop_curriculum(net, train_samples, quick, steps=1, curriculum=at_once, penalty=2.0)
    (drawn, _), (usual, right) = rewarded
    assert drawn.mean() < usual.mean() == 1, "greedy decisions of wide open gates run everything, drawn ones do not"
    assert history.records[0].baseline == pytest.approx(float(reward(usual, right, 2.0).mean()))


def test_figures_out_of_range_are_refused(static, train_samples, quick) -> None:
    with pytest.raises(FitError, match="penalty=-1"):
        dx.train.blockdrop_curriculum(policy_net(static), train_samples, quick, penalty=-1)
    with pytest.raises(FitError, match="penalty=-1"):
        dx.train.blockdrop_finetune(policy_net(static), train_samples, quick, penalty=-1)
    with pytest.raises(FitError, match="ramp=0"):
        dx.train.Curriculum(ramp=0)
    with pytest.raises(FitError, match="entropy=-1"):
        dx.train.Curriculum(entropy=-1)
