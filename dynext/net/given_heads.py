"""What a user gave for heads, made out: our factories and names, plain callables, classes, modules, one for each exit.

`made_heads` gives for each place the JSON of its head and, where the head is a module of one's own, what it is built
from again.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from dynext.errors import PluginError, SplitError, line
from dynext.modules import exits as ours
from dynext.modules.exit_parts import KINDS, HeadSpec
from dynext.modules.exits import Exit
from dynext.modules.own_parts import OwnPart
from dynext.named_parts import PartReference, called, named, reference_to
from dynext.net.own_checks import check_own_head

GROUP = "dynext.heads"
OURS: dict[str, Callable[..., Any]] = {
    "default": ours.default_heads,
    "conv": ours.conv_heads,
    "strided": ours.strided_heads,
    "pooled": ours.pooled_heads,
    "attention": ours.attention_heads,
    "token": ours.token_heads,
}
"""Heads of ours by name, given the number of classes."""

HeadsGiven: TypeAlias = (
    "ours.Heads | Callable[..., Any] | nn.Module | str | Sequence[Any] | Mapping[str, Any] | Mapping[int, Any]"
)
"""What may be given for heads: see `dynext.attach`."""


class Place(NamedTuple):
    """Where an exit is to stand."""

    name: str
    tap: tuple[int, ...]
    num_classes: int
    most_macs: int
    """What a head may cost here, for factories that ask."""
    like: torch.Tensor


class Made(NamedTuple):
    """A head's JSON, and its module where it is one's own."""

    spec: HeadSpec
    own: OwnPart | None = None


def made_heads(given: HeadsGiven, places: Sequence[Place]) -> list[Made]:
    """A head for each place.

    Raises:
        SplitError: what was given makes no head there; says which line would.
    """
    each = one_each(given, places)
    taken = [id(one) for one in each if isinstance(one, nn.Module)]
    if len(set(taken)) < len(taken):
        raise SplitError(
            "the same module is given for several exits, which would then share its weights; give one each: "
            "dx.attach(staged, lambda tap: MyHead(tap)), or copy.deepcopy(head)"
        )
    return [made_head(one, place) for one, place in zip(each, places, strict=True)]


def made_head(given: Any, place: Place, options: Mapping[str, Any] | None = None) -> Made:
    """The head that ``given`` makes at one place; ``options`` are more arguments for its factory."""
    told = None
    if isinstance(given, str):
        told, given = given, _by_name(given, place)
    if isinstance(given, nn.Module):
        return _own(given, None, place, told)
    if not callable(given):
        raise SplitError(_no_head(given, place))
    if options:
        given = functools.partial(given, **options)
    head = call_factory(given, place)
    if isinstance(head, nn.Module):
        return _own(head, given, place, told)
    if isinstance(head, dict) and head.get("kind") in KINDS and head["kind"] != "own":
        return Made(head)
    raise SplitError(_no_module(head, given, place))


def call_factory(factory: Any, place: Place) -> Any:
    """What ``factory`` gives for the place's tap, the number of classes beside it if it asks for ``num_classes``.

    Raises:
        SplitError: it wants other arguments, or fails.
    """
    name = called(factory)
    if inspect.isclass(factory) and issubclass(factory, Exit):
        raise SplitError(
            f"{name} is a kind of Exit, and exits are made by attach; give what it computes as a module: class {name}"
            f"(nn.Module), tap [b ...] to logits [b k], then dx.attach(staged, {name})"
        )
    further = _further_arguments(factory, place)
    try:
        return factory(place.tap, **further)
    except SplitError:
        raise
    except Exception as error:  # a factory of one's own may raise anything
        raise SplitError(
            f"{name}({place.tap}) fails: {line(error)}; heads are called with the tap's shape, here {place.tap}: "
            f"{_right_line(factory, place)}"
        ) from error


def one_each(given: HeadsGiven, places: Sequence[Place]) -> list[Any]:
    names = [place.name for place in places]
    if isinstance(given, nn.ModuleDict | Mapping) and "kind" not in given:
        entries = dict(given.items())
        if entries.keys() - set(names):
            raise SplitError(f"heads for {', '.join(map(str, entries))}, but exits stand after {', '.join(names)}")
        return [entries[name] for name in names]
    if isinstance(given, nn.ModuleList | list | tuple):
        if len(given) != len(places):
            raise SplitError(
                f"{len(given)} heads for {len(places)} exits (after {', '.join(names)}); give one each, or name the "
                f"places: at=[{', '.join(map(repr, names[: len(given)]))}]"
            )
        return list(given)
    if isinstance(given, nn.Module) and len(places) > 1:
        name = type(given).__name__
        raise SplitError(
            f"one {name} for {len(places)} exits (after {', '.join(names)}), whose taps differ; give what makes one "
            f"for each tap's shape: dx.attach(staged, lambda tap: {name}(...)), or a list of {len(places)}, or "
            f"at=[{names[0]!r}]"
        )
    return [given] * len(places)


def _by_name(text: str, place: Place) -> Any:
    try:
        part = named(text, GROUP, OURS)
    except PluginError as error:
        raise SplitError(str(error)) from error
    return part(place.num_classes) if part in OURS.values() else part


def _own(module: nn.Module, factory: Any, place: Place, told: str | None) -> Made:
    name = type(module).__name__
    if isinstance(module, Exit):
        raise SplitError(
            f"{called(factory) if factory else 'heads='} gives an {name}, and exits are made by attach; give an "
            f"nn.Module, tap [b ...] to logits [b k], or heads of ours: dx.attach(staged, dx.default_heads("
            f"{place.num_classes}))"
        )
    module = copy.deepcopy(module).to(place.like)
    check_own_head(module, place.tap, place.num_classes, f"the head after {place.name} ({name})")
    reference = PartReference(None, {}) if factory is None else reference_to(factory)
    if told is not None and ".py:" not in told:
        reference = reference._replace(name=told)
    spec = {"kind": "own", "tap": list(place.tap), "num_classes": place.num_classes, "module": name}
    spec |= {"classes_made": place.num_classes, "most_macs": place.most_macs}
    spec |= {"factory": reference.name, "options": reference.options}
    return Made(spec, OwnPart(module, factory))


def _further_arguments(factory: Any, place: Place) -> dict[str, Any]:
    """Arguments beside the tap that a factory has and that are known: ``num_classes`` and ``most_macs``."""
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # some builtins tell nothing
        return {}
    name, given = called(factory), {"num_classes": place.num_classes, "most_macs": place.most_macs}
    fixed = dict(getattr(factory, "keywords", {}))
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in fixed]
    if not by_place and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise SplitError(f"{name} takes no tap; heads are called with the tap's shape: {_right_line(factory, place)}")
    if by_place and by_place[0].name == "num_classes":
        raise SplitError(
            f"{name} is to be called first, as it takes num_classes: "
            f"dx.attach(staged, {_module(factory)}{name}({place.num_classes}))"
        )
    rest = [p for p in parameters if p not in by_place[:1] and p.name not in fixed]
    needed = [p.name for p in rest if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if set(needed) - given.keys():
        wanted = ", ".join([p.name for p in by_place[:1]] + needed)
        raise SplitError(
            f"{name} takes ({wanted}), and heads are called with the tap's shape alone, here {place.tap}: "
            f"{_right_line(factory, place)}"
        )
    return {key: value for key, value in given.items() if key in {p.name for p in rest}}


def _right_line(factory: Any, place: Place) -> str:
    """A line that would attach ``factory``, as well as one can tell by the names of its arguments."""
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    arguments = [_guess(p.name, i, place) for i, p in enumerate(parameters) if p.default is p.empty and p.kind < 2]
    if not parameters or "lambda" in called(factory):
        return "dx.attach(staged, lambda tap: MyHead(tap[0], ...))"
    return f"dx.attach(staged, lambda tap: {called(factory)}({', '.join(arguments)}))"


def _guess(name: str, index: int, place: Place) -> str:
    if "class" in name or name in ("k", "out", "out_features", "out_channels", "n_out", "outputs"):
        return str(place.num_classes)
    if name in ("tap", "tap_shape", "shape", "input_shape"):
        return "tap"
    width = "tap[-1]" if len(place.tap) == 2 else "tap[0]"
    return width if index == 0 or "in" in name or "channel" in name or "dim" in name else "..."


def _module(factory: Any) -> str:
    if factory is ours.default_heads:
        return "dx."
    return "dx.heads." if getattr(factory, "__module__", "") == ours.__name__ else ""


def _no_head(given: Any, place: Place) -> str:
    standard = f"dx.attach(staged, dx.default_heads({place.num_classes}))"
    if isinstance(given, int):
        return f"heads={given} is a number, not a head; write {standard}"
    if isinstance(given, Mapping):
        return f"heads are given as the JSON of one head; give what makes it for each tap: {standard}"
    return (
        f"heads of type {type(given).__name__}; give what makes an nn.Module for a tap's shape "
        f"(dx.attach(staged, lambda tap: MyHead(tap[0]))), a module for each exit, or heads of ours: {standard}"
    )


def _no_module(head: Any, factory: Any, place: Place) -> str:
    name = called(factory)
    if head is None:
        return f"{name} returns None for a tap {place.tap}; let it return the nn.Module that it makes"
    if inspect.isclass(head):
        return (
            f"{name} returns the class {head.__name__}, not a module of it; call it: lambda tap: {head.__name__}(tap)"
        )
    if callable(head):
        return f"{name} returns a function; call it first: dx.attach(staged, {name}({place.num_classes}))"
    return f"{name} returns a {type(head).__name__} for a tap {place.tap}; let it return an nn.Module, [b ...] to [b k]"
