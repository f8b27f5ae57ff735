"""BlockDrop's two trainings: the curriculum's order, what stays frozen, what is learned."""

from dataclasses import replace

import pytest
import torch

import dynext as dx
from dynext.errors import FitError
from dynext.train.methods import blockdrop


def policy_net(static: dx.graph.StagedNet, openness: float = 1.0) -> dx.DynamicNet:
    return dx.attach_gates(static, dx.gates.policy_gates(width=4, openness=openness))


def test_gates_are_unlocked_from_the_last_and_locked_ones_run(static, train_rows, quick) -> None:
    fitting = replace(quick, steps=16, lr=1e-3)
    _, told = dx.train.blockdrop_curriculum(policy_net(static, openness=0.0), train_rows, fitting, ramp=1.0)
    assert len(told.moments) == 16
    for moment in told.moments:
        locked = 3 - moment.step // 4
        assert moment.kept[:locked] == (1.0,) * locked
        assert all(share < 1 for share in moment.kept[locked:]), "drawn from mixed probabilities, nobody runs for all"


def test_the_curriculum_learns_gates_in_a_net_that_stays_bit_for_bit(static, train_rows, test_rows, quick) -> None:
    net = policy_net(static)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trained, told = dx.train.blockdrop_curriculum(net, train_rows, replace(quick, steps=60), ramp=0.3, penalty=0.0)
    state = trained.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in before.items() if name.startswith("staged"))
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())
    keep = (0.5,) * 4
    shares = [sum(dx.collect(one, test_rows, keep=keep).skipped.kept_g) for one in (net, trained)]
    assert shares[1] < shares[0], "with nothing to lose, stages are dropped"
    assert told.moments[-1].reward > told.moments[0].reward
    strict, _ = dx.train.blockdrop_curriculum(net, train_rows, replace(quick, steps=60), ramp=0.3, penalty=50.0)
    assert sum(dx.collect(strict, test_rows, keep=keep).skipped.kept_g) > shares[1]


def test_joint_training_moves_both(static, train_rows, with_trunk) -> None:
    net = policy_net(static)
    trained, told = dx.train.blockdrop_finetune(net, train_rows, replace(with_trunk, steps=4), penalty=5.0)
    state = trained.state_dict()
    moved = {name.split(".")[0] for name, tensor in net.state_dict().items() if not torch.equal(tensor, state[name])}
    assert moved == {"staged", "gates"}
    assert told.method == "BlockDrop, joint"
    assert all(-5 <= moment.reward <= 1 for moment in told.moments)


def test_a_teacher_rewards_as_its_labels_would_where_it_is_sure(static, train_rows, quick) -> None:
    sure = train_rows.unlabelled()
    _, told = dx.train.blockdrop_curriculum(
        policy_net(static), sure, replace(quick, steps=3), teacher=static, penalty=5.0
    )
    assert all(-5 <= moment.reward <= 1 for moment in told.moments)
    assert told.moments[0].baseline <= 1


def test_the_baseline_is_the_reward_of_the_greedy_path(static, train_rows, quick, monkeypatch) -> None:
    """By hand: what the greedy decisions of the same gates earn on the same samples."""
    seen = []
    reward = blockdrop.blockdrop_reward

    def watched(run_bg, right_b, penalty):
        seen.append((run_bg, right_b))
        return reward(run_bg, right_b, penalty)

    monkeypatch.setattr(blockdrop, "blockdrop_reward", watched)
    net = policy_net(static, openness=3.0)
    _, told = dx.train.blockdrop_curriculum(net, train_rows, replace(quick, steps=1), ramp=1e-9, penalty=2.0)
    (drawn, _), (usual, right) = seen
    assert drawn.mean() < usual.mean() == 1, "greedy decisions of wide open gates run everything, drawn ones do not"
    assert told.moments[0].baseline == pytest.approx(float(reward(usual, right, 2.0).mean()))


def test_what_cannot_be_trained_is_told(static, train_rows, quick) -> None:
    with pytest.raises(FitError, match="penalty=-1"):
        dx.train.blockdrop_curriculum(policy_net(static), train_rows, quick, penalty=-1)
    with pytest.raises(FitError, match="ramp=0"):
        dx.train.blockdrop_curriculum(policy_net(static), train_rows, quick, ramp=0)
