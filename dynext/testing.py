"""Conformance kit for plug-in authors: run these on a net, head, gates or source; what fails says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from dynext.data.promises import broken_promises
from dynext.data.sources import as_source
from dynext.errors import DynextError
from dynext.fitting import FitConfig
from dynext.graph.macs import count_macs
from dynext.modules.exits import Exit, build_exit, exit_macs
from dynext.modules.own_parts import noise
from dynext.net.collect import table_of
from dynext.net.dynamic_net import DynamicNet
from dynext.net.given_heads import HeadsGiven, Place, made_heads
from dynext.net.masked_pass import gated, gates_of, greedy, trunk_macs
from dynext.net.own_checks import check_own_gates
from dynext.policy.policy import Policy
from dynext.policy.table import simulate
from dynext.seeding import generator
from dynext.types import Data, InputSpec, Prediction, Source
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.synth.bn_statistics import in_full
from dynext.zeroshot.synth.method import Method, Work
from dynext.zeroshot.synth.quality import quality
from dynext.zeroshot.synth.registry import chosen
from dynext.zeroshot.synth.synthesize import fingerprint, synthesize


class ConformanceError(DynextError, AssertionError):
    """A net or a source breaks a promise that the rest of dynext counts on."""


def check_net(net: DynamicNet, x: Tensor, *, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """The invariants of a dynamic net on samples ``x [b ...]``, b at least 4.

    Exits agree in shape; never leaving gives ``net(x)``, always leaving exit 0; with half the samples leaving at each
    exit, a batch answers like its samples alone, in any order; predicted MACs are the observed ones; nothing in the net
    changes.

    Raises:
        ConformanceError: names the promise that is broken.
    """
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        all_bek, final = net.all_exits(x), net(x)
    _expect(all_bek.shape == (len(x), net.num_exits, net.num_classes), f"all_exits gives {tuple(all_bek.shape)}")
    _close(all_bek[:, -1], final, "the last exit is not forward(x)", rtol, atol)
    _check_exit_costs(net, x[:2])
    never = net.run(x, Policy.never(net.num_exits))
    _close(never.logits, final, "a policy by which no sample leaves does not give forward(x)", rtol, atol)
    always = net.run(x, Policy.always(net.num_exits))
    _close(always.logits, all_bek[:, 0], "a policy by which every sample leaves does not give exit 0", rtol, atol)
    confidence_be = all_bek.float().softmax(-1).amax(-1)
    threshold_e = confidence_be.median(dim=0).values.tolist()
    policy = Policy(threshold_e=(*threshold_e[:-1], 0.0), temperature_e=(1.0,) * net.num_exits)
    # Kernels may differ in the last bit with the number of samples: samples on a threshold prove nothing.
    clear = ((confidence_be - torch.tensor(policy.threshold_e)).abs() > 1e-4).all(1).nonzero()[:, 0]
    whole, turned = net.run(x, policy), net.run(x.flip(0), policy)
    predicted = simulate(table_of(net, all_bek.float().cpu(), label_n=None, rows="check"), policy)
    for i in clear.tolist():
        alone = net.run(x[i : i + 1], policy)
        _expect(int(alone.exit) == int(whole.exit[i]), f"sample {i} leaves elsewhere alone than in a batch")
        _expect(int(turned.exit[-1 - i]) == int(whole.exit[i]), f"sample {i} leaves elsewhere in another order")
        _expect(int(predicted.exit_n[i]) == int(whole.exit[i]), f"sample {i} leaves elsewhere than its table says")
        _close(whole.logits[i], all_bek[i, int(whole.exit[i])], f"sample {i} is not answered by its exit", rtol, atol)
        _expect(int(predicted.macs_n[i]) == int(whole.macs[i]), f"sample {i}: predicted MACs are not the observed ones")
        _close(alone.logits[0], whole.logits[i], f"sample {i} is answered otherwise alone than in a batch", rtol, atol)
    same = all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    _expect(same, "running the net changed its parameters or buffers")


@torch.no_grad()
def _check_exit_costs(net: DynamicNet, x: Tensor) -> None:
    """Exits in 8 bits are left out: torch does not count their kernels, whose MACs are the float layers'."""
    taps, _ = net.taps(x)
    for exit, tap in zip(net.exits, taps, strict=True):
        counted = 0 if net.int8 is not None else count_macs(exit, tap)
        _expect(
            not counted or counted == exit.macs,
            f"the exit after {exit.name} says {exit.macs:,} MACs and spends {counted:,}; let dx.attach make it, which "
            f"takes any nn.Module as a head",
        )


def check_head(head: HeadsGiven, *, tap_shape: Sequence[int], num_classes: int) -> None:
    """The promises of a head of your own, as `dynext.attach` takes it, on a tap of a shape (of one sample).

    It gives logits ``[b k]``, each sample's by itself and the same each time in evaluation, and leaves the tap as it
    was; all that it learns gets a gradient; its MACs are counted; built again, it takes its own weights back; what its
    exit caches, embeds and classifies comes to its own answer.

    Raises:
        ConformanceError: names the promise that is broken, and what to write instead.
    """
    tap = tuple(tap_shape)
    place = Place("the tap", tap, num_classes, 10**12, torch.empty(0))
    try:
        made, again = made_heads(head, [place])[0], made_heads(head, [place])[0]
    except DynextError as error:
        raise ConformanceError(str(error)) from error
    exit = build_exit(made.spec, after=0, name="tap", own=made.own).eval()
    x = noise(exit, tap, count=4)
    _expect(exit_macs(exit, x[:2]) > 0, "no MACs are counted, and it holds no numbers that could be")
    _check_gradients(exit, x)
    if made.own is not None:
        other = build_exit(again.spec, after=0, name="tap", own=again.own).eval()
        theirs, own = (one.state_dict() for one in (other, exit))
        same = theirs.keys() == own.keys() and all(theirs[name].shape == own[name].shape for name in own)
        _expect(same, "made again for the same tap it has other parameters; dynext.load could not fill these")
        other.load_state_dict(own)
        _close(other(x), exit(x), "made again, with the same weights it answers otherwise", 1e-4, 1e-5)


def _check_gradients(exit: Exit, x: Tensor) -> None:
    learned = {name: p for name, p in exit.named_parameters() if p.requires_grad}
    _expect(bool(learned), "it has no parameter that learns; end it in nn.Linear")
    with torch.enable_grad():
        logits_bk = exit(x)
        _expect(bool(torch.isfinite(logits_bk).all()), "it answers NaN or infinity to noise")
        grads = torch.autograd.grad(logits_bk.square().sum(), list(learned.values()), allow_unused=True)
    idle = [name for name, grad in zip(learned, grads, strict=True) if grad is None]
    _expect(not idle, f"{', '.join(idle)} play no part in its answer; leave them out, or set requires_grad=False")


def check_gates(net: DynamicNet, x: Tensor, *, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """The invariants of a net with gates on samples ``x [b ...]``, b at least 4; gates of your own too.

    Asking no sample to skip gives ``net(x)``; with each gate's threshold at its median, a batch answers like its
    samples alone, in any order, and as the masked pass says; predicted MACs are the observed ones; nothing in the net
    or the samples changes.

    Raises:
        ConformanceError: names the promise that is broken. PolicyError: the net has no gates.
    """
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    kept_x = x.clone()
    _check_gate_costs(net)
    with torch.no_grad():
        final, (keep_g, clear) = net(x), halving_rule(net, x)
        passed = gated(net, x, greedy(keep_g))
    nobody = net.run(x, Policy.skipping(net.num_exits, net.num_gates, keep=0.0))
    _close(nobody.logits, final, "a policy by which no sample skips does not give forward(x)", rtol, atol)
    policy = replace(Policy.never(net.num_exits), keep_g=keep_g)
    whole, turned = net.run(x, policy), net.run(x.flip(0), policy)
    predicted = trunk_macs(net, passed.run_bg, keep_g)[:, -1]
    for i in clear.tolist():
        alone = net.run(x[i : i + 1], policy)
        _expect(torch.equal(_ran(alone)[0], _ran(whole)[i]), f"sample {i} skips other stages alone than in a batch")
        _expect(torch.equal(_ran(turned)[-1 - i], _ran(whole)[i]), f"sample {i} skips other stages in another order")
        _expect(
            torch.equal(passed.run_bg[i] > 0, _ran(whole)[i]), f"sample {i} skips other stages than the masked pass"
        )
        _expect(int(predicted[i]) == int(whole.macs[i]), f"sample {i}: predicted MACs are not the observed ones")
        _expect(int(alone.macs) == int(whole.macs[i]), f"sample {i} costs something else alone than in a batch")
        _close(whole.logits[i], passed.logits_bk[i], f"sample {i} is not answered as the masked pass does", rtol, atol)
        _close(alone.logits[0], whole.logits[i], f"sample {i} is answered otherwise alone than in a batch", rtol, atol)
    same = all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    _expect(same and torch.equal(kept_x, x), "running the net changed its parameters or buffers, or the samples")


def _check_gate_costs(net: DynamicNet) -> None:
    gates = gates_of(net)
    _expect(len(gates.macs_g) == len(gates), f"{len(gates.macs_g)} costs for {len(gates)} gates")
    if gates.own is not None:
        try:
            check_own_gates(gates.body, gates.spec["taps"], gates.spec["input"], "gates")
        except DynextError as error:
            raise ConformanceError(str(error)) from error
        _expect(gates.start_macs + sum(gates.macs_g) > 0, "no MACs of the gates are counted, as they hold no numbers")


@torch.no_grad()
def halving_rule(net: DynamicNet, x: Tensor) -> tuple[tuple[float, ...], Tensor]:
    """Thresholds by which each gate skips its stage for about half of the samples ``x``, and the numbers of the samples
    whose probabilities are clear of all of them.

    Kernels may differ in the last bit with the number of samples: a sample on a threshold proves nothing.
    """
    keep_g: list[float] = []
    clear_b = torch.ones(len(x), dtype=torch.bool)
    for g in range(net.num_gates):
        passed = gated(net, x, greedy([*keep_g, *[0.0] * (net.num_gates - g)]))
        probability_b = passed.logit_bg[:, g].double().sigmoid().cpu()
        keep_g.append(float(probability_b.sort().values[len(x) // 2 - 1 :][:2].mean()))
        clear_b &= (probability_b - keep_g[-1]).abs() > 1e-5
    return tuple(keep_g), clear_b.nonzero()[:, 0]


def _ran(prediction: Prediction) -> Tensor:
    if prediction.ran is None:
        raise ConformanceError("a run with gates does not say which stages ran")
    return prediction.ran


def check_source(
    source: Data, spec: InputSpec | Sequence[int] | None = None, *, num_classes: int | None = None
) -> None:
    """The promises of a source, over all its samples: batches of one shape and finite floats, as many samples as it
    says, the same ones in the same order each time, labels that are class numbers; with a ``spec`` (the source's own
    without one) pixels that are normalized once, and by it.

    Args:
        source: or whatever `dynext.data.as_source` makes one of.
        spec: what the net expects, or the shape of its samples alone.
        num_classes: how many classes labels are of.

    Raises:
        ConformanceError: names the promise that is broken. SourceError: nothing that holds samples.
    """
    told = spec if isinstance(spec, InputSpec) else None
    lacking = [name for name in ("shape", "bn", "__len__", "__iter__") if not hasattr(source, name)]
    if told is None and lacking:
        raise ConformanceError(f"a {type(source).__name__} is no source, it lacks {', '.join(lacking)}")
    if lacking:
        source = as_source(source, told)
    own = getattr(source, "spec", None)
    told = told or (own if isinstance(own, InputSpec) else None)
    shape = tuple(source.shape if spec is None else spec.shape if isinstance(spec, InputSpec) else spec)
    for broken in broken_promises(source, shape, told, num_classes):
        raise ConformanceError(broken)


def check_synthesizer(
    method: Method, teacher: nn.Module, spec: InputSpec, *, seed: int = 0, n: int = 8, **options: Any
) -> None:
    """The promises of a method of synthesis (`dynext.zeroshot.synth.foreign`): a name, or a function.

    Chunks of ``n`` samples have the right shape, are finite and normalized; they follow the seed and nothing else, each
    without the chunks before it, so that a synthesis that was killed can go on; they differ from each other; teacher
    and global random state stay as they are; and a bank of them can be kept, opened and measured.

    Raises:
        ConformanceError: names the promise that is broken. SourceError: the method fails, or gives no samples.
    """
    state, random = fingerprint(teacher), torch.get_rng_state()
    once = _chunks(method, teacher, spec, seed, n, options)
    again = _chunks(method, teacher, spec, seed, n, options)
    x, later = once(seed), once(seed + 1)
    _expect(tuple(x.shape) == (n, *spec.shape), f"{n} samples asked for, {tuple(x.shape)} given")
    _expect(torch.equal(again(seed + 1), later), "a chunk is another one where those before it were not made")
    _expect(torch.equal(once(seed), x), "the same generator gives other samples the second time")
    _expect(not torch.equal(x, later), "another generator gives the very same samples")
    _expect(n < 2 or bool((x[1:] != x[:1]).any()), f"the {n} samples of a chunk are all the same")
    with TemporaryDirectory() as folder:
        arguments: dict[str, Any] = {"shape": spec.shape, "spec": spec, "seed": seed, "method": method, **options}
        bank = synthesize(teacher, n=n, folder=Path(folder) / "bank", progress=False, **arguments)
        kept = Bank.open(Path(folder) / "bank")
        _expect(kept.provenance == bank.provenance, "a bank that is opened again tells of another method")
        check_source(kept, spec.shape)
        quality(kept, teacher)
    _expect(fingerprint(teacher) == state, "the teacher's parameters or buffers were changed")
    _expect(torch.equal(torch.get_rng_state(), random), "the global random state was changed")


def _chunks(
    method: Method, teacher: nn.Module, spec: InputSpec, seed: int, n: int, options: dict[str, Any]
) -> Callable[[int], Tensor]:
    """Makes a chunk of ``n`` samples of the method by a generator's seed."""
    sampler = chosen(method).make(in_full(teacher), spec, seed, **options).prepare(Work(progress=False))
    return lambda own: sampler.sample(n, generator(own))


Trained = DynamicNet | tuple[DynamicNet, Policy]


def check_method(
    method: Callable[[DynamicNet, Source, FitConfig], Trained], net: DynamicNet, source: Source, *, steps: int = 4
) -> None:
    """The promises of a method that trains exits: a function ``(net, source, config)``.

    A loss of one's own is one by ``functools.partial(dx.train.exits, loss=...)``. The method gives a trained copy, or
    that and a policy; its net is one like any other (`check_net`); the net it was given, its training flags and the
    global random state stay as they are; the same config gives the same net, and a run that was finished is not run
    again.

    Raises:
        ConformanceError: names the promise that is broken.
    """
    state, random = fingerprint(net), torch.get_rng_state()
    flags = [(part.training, [p.requires_grad for p in part.parameters()]) for part in net.modules()]
    config = FitConfig(steps=steps, progress=False)
    with TemporaryDirectory() as folder:
        kept = replace(config, checkpoint=Path(folder) / "run.ckpt")
        student = _trained(method(net, source, kept))
        _expect(fingerprint(net) == state, "the net that it was given was changed; train a copy")
        _expect(student is not net, "it gives the very net that it was given; train a copy")
        now = [(part.training, [p.requires_grad for p in part.parameters()]) for part in net.modules()]
        _expect(now == flags, "training flags of the net that it was given were changed")
        _expect(torch.equal(torch.get_rng_state(), random), "the global random state was changed")
        _expect(all(bool(tensor.isfinite().all()) for tensor in student.parameters()), "weights are not finite")
        _expect(fingerprint(student) != state, f"{steps} steps change nothing")
        again = _trained(method(net, source, config))
        _expect(fingerprint(again) == fingerprint(student), "the same config gives another net the second time")
        resumed = _trained(method(net, source, kept))
        _expect(fingerprint(resumed) == fingerprint(student), "a run that was finished gives another net when resumed")
    check_net(student, next(iter(source)).x[:12].to(next(student.parameters())))


def _trained(result: object) -> DynamicNet:
    net = result[0] if isinstance(result, tuple) and result else result
    if not isinstance(net, DynamicNet):
        raise ConformanceError(f"it gives a {type(result).__name__}; give a DynamicNet, or that and a Policy")
    return net


def _expect(holds: bool, broken: str) -> None:
    if not holds:
        raise ConformanceError(broken)


def _close(given: Tensor, wanted: Tensor, broken: str, rtol: float, atol: float) -> None:
    _expect(torch.allclose(given.float(), wanted.float(), rtol=rtol, atol=atol), broken)
