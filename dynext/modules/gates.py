"""Gates: per sample, run or skip a stage whose input goes through to its output.

A gate's answer is a logit ``[b]``: its sigmoid is the probability that the sample runs the stage. What a gate remembers
from one block to the next it hands back as tensors ``[b ...]``; nothing stays on the module.

Shapes: b samples in a batch, g gated stages, c channels, h height, w width, t tokens, d features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynext.errors import PolicyError, SplitError
from dynext.modules.exits import channels_last
from dynext.modules.gate_networks import (
    MAX_SIDE,
    ByChance,
    ChannelsFirst,
    Mean,
    PolicyNetwork,
    RunOrSkip,
    Unconditional,
)
from dynext.modules.own_parts import OwnPart

GateSpec = dict[str, Any]
"""JSON that rebuilds the gates of a net: ``kind``, ``at`` (stages), ``taps`` and ``input`` (shapes), the kind's own."""

Memory = tuple[Tensor, ...]
"""What gates carry from block to block, tensors ``[b ...]``; empty for gates that see one place only."""

OPEN = 2.0
"""Bias of an untrained gate towards running its stage: a pretrained net starts out nearly whole (sigmoid .88)."""


class Gates(nn.Module):
    """The gates of a net: gate g decides about stage ``at[g]``.

    Attributes:
        at_once: all is decided by the input alone, before the net runs.
        start_macs: MACs per sample of ``begin``; ``macs_g``: of each ``ask``. Filled in by whoever attaches the gates.
    """

    def __init__(self, spec: GateSpec, own: OwnPart | None = None) -> None:
        super().__init__()
        self.spec, self.at = dict(spec), tuple(spec["at"])
        self.own = own
        """What gates of one's own are built from again; ``None`` for gates of ours."""
        self.body: Any = _BUILDERS[spec["kind"]](spec) if own is None else own.fresh()
        self.at_once = bool(getattr(self.body, "at_once", False))
        self.start_macs = 0
        self.macs_g = (0,) * len(self.at)

    def __len__(self) -> int:
        return len(self.at)

    def begin(self, x: Tensor) -> Memory:
        """What is known before samples ``x [b ...]`` run; where all is decided `at_once`, the logits ``[b g]``."""
        return self.body.begin(x)

    def ask(self, g: int, tap: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Logit ``[b]`` of running stage ``at[g]``, by the tensor that goes into it; and what to remember."""
        return self.body.ask(g, tap, memory)


class EachItsOwn(nn.Module):
    """A feed-forward gate for every stage: tap ``[b ...]`` to logit ``[b]``, or ``[b 1]``."""

    def __init__(self, gates: Sequence[nn.Module]) -> None:
        super().__init__()
        self.gates = cast("list[nn.Module]", nn.ModuleList(gates))

    def begin(self, x: Tensor) -> Memory:
        return ()

    def ask(self, g: int, tap: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        logit = self.gates[g](tap)
        return logit[:, 0] if logit.shape[1:] == (1,) else logit, memory


class SharedRecurrent(nn.Module):
    """One LSTM for all gates; each has an embedding of its own: tap averaged, linear, LSTM, linear.

    Source: SkipNet, Wang et al., ECCV 2018, arXiv:1711.09485, figure 3c.
    """

    def __init__(self, spec: GateSpec) -> None:
        super().__init__()
        self.size = int(spec["size"])
        self.embed = cast("list[nn.Module]", nn.ModuleList([_embedding(tap, self.size) for tap in _taps(spec)]))
        self.cell = nn.LSTMCell(self.size, self.size)
        self.decide = nn.Linear(self.size, 1)
        nn.init.constant_(self.decide.bias, spec["open"])

    def begin(self, x: Tensor) -> Memory:
        nothing = self.decide.weight.new_zeros(len(x), self.size)
        return (nothing, nothing)

    def ask(self, g: int, tap: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """What ``embed[g]``, ``cell`` and ``decide`` compute, straight by the kernels: at batch 1 the calls of modules
        take longer than these.
        """
        mean, embed = cast("list[Any]", self.embed[g]._modules.values())
        embedded = F.linear(mean.forward(tap), *_weights(embed))
        hidden, cell = torch.lstm_cell(embedded, memory, *_weights(self.cell))
        return F.linear(hidden, *_weights(self.decide))[:, 0], (hidden, cell)


def _weights(layer: nn.Module) -> tuple[Any, ...]:
    """Its parameters, in the order of their definition; as attributes torch looks up each by its name in Python."""
    return tuple(layer._parameters.values())


class AtOnce(nn.Module):
    """All decided at once: input ``[b ...]`` to logits ``[b g]``."""

    at_once = True

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def begin(self, x: Tensor) -> Memory:
        return (self.net(x),)

    def ask(self, g: int, tap: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return memory[0][:, g], memory


def _feedforward(spec: GateSpec) -> nn.Module:
    return EachItsOwn([_feedforward_gate(tap, spec) for tap in _taps(spec)])


def _feedforward_gate(tap: tuple[int, ...], spec: GateSpec) -> nn.Module:
    width = _channels(tap)
    if len(tap) < 3:
        hidden = min(width, 64)
        hidden_layer = [Mean(tap), nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU()]
        return nn.Sequential(*hidden_layer, RunOrSkip(hidden, spec["open"]))
    layers: list[nn.Module] = [ChannelsFirst()] if channels_last(tap) else []
    if spec["variant"] == "I":
        layers += [nn.MaxPool2d(2, ceil_mode=True), *_conv(width, stride=1)]  # a map of one pixel stays one
    layers += [*_conv(width, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, RunOrSkip(width, spec["open"]))


def _conv(channels: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]


def _embedding(tap: tuple[int, ...], size: int) -> nn.Module:
    return nn.Sequential(Mean(tap), nn.Linear(_channels(tap), size))


def _policy(spec: GateSpec) -> nn.Module:
    shape = tuple(spec["input"])
    if len(shape) != 3:
        raise SplitError(
            f"a policy network takes images [c h w], the model expects samples of shape {shape}; "
            f"use dx.gates.feedforward_gates() or dx.gates.recurrent_gates()"
        )
    return AtOnce(PolicyNetwork(shape, len(spec["at"]), width=spec["width"], side=spec["side"], openness=spec["open"]))


def _static(spec: GateSpec) -> nn.Module:
    return AtOnce(Unconditional(_per_gate(spec, "run")))


def _random(spec: GateSpec) -> nn.Module:
    return AtOnce(ByChance(_per_gate(spec, "rate"), math.prod(spec["input"]), spec["seed"]))


def _per_gate(spec: GateSpec, name: str) -> list[Any]:
    given = spec[name]
    values = list(given) if isinstance(given, list | tuple) else [given] * len(spec["at"])
    if len(values) != len(spec["at"]):
        raise SplitError(f"{len(values)} entries of {name!r} for {len(spec['at'])} gated stages; give one each")
    return values


_BUILDERS: Mapping[str, Callable[[GateSpec], Any]] = {
    "feedforward": _feedforward,
    "recurrent": SharedRecurrent,
    "policy": _policy,
    "static": _static,
    "random": _random,
}


def _taps(spec: GateSpec) -> list[tuple[int, ...]]:
    return [tuple(tap) for tap in spec["taps"]]


def _channels(tap: tuple[int, ...]) -> int:
    return tap[0] if len(tap) == 3 and not channels_last(tap) else tap[-1]


def feedforward_gates(variant: str = "II", *, openness: float = OPEN) -> GateSpec:
    """A gate of its own before each stage, which sees what goes in.

    For maps, variant ``"I"``: max pooling 2, 3x3 convolution, 3x3 convolution of stride 2 (each with BatchNorm and
    ReLU, as many channels as the map), average, linear. ``"II"``: without the pooling and the first convolution. For
    tokens and vectors (ours): mean, LayerNorm, linear, ReLU, linear.

    Raises:
        PolicyError: another variant.

    Source: SkipNet, Wang et al., ECCV 2018, arXiv:1711.09485, figure 3 (FFGate-I for nets of 38 and 74 layers,
    FFGate-II for deeper ones). Ours starts out open, being put on pretrained nets.
    """
    if variant not in ("I", "II"):
        raise PolicyError(f"feed-forward gates of variant {variant!r}; give 'I' or 'II'")
    return {"kind": "feedforward", "variant": variant, "open": openness}


def recurrent_gates(size: int = 10, *, openness: float = OPEN) -> GateSpec:
    """One LSTM of ``size`` units shared by all gates, which sees the mean of each tap: about a thousand MACs a gate."""
    return {"kind": "recurrent", "size": size, "open": openness}


def policy_gates(width: int = 16, *, side: int = MAX_SIDE, openness: float = OPEN) -> GateSpec:
    """BlockDrop's policy network: it sees the input and decides about all stages at once, before the net runs.

    Args:
        width: channels of its first stage.
        side: the input is averaged down to at most so many pixels a side first; its MACs fall with the square.

    Source: Wu et al., CVPR 2018, arXiv:1711.08393, section 4.1. Ours starts out open; its shortcuts are as in
    `dynext.modules.gate_networks`.
    """
    return {"kind": "policy", "width": width, "side": side, "open": openness}


def static_gates(run: Sequence[float]) -> GateSpec:
    """Unconditional and free: every sample gets the same probability to run stage g, 1 or 0 for a fixed set of stages.

    Probabilities in between rank the stages: the policy's threshold then says how many are dropped.

    Raises:
        PolicyError: a figure outside [0, 1].
    """
    return {"kind": "static", "run": _probabilities(run)}


def random_gates(rate: float | Sequence[float], *, seed: int = 0) -> GateSpec:
    """By chance, one rate for all or one each: a control that any learned policy must beat at equal cost.

    The draw follows the sample's bits and ``seed``: the same sample is decided alike in any batch, and no state is
    kept.

    Raises:
        PolicyError: a rate outside [0, 1].
    """
    single = isinstance(rate, int | float)
    rates = _probabilities([rate] if isinstance(rate, int | float) else rate)
    return {"kind": "random", "rate": rates[0] if single else rates, "seed": seed}


def _probabilities(given: Sequence[float]) -> list[float]:
    probabilities = [float(share) for share in given]
    if not all(0 <= probability <= 1 for probability in probabilities):
        raise PolicyError(f"{probabilities}; give probabilities to run a stage, in [0, 1]")
    return probabilities


def build_gates(spec: GateSpec, own: OwnPart | None = None) -> Gates:
    """Gates from their JSON, and from the module that they are made of where it is one's own.

    Raises:
        PolicyError: a kind of gate that this version does not know, or a module that is missing.
    """
    if spec.get("kind") == "own" and own is None:
        raise PolicyError("gates of one's own, and the module that they are made of is missing; give it again (gates=)")
    if spec.get("kind") not in (*_BUILDERS, "own"):
        raise PolicyError(f"gates of kind {spec.get('kind')!r}; this version knows {', '.join(_BUILDERS)}, own")
    return Gates(spec, own)
