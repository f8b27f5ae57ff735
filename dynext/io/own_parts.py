"""Heads and gates of a user's own in a saved folder: it says what they were made by, and never holds their code.

`save` tells what `load` will need and refuses what it could never read; `load` asks for it, and checks that it is what
was saved by a few answers that stand in the card.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynext.errors import ArtifactError, SplitError
from dynext.modules.exit_parts import HeadSpec
from dynext.modules.exits import Exit, build_exit
from dynext.modules.gates import Gates
from dynext.modules.modes import evaluating
from dynext.modules.own_parts import OwnPart, noise
from dynext.named_parts import reference_to
from dynext.net.attach import OwnParts
from dynext.net.cascade import links_of
from dynext.net.dynamic_net import DynamicNet
from dynext.net.given_gates import GROUP as GATES_GROUP
from dynext.net.given_gates import made_gates
from dynext.net.given_heads import GROUP as HEADS_GROUP
from dynext.net.given_heads import Place, made_head, one_each
from dynext.plugins import registered
from dynext.seeding import seeded

LOOSE = {"float32": 1e-3, "float64": 1e-3}
"""By how much answers may differ on another machine; more in half precision."""


def check_savable(net: DynamicNet) -> None:
    """That `load` can build the net again out of what it will be given.

    Raises:
        ArtifactError: an exit or gates that are no parts of ours, something beside tensors in their state, or a factory
            that no longer gives what is in the net.
    """
    for exit in net.exits:
        if type(exit) is not Exit:
            name = type(exit).__name__
            raise ArtifactError(
                f"the exit after {exit.name} is a {name}, which load could not build; give what it computes as an "
                f"nn.Module instead: dx.attach(staged, {name}), and a folder keeps it"
            )
    if net.gates is not None and type(net.gates) is not Gates:
        raise ArtifactError(
            f"gates of type {type(net.gates).__name__} could not be loaded; dx.attach_gates puts gates of your own on"
        )
    for key, value in net.state_dict().items():
        if not isinstance(value, Tensor):
            raise ArtifactError(
                f"{key} is a {type(value).__name__}, and a folder holds tensors only; keep it in a buffer, or make the "
                f"module with it (functools.partial)"
            )
    if net.int8 is None:
        for exit in _own_exits(net):
            _check_rebuilt(exit)


def needs(net: DynamicNet) -> str | None:
    """What `load` will have to be given, in words; ``None`` where a folder is enough."""
    gates = {} if net.gates is None else net.gates.spec
    heads = [(exit.name, exit.spec) for exit in _own_exits(net)]
    missing = [needed_heads(heads), _needed_gates(gates), _registered_here([spec for _, spec in heads], gates)]
    return " ".join(one for one in missing if one) or None


def _registered_here(heads: Sequence[HeadSpec], gates: Mapping[str, Any]) -> str | None:
    """What to say of names that no installed package brings: another process does not know them."""
    named = [(HEADS_GROUP, spec["factory"]) for spec in heads if _is_registered(spec, HEADS_GROUP)]
    if gates.get("kind") == "own" and _is_registered(gates, GATES_GROUP):
        named.append((GATES_GROUP, gates["factory"]))
    here = [(group, name) for group, name in dict.fromkeys(named) if registered(group)[name].value is not None]
    if not here:
        return None
    again = " and ".join(f"dx.plugins.register({group!r}, {name!r}, ...)" for group, name in here)
    return f"Where the folder is loaded, register again what no installed package brings: {again}."


def needed_heads(specs: Sequence[tuple[str, HeadSpec]]) -> str | None:
    """What heads of one's own ask for, by names of exits and their JSON."""
    return _needed("heads", [(name, spec) for name, spec in specs if not _is_registered(spec, HEADS_GROUP)])


def _needed_gates(spec: Mapping[str, Any]) -> str | None:
    own = spec.get("kind") == "own" and not _is_registered(spec, GATES_GROUP)
    return _needed("gates", [("the gates", dict(spec))] if own else [])


def _needed(noun: str, specs: Sequence[tuple[str, HeadSpec]]) -> str | None:
    if not specs:
        return None
    names = [name for name, _ in specs]
    where = f"heads after {', '.join(names)}" if noun == "heads" else "gates"
    factories = sorted({spec["factory"] or "" for _, spec in specs})
    modules = ", ".join(sorted({spec["module"] for _, spec in specs}))
    if len(factories) == 1 and ":" in factories[0]:
        module, _, name = factories[0].partition(":")
        how = f"{noun}={name}) after `from {module} import {name}`, on the command line --{noun} {factories[0]}"
    else:
        verb = "dx.attach" if noun == "heads" else "dx.attach_gates"
        how = f"{noun}=...) with what {verb} was given, on the command line --{noun} path/to/file.py:name"
    return f"The {where} are of one's own ({modules}), and a folder holds no code: dx.load(folder, {how}."


def _is_registered(spec: Mapping[str, Any], group: str) -> bool:
    name = spec["factory"]
    return name is not None and ":" not in name and name in registered(group)


def saved_answers(net: DynamicNet) -> list[list[list[float]]]:
    """What each head of one's own answers to some noise, by which it is known again."""
    return [_answers(exit) for exit in _own_exits(net)] if net.int8 is None else []


def check_answers(net: DynamicNet, saved: Sequence[Sequence[Sequence[float]]]) -> None:
    """Raises ArtifactError: a head that has the weights that were saved and answers otherwise."""
    for exit, wanted in zip(_own_exits(net), saved, strict=False):
        answer, wanted_bk = torch.tensor(_answers(exit)), torch.tensor(wanted)
        loose = LOOSE.get(str(next(exit.parameters(), wanted_bk).dtype).removeprefix("torch."), 5e-2)
        if not torch.allclose(answer, wanted_bk, rtol=loose, atol=loose * max(float(wanted_bk.abs().amax()), 1e-6)):
            raise ArtifactError(
                f"the head after {exit.name} ({exit.spec['module']}) has the saved weights, but answers otherwise than "
                f"the one that was saved; give heads= as it was then"
            )


def given_parts(
    exits: Sequence[tuple[str, HeadSpec]], gates: Mapping[str, Any] | None, heads: Any, own_gates: Any, like: Tensor
) -> OwnParts:
    """The modules behind heads and gates of one's own, from what `load` was given.

    Raises:
        ArtifactError: it is missing, or there is nothing that it could be for.
    """
    gates = gates or {}
    with seeded(0):
        return {
            "own_e": _given_heads(exits, heads, like),
            "own_gates": _given_gates(gates, own_gates, like),
        }


def _given_heads(exits: Sequence[tuple[str, HeadSpec]], heads: Any, like: Tensor) -> list[OwnPart | None]:
    own = [(e, name, spec) for e, (name, spec) in enumerate(exits) if spec["kind"] == "own"]
    if heads is not None and not own:
        raise ArtifactError("the heads of this net are dynext's own; leave heads= out")
    missing = needed_heads([(name, spec) for _, name, spec in own])
    if heads is None and missing:
        raise ArtifactError(missing)
    places = [Place(name, tuple(spec["tap"]), spec["classes_made"], spec["most_macs"], like) for _, name, spec in own]
    if isinstance(heads, list | tuple | nn.ModuleList) and len(heads) == len(exits):
        heads = [heads[e] for e, _, _ in own]
    each = [spec["factory"] for _, _, spec in own] if heads is None else one_each(heads, places)
    parts: list[OwnPart | None] = [None] * len(exits)
    for (e, name, spec), place, given in zip(own, places, each, strict=True):
        parts[e] = made_head(given, place, _options(given, spec)).own
        if parts[e] is None:
            raise ArtifactError(
                f"the head after {name} is of one's own ({spec['module']}), heads= gives one of dynext's"
            )
    return parts


def _given_gates(spec: Mapping[str, Any], gates: Any, like: Tensor) -> OwnPart | None:
    if spec.get("kind") != "own":
        if gates is not None:
            raise ArtifactError("this net has no gates of one's own; leave gates= out")
        return None
    missing = _needed_gates(spec)
    if gates is None and missing:
        raise ArtifactError(missing)
    given = spec["factory"] if gates is None else gates
    where = {key: spec[key] for key in ("at", "taps", "input")}
    own = made_gates(given, [str(s) for s in spec["at"]], where, like, _options(given, spec))[1]
    if own is None:
        raise ArtifactError(f"the gates are of one's own ({spec['module']}), gates= gives some of dynext's")
    return own


def _options(given: Any, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that were kept, where ``given`` is the function that they were for."""
    if isinstance(given, functools.partial):
        return {}
    name = given if isinstance(given, str) else reference_to(given).name
    return dict(spec["options"]) if name is not None and name == spec["factory"] else {}


def _own_exits(net: DynamicNet) -> list[Exit]:
    return [link.exit for link in links_of(net) if link.exit.own is not None]


@torch.no_grad()
def _answers(exit: Exit) -> list[list[float]]:
    with evaluating(exit):
        return exit(noise(exit, exit.spec["tap"], count=2)).double().cpu().tolist()


def _check_rebuilt(exit: Exit) -> None:
    """That the factory in this process gives a head which, with this one's weights, answers alike."""
    spec, own = exit.spec, exit.own
    if own is None or own.factory is None:
        return
    like = next(iter([*exit.parameters(), *exit.buffers()]))
    place = Place(exit.name, tuple(spec["tap"]), spec["classes_made"], spec["most_macs"], like.new_zeros(0).cpu())
    try:
        with seeded(0):
            again = build_exit(spec, after=0, name=exit.name, own=made_head(own.factory, place).own)
        again.to(place.like).load_state_dict(exit.state_dict())
        same = torch.allclose(torch.tensor(_answers(again)), torch.tensor(_answers(exit)), rtol=1e-2, atol=1e-3)
    except (SplitError, RuntimeError) as error:
        reason = str(error).replace("\n", " ").replace("\t", " ")
        raise ArtifactError(
            f"what made the head after {exit.name} ({spec['module']}) no longer gives one of its sizes: {reason}; "
            f"load could never read it. Give dx.attach a head whose sizes follow the tap's shape"
        ) from error
    if not same:
        raise ArtifactError(
            f"the head after {exit.name} ({spec['module']}) holds something beside parameters and buffers that decides "
            f"its answers, and load could never read it; register_buffer it, or let its factory make it"
        )
