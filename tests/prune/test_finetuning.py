"""A smaller net learns from the one it was: the loss as written, samples of every kind, the teacher left alone."""

import importlib
from contextlib import nullcontext

import pytest
import torch
from methods import METHODS, SPEC, config, setting
from reference import maps as slow

import dynext as dx
from dynext.data.indexing import by_index
from dynext.errors import FitError, PlanError
from dynext.modules.modes import batch_statistics

finetuning = importlib.import_module("dynext.prune.finetuning")


def test_a_pruned_net_is_fine_tuned_and_leaves_its_teacher_alone() -> None:
    net, samples = setting(METHODS["joint"])
    net = dx.train.joint(net, samples, config(40))
    teacher = net.staged
    small = dx.prune.apply_plan(net, dx.prune.rank(net, budget=0.6))
    bank = dx.synthesize(teacher, shape=(3, 8, 8), n=32, seed=0, spec=SPEC, method="gaussian")
    before = {key: value.clone() for key, value in [*small.state_dict().items(), *teacher.state_dict().items()]}
    random = torch.get_rng_state()
    x = samples.take(torch.arange(64)).x
    for source in (samples, samples.unlabelled(), bank):
        tuned = dx.prune.finetune(small, teacher, source, config(30))
        if source is not bank:
            with torch.no_grad():
                far, near = (dx.losses.distillation(model(x), teacher(x), 4.0) for model in (small, tuned))
            assert near < far
        else:
            buffers = dict(small.staged.named_buffers())
            assert all(torch.equal(value, buffers[key]) for key, value in tuned.staged.named_buffers())
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in [*small.state_dict().items(), *teacher.state_dict().items()])
    with pytest.raises(FitError, match="8 bits"):
        dx.prune.finetune(dx.prune.quantize(small, samples, least_macs=0), teacher, samples, config())
    with pytest.raises(FitError, match="alpha 3"):
        dx.prune.finetune(small, teacher, samples, config(), alpha=3)
    with pytest.raises(FitError, match="norms='loose'"):
        dx.prune.finetune(small, teacher, samples, config(), norms="loose")


def test_the_loss_of_fine_tuning_is_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    net, samples = setting(METHODS["joint"], n=16)
    teacher = dx.train.joint(net, samples, config(10)).staged
    bank = dx.synthesize(teacher, shape=(3, 8, 8), n=16, seed=0, spec=SPEC, method="gaussian")
    steps = []
    monkeypatch.setattr(finetuning, "fit", lambda module, step, config, **modes: steps.append((module, step)))
    for source, y in ((samples, samples.y), (samples.unlabelled(), None), (bank, None)):
        dx.prune.finetune(net, teacher, source, config(), temperature=3.0, alpha=0.3, batch_size=8)
        module, step = steps.pop()
        loss = step(module.eval(), torch.Generator().manual_seed(3), 0.0)
        index = torch.randint(16, (8,), generator=torch.Generator().manual_seed(3))
        x = by_index(source)(index).x
        with torch.no_grad():
            logits_ebk = module.all_exits(x).double().numpy().swapaxes(0, 1)
            with batch_statistics(teacher) if source is bank else nullcontext():
                taught = teacher(x).double().numpy()
        labels = None if y is None else y[index].numpy()
        wanted = sum(slow.truth(logits, taught, labels, 3.0, 0.3) for logits in logits_ebk)
        torch.testing.assert_close(float(loss.detach()), wanted, rtol=1e-4, atol=1e-5)


def test_options_are_fields_of_a_config() -> None:
    net, samples = setting(METHODS["joint"], n=16)
    usual = dx.FitConfig(steps=2, lr=5e-3, seed=1, batch_size=8, progress=False)
    wanted = dx.prune.finetune(net, net.staged, samples, usual).state_dict()
    for tuned in (
        dx.prune.finetune(net, net.staged, samples, steps=2, lr=5e-3, seed=1, batch_size=8, progress=False),
        dx.prune.finetune(net, net.staged, samples, config(2), seed=1, batch_size=8),
    ):
        assert all(torch.equal(value, wanted[key]) for key, value in tuned.state_dict().items())
    with pytest.raises(FitError, match="there is no option step; did you mean steps="):
        dx.prune.finetune(net, net.staged, samples, step=2)


def test_one_call_ranks_cuts_tunes_and_quantizes() -> None:
    net, samples = setting(METHODS["joint"], n=32)
    remove = dx.prune.Removal(budget=0.7)
    pruned = dx.prune.make_smaller(
        net, samples, remove=remove, held_out=samples.subset(torch.arange(8)), steps=2, batch_size=8, progress=False
    )
    assert pruned.plan == dx.prune.rank(net, budget=0.7)
    assert (pruned.rows, pruned.net.int8) == (8, None)
    wanted = dx.prune.finetune(
        dx.prune.apply_plan(net, pruned.plan), net.staged, samples, steps=2, batch_size=8, progress=False
    )
    assert all(torch.equal(value, wanted.state_dict()[key]) for key, value in pruned.net.state_dict().items())
    with pytest.raises(PlanError, match="budget 0.0"):
        dx.prune.Removal(budget=0.0)
    with pytest.raises(FitError, match="bits='int4'"):
        dx.prune.make_smaller(net, samples, remove=remove, bits="int4")


def test_a_compact_net_learns_from_a_teacher() -> None:
    net, samples = setting(METHODS["joint"])
    with dx.seeded(0):
        compact = dx.models.SqueezeNet(10, width=0.1).eval()
    before = {key: value.clone() for key, value in compact.state_dict().items()}
    x = samples.take(torch.arange(64)).x
    taught = dx.prune.distill_static(compact, net.staged, samples, config(30))
    with torch.no_grad():
        far, near = (torch.nn.functional.cross_entropy(model(x), samples.y) for model in (compact, taught))
    assert near < far
    assert all(torch.equal(value, before[key]) for key, value in compact.state_dict().items())
    with pytest.raises(FitError, match="the teacher answers"):
        dx.prune.distill_static(dx.models.SqueezeNet(4, width=0.1).eval(), net.staged, samples, config())
