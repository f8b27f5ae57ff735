"""What a user gave for gates, made out: specs of ours and names, a gate for each stage, or one module for all."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from dynext.errors import PluginError, SplitError, line
from dynext.modules import gates as ours
from dynext.modules.gates import EachItsOwn, GateSpec
from dynext.modules.own_parts import OwnPart
from dynext.named_parts import PartReference, called, named, reference_to
from dynext.net.own_checks import check_own_gates

GROUP = "dynext.gates"
OURS: dict[str, Callable[[], GateSpec]] = {
    "feedforward": ours.feedforward_gates,
    "recurrent": ours.recurrent_gates,
    "policy": ours.policy_gates,
}
"""Gates of ours by name."""

GatesGiven: TypeAlias = "GateSpec | Callable[..., Any] | nn.Module | str | Sequence[nn.Module]"
"""What may be given for gates: see `dynext.attach_gates`."""

LINE = "dx.attach_gates(net, lambda tap: MyGate(tap[0]))"


def made_gates(
    given: GatesGiven,
    names: Sequence[str],
    where: Mapping[str, Any],
    like: Tensor,
    options: Mapping[str, Any] | None = None,
) -> tuple[GateSpec, OwnPart | None]:
    """The JSON of gates before the stages ``names``, and their module where they are one's own.

    Args:
        where: ``at``, ``taps`` and ``input`` of the JSON.
        options: more arguments for a factory.

    Raises:
        SplitError: what was given makes no gates there; says which line would.
    """
    told = given if isinstance(given, str) else None
    if isinstance(given, str):
        try:
            given = named(given, GROUP, OURS)
        except PluginError as error:
            raise SplitError(str(error)) from error
    if given in OURS.values():
        if told is None:
            raise SplitError(f"{called(given)} is to be called first: dx.attach_gates(net, dx.gates.{called(given)}())")
        given = given()  # type: ignore[operator]
    if isinstance(given, Mapping):
        return {**given, **where}, None
    taps = [tuple(tap) for tap in where["taps"]]
    module = _one_module(given, taps, names, dict(options or {}))
    if not hasattr(module, "begin") or not hasattr(module, "ask"):
        raise SplitError(
            f"{called(module)} has no begin(x) and ask(g, tap, memory); give these, or one gate each: {LINE}"
        )
    module = module.to(like)
    check_own_gates(module, taps, where["input"], f"gates ({_kind(module)})")
    reference = PartReference(None, {}) if isinstance(given, nn.Module | Sequence) else reference_to(given)
    if told is not None and ".py:" not in told:
        reference = reference._replace(name=told)
    spec = {"kind": "own", "module": _kind(module), "factory": reference.name, "options": reference.options}
    factory = None if isinstance(given, nn.Module | Sequence) else given
    return {**spec, **where}, OwnPart(module, factory)


def _kind(module: nn.Module) -> str:
    return type(module.gates[0] if isinstance(module, EachItsOwn) else module).__name__


def _one_module(given: Any, taps: list[tuple[int, ...]], names: Sequence[str], options: dict[str, Any]) -> nn.Module:
    if isinstance(given, nn.ModuleList | list | tuple):
        return _each_its_own(list(given), names)
    if isinstance(given, nn.Module):
        if hasattr(given, "ask"):
            return copy.deepcopy(given)
        if len(taps) > 1:
            raise SplitError(
                f"one {type(given).__name__} for {len(taps)} gated stages ({', '.join(names)}); give what makes one "
                f"for each: {LINE}, or a list of {len(taps)}"
            )
        return _each_its_own([given], names)
    if not callable(given):
        raise SplitError(
            f"gates of type {type(given).__name__}; give dx.gates.recurrent_gates(), or gates of your own: {LINE}"
        )
    if _sees_all(given):
        return copy.deepcopy(_called_with(given, taps, options))
    return _each_its_own([_called_with(given, tap, options) for tap in taps], names)


def _each_its_own(gates: list[Any], names: Sequence[str]) -> nn.Module:
    if len(gates) != len(names):
        raise SplitError(f"{len(gates)} gates for {len(names)} gated stages ({', '.join(names)}); give one each")
    if len({id(gate) for gate in gates}) < len(gates):
        raise SplitError(
            f"the same gate stands before several stages, which would then share its weights; give one each: {LINE}. "
            f"Gates that share something are one module with begin(x) and ask(g, tap, memory)"
        )
    return EachItsOwn([copy.deepcopy(gate) for gate in gates])


def _sees_all(factory: Any) -> bool:
    """Whether a factory makes one module for all stages: a class with ``ask``, or a function of ``taps``."""
    if hasattr(factory, "ask"):
        return True
    try:
        return next(iter(inspect.signature(factory).parameters), "") == "taps"
    except (TypeError, ValueError):  # some builtins tell nothing
        return False


def _called_with(factory: Any, taps: Any, options: dict[str, Any]) -> nn.Module:
    name = called(factory)
    try:
        module = factory(taps, **options)
    except Exception as error:  # a factory of one's own may raise anything
        raise SplitError(
            f"{name}({taps}) fails: {line(error)}; gates are called with the shape of what goes into a stage: {LINE}"
        ) from error
    if not isinstance(module, nn.Module):
        given = "nothing" if module is None else f"a {type(module).__name__}"
        raise SplitError(f"{name} returns {given} for {taps}; let it return the nn.Module that it makes")
    return module
