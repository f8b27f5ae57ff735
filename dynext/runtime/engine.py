"""Dynamic execution: samples skip what their gates say, and leave the batch at the first exit that is sure enough of
them.

Nothing here decides: thresholds and temperatures are the policy's. Nothing here is stored on the net.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from dynext.errors import PolicyError, SourceError
from dynext.graph.stage import LiveTensors
from dynext.modules.modes import in_evaluation
from dynext.policy.confidence import Confidence
from dynext.policy.policy import Policy
from dynext.runtime.protocol import Runnable
from dynext.runtime.skipping import Compact, Skips
from dynext.types import Prediction


@torch.inference_mode()
def run(
    net: Runnable, x: Tensor, policy: Policy, *, compact: Compact = "auto", deadline_ms: float | None = None
) -> Prediction:
    """Run samples ``x [b ...]`` through ``net``; each leaves at the first exit whose confidence reaches its threshold.

    A gated stage runs for the samples whose gate says so. Samples that do, and survivors after an exit, are gathered
    when that pays (``compact="auto"``: by ``net.cost`` where it was measured, else always). One device synchronization
    an exit, and one a gate unless all are decided at once; none a sample. The net runs in evaluation, whatever mode
    it is in. Answers come in the order of the input; ``macs`` counts the stages, heads and gates that a sample needed.
    A sample whose confidence is NaN leaves at the last exit, and one whose gate says NaN runs the stage.

    Args:
        deadline_ms: answer with the last finished exit when this time is up (looked at after each stage; the first
            exit is always finished). Exits that the policy switched off are evaluated too, as an answer in hand.

    Raises:
        PolicyError: the policy is for another number of exits or gates.
        SourceError: samples of another shape than the model expects.
    """
    _check(net, x, policy, compact)
    with in_evaluation(net):
        return _run(net, x, policy, compact, deadline_ms)


def _run(net: Runnable, x: Tensor, policy: Policy, compact: Compact, deadline_ms: float | None) -> Prediction:
    rule = policy.skip_rule
    skips = None if net.gates is None or rule is None else Skips(net.gates, rule, net.cost, compact)
    if not len(x):
        return _RunState(net, x, policy, skips is not None).prediction()
    until = None if deadline_ms is None else time.perf_counter() + deadline_ms / 1000
    exits = {exit.after: e for e, exit in enumerate(net.exits) if until or policy.threshold_e[e] is not None}
    if len(x) == 1:
        return _run_alone(net, x, policy, exits, skips, until)
    return _run_batch(net, x, policy, exits, skips, until, compact)


def _run_batch(
    net: Runnable,
    x: Tensor,
    policy: Policy,
    exits: dict[int, int],
    skips: Skips | None,
    until: float | None,
    compact: Compact,
) -> Prediction:
    """Run two samples or more.

    Args:
        exits: stage to the exit after it, for those that are evaluated.
        until: when to answer with what there is, by `time.perf_counter`.
    """
    state = _RunState(net, x, policy, skips is not None)
    if skips is not None:
        x, order = skips.begin(x)
        state.begin(order)
    live: LiveTensors = (x,)
    tap = x
    for s, stage in enumerate(net.staged.stages):
        if skips is None:
            live = stage(*live)
        else:
            run_b = skips.decision(s, tap)
            state.decide(skips.gate_of.get(s), run_b)
            live = skips.through(s, stage, live, run_b, state.open_b)
        tap = live[stage.tap]
        state.spent += stage.macs
        e = exits.get(s)
        if e is not None:
            logits = net.exits[e](tap)
            state.spent += net.exits[e].macs
            staying = state.release(e, logits, in_hand=until is not None)
            if not state.num_open:
                return state.prediction()
            if _compact_pays(net, exits, s, state.num_carried, state.num_open, compact):
                live = tuple(t[staying] for t in live)
                tap = live[stage.tap]
                state.compact(staying)
                if skips is not None:
                    skips.stay(staying)
        if until is not None and state.logits_bk is not None and time.perf_counter() > until:
            return state.prediction()
    state.answer(net.num_exits - 1, live[0])
    return state.prediction()


def _run_alone(
    net: Runnable, x: Tensor, policy: Policy, exits: dict[int, int], skips: Skips | None, until: float | None
) -> Prediction:
    """Run one sample: there is none to gather or to tell apart, and what `_RunState` holds as tensors, which would cost
    a thin net a tenth of its time, are plain numbers here.
    """
    confidence = Confidence(policy.confidence, net.num_exits)
    spent, skipped = 0, set[int]()
    if skips is not None:
        skips.begin(x)
        spent += skips.gates.start_macs
    in_hand: tuple[Tensor, int, int] | None = None  # logits, exit, MACs
    live: LiveTensors = (x,)
    tap = x
    for s, stage in enumerate(net.staged.stages):
        if skips is not None and s in skips.gate_of:
            spent += skips.gates.macs_g[skips.gate_of[s]]
            if not skips.sample_runs(s, tap):
                skipped.add(s)
        if s not in skipped:
            live = stage(*live)
            spent += stage.macs
        tap = live[stage.tap]
        e = exits.get(s)
        if e is not None:
            logits = net.exits[e](tap)
            spent += net.exits[e].macs
            if _sure(policy, confidence, e, logits):
                return _answered(net, x, policy, skips, skipped, logits, e, spent)
            if until is not None:
                in_hand = (logits, e, spent)
        if until is not None and in_hand is not None and time.perf_counter() > until:
            return _answered(net, x, policy, skips, skipped, *in_hand)
    return _answered(net, x, policy, skips, skipped, live[0], net.num_exits - 1, spent)


def _answered(
    net: Runnable, x: Tensor, policy: Policy, skips: Skips | None, skipped: set[int], logits: Tensor, e: int, macs: int
) -> Prediction:
    """What exit ``e`` answered the one sample of ``x``."""
    ran = None
    if skips is not None:
        end = net.exit_stages[e]
        ran = torch.tensor([[s <= end and s not in skipped for s in skips.gates.at]], device=x.device)
    exit_b, macs_b = (x.new_full((1,), figure, dtype=torch.int64) for figure in (e, macs))
    return Prediction(logits=logits, exit=exit_b, macs=macs_b, ran=ran, temperature_e=policy.temperature_e)


def _sure(policy: Policy, confidence: Confidence, e: int, logits: Tensor, sample_b: Tensor | None = None) -> Tensor:
    """Whether exit ``e`` is sure of each sample ``[b]``; of a sample whose confidence is NaN it is not."""
    # in float32, as in a table: dividing in half precision would round, and samples would leave elsewhere
    sure_b = confidence.step(logits.float() / policy.temperature_e[e], sample_b, e)
    threshold = policy.threshold_e[e]
    return sure_b >= (math.inf if threshold is None else threshold)


class _RunState:
    """How far one call has come: which samples the live tensors carry, which of them wait for an answer, what has been
    spent, and the answers so far.

    An exit's answer is written for all samples that wait and overwritten further on, so that an exit costs one
    synchronization (which samples stay) and a deadline finds an answer in hand.
    """

    def __init__(self, net: Runnable, x: Tensor, policy: Policy, skipping: bool) -> None:
        self.net, self.policy, self.x = net, policy, x
        self.confidence = Confidence(policy.confidence, net.num_exits)
        # No tensor before it is needed: each takes a small net's time, the more so the smaller the batch.
        self.sample_b: Tensor | None = None  # which samples are carried, in this order; None: all of them, as given
        self.open_b: Tensor | None = None  # which carried samples wait; None: all of them
        self.num_open = self.num_carried = len(x)
        self.spent = 0
        """MACs that a sample has spent by now that skipped nothing."""
        self.ran_bg: Tensor | None = None  # which gated stages each sample has run so far
        if skipping:
            self.ran_bg = torch.ones(len(x), net.num_gates, dtype=torch.bool, device=x.device)
        self.logits_bk: Tensor | None = None
        self.exit_b = self.macs_b = torch.empty(0, dtype=torch.int64, device=x.device)

    def begin(self, order: Tensor | None) -> None:
        """The gates have seen the input, and perhaps put the samples in another order."""
        gates = self.net.gates
        self.spent += 0 if gates is None else gates.start_macs
        if order is not None:
            self.sample_b = order

    def decide(self, g: int | None, run_b: Tensor | None) -> None:
        """Gate ``g`` has said which carried samples run its stage."""
        if g is not None and run_b is not None and self.ran_bg is not None and self.net.gates is not None:
            self.spent += self.net.gates.macs_g[g]
            here = slice(None) if self.sample_b is None else self.sample_b
            self.ran_bg[here, g] = run_b.to(self.ran_bg.device)

    def release(self, e: int, logits: Tensor, *, in_hand: bool) -> Tensor:
        """Let go the samples that exit ``e`` is sure of; gives the positions, among the carried, of those that stay.

        Args:
            in_hand: the others get its answer too, for the time being.
        """
        unsure = ~_sure(self.policy, self.confidence, e, logits, self.sample_b)
        if self.open_b is not None:
            unsure &= self.open_b
        staying = unsure.nonzero()[:, 0]
        if in_hand or len(staying) < self.num_open:
            self.answer(e, logits)
        if len(staying) < self.num_open:
            self.open_b, self.num_open = unsure, len(staying)
        return staying

    def answer(self, e: int, logits: Tensor) -> None:
        """Exit ``e`` answers every sample that waits for an answer."""
        exit_b, macs_b = self.exit_b.new_full((self.num_carried,), e), self._macs()
        if self.logits_bk is None:  # the first answer goes to all samples
            if self.sample_b is not None:  # all are still carried, in the gates' order
                back = self.sample_b.argsort()
                logits, macs_b = logits[back], macs_b[back]
            self.logits_bk, self.exit_b, self.macs_b = logits, exit_b, macs_b
            return
        here = slice(None) if self.sample_b is None else self.sample_b
        if self.open_b is not None:
            logits = logits.where(self.open_b[:, None], self.logits_bk[here])
            exit_b = exit_b.where(self.open_b, self.exit_b[here])
            macs_b = macs_b.where(self.open_b, self.macs_b[here])
        self.logits_bk[here] = logits
        self.exit_b[here] = exit_b
        self.macs_b[here] = macs_b

    def _macs(self) -> Tensor:
        """MACs that each carried sample has spent by now."""
        spent_b = self.macs_b.new_full((self.num_carried,), self.spent)
        if self.ran_bg is None or self.net.gates is None:
            return spent_b
        macs_g = spent_b.new_tensor([self.net.staged.stages[s].macs for s in self.net.gates.at])
        ran_bg = self.ran_bg if self.sample_b is None else self.ran_bg[self.sample_b]
        return spent_b - (~ran_bg * macs_g).sum(1)

    def compact(self, staying: Tensor) -> None:
        """Only the carried samples at the positions ``staying`` are carried on."""
        self.sample_b, self.open_b = staying if self.sample_b is None else self.sample_b[staying], None
        self.num_carried = self.num_open

    def prediction(self) -> Prediction:
        logits_bk = self.logits_bk
        if logits_bk is None:
            logits_bk = self.x.new_zeros(len(self.x), self.net.num_classes)
        return Prediction(
            logits=logits_bk,
            exit=self.exit_b,
            macs=self.macs_b,
            ran=self._ran(),
            temperature_e=self.policy.temperature_e,
        )

    def _ran(self) -> Tensor | None:
        """Decisions that were carried out: a stage behind the exit that answered a sample did not run for it."""
        if self.ran_bg is None or self.net.gates is None:
            return None
        end_b = self.exit_b.new_tensor(self.net.exit_stages)[self.exit_b]
        return self.ran_bg & (end_b[:, None] >= end_b.new_tensor(self.net.gates.at))


def _compact_pays(net: Runnable, exits: dict[int, int], s: int, carried: int, waiting: int, compact: Compact) -> bool:
    """Whether to gather the waiting samples now, before the stages up to the next exit that is switched on."""
    if waiting == carried or compact == "never":
        return False
    if compact == "always" or net.cost is None:
        return True
    until = min((later for later in exits if later > s), default=len(net.staged.stages) - 1)
    return net.cost.compaction_pays(s, until, carried=carried, waiting=waiting)


def _check(net: Runnable, x: Tensor, policy: Policy, compact: str) -> None:
    net.check_policy(policy)
    if compact not in ("auto", "always", "never"):
        raise PolicyError(f"compact={compact!r}; give 'auto', 'always' or 'never'")
    if tuple(x.shape[1:]) != net.staged.input_shape:
        raise SourceError(
            f"samples of shape {tuple(x.shape[1:])}; the model expects {net.staged.input_shape} (a batch is [b, ...])"
        )
