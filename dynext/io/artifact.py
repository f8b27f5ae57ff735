"""A dynamic net as a folder: weights in safetensors, everything else in JSON; no pickles, no code.

==================== =========================================================================================
``net.json``         how to build the static net again, cuts, exits, gates, policy, cost table, provenance, versions
``net.safetensors``  every tensor of the dynamic net; tied tensors once
``table.safetensors`` the table that the policy was chosen on, if there was one
``report.html``      the report, if the caller writes one
==================== =========================================================================================
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from dynext.atomic import replaced_folder
from dynext.brief import short_repr
from dynext.data.content import Content
from dynext.errors import ArtifactError, DynextError, ModelError
from dynext.graph import StagedNet
from dynext.graph.private import private_copy
from dynext.graph.shrink import shrink
from dynext.graph.split import split_again
from dynext.io.own_parts import check_answers, check_savable, given_parts, needs, saved_answers
from dynext.io.weights import checksum, read_weights, unshared
from dynext.models.catalog import rebuild
from dynext.net.attach import from_specs
from dynext.net.cascade import cascade
from dynext.net.dynamic_net import DynamicNet
from dynext.net.given_heads import HeadsGiven
from dynext.net.int8 import to_int8
from dynext.net.reclassify import replace_last, take_classes
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.runtime.cost import CostTable
from dynext.seeding import seeded
from dynext.types import InputSpec
from dynext.usual_modes import in_usual_modes

log = logging.getLogger("dynext")

FORMAT, VERSION = "dynext", 1
CARD, WEIGHTS, TABLE, PAGE = "net.json", "net.safetensors", "table.safetensors", "report.html"
FILES = (CARD, WEIGHTS, TABLE, PAGE)
"""What belongs to one net and goes when another one takes its place."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Artifact:
    """The content of a folder: the net, in evaluation on the CPU, its policy and inputs, and where it comes from."""

    __repr__ = short_repr

    net: DynamicNet
    policy: Policy
    spec: InputSpec
    class_names: tuple[str, ...] | None
    model_recipe: dict[str, Any] | None
    """How to build the static net from the catalog; ``None`` when it was the user's own."""
    cost: CostTable | None
    table: ExitTable | None
    provenance: dict[str, Any]
    versions: dict[str, str]


@in_usual_modes
def save(
    net: DynamicNet,
    folder: Path | str,
    *,
    policy: Policy,
    spec: InputSpec,
    model_recipe: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    table: ExitTable | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``net`` and all that belongs to it into ``folder``; returns the folder.

    A net that is already there is replaced when the new one is complete, not before; its report goes, files of others
    stay. To write more files at the same instant, save into the folder that `dynext.atomic.replaced_folder` gives.

    Args:
        model_recipe: `Opened.recipe`, by which `load` builds the static net; without it `load` needs ``model=``.
        table: what the policy was chosen on.
        provenance: JSON about how the net was made: seeds, samples, steps, commands.

    Raises:
        ArtifactError: the folder holds something else, or something is no JSON.
        PolicyError, ModelError: the policy, the samples' shape or the number of class names do not fit the net.
    """
    net.check_policy(policy)
    net.check_described(spec, class_names)
    check_savable(net)
    folder = Path(folder)
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    with replaced_folder(folder, mark=CARD, owned=FILES) as partial:
        tensors, shared = unshared(net.state_dict())
        save_file(tensors, partial / WEIGHTS)
        card = {
            "format": FORMAT,
            "version": VERSION,
            "model": None if model_recipe is None else dict(model_recipe),
            "input": asdict(spec),
            "class_names": None if class_names is None else list(class_names),
            "dtype": str(dtype).removeprefix("torch."),
            "stages": _stages(net.staged),
            "cosine_classes": net.num_classes if net.staged.cosine else None,
            "exits": [{"after": exit.after, "name": exit.name, "head": exit.spec} for exit in net.exits],
            "own_answers": saved_answers(net),
            "cascade": net.cascade,
            "gates": None if net.gates is None else net.gates.spec,
            "int8": net.int8,
            "policy": policy.to_dict(),
            "cost": None if net.cost is None else net.cost.to_dict(),
            "seen": net.seen.to_text(),
            "provenance": dict(provenance or {}),
            "versions": _versions(),
            "weights": {"sha256": checksum(partial / WEIGHTS), "shared": shared},
        }
        (partial / CARD).write_text(_json(card), encoding="utf-8")
        if table is not None:
            table.save(partial / TABLE)
    needed = needs(net)
    if needed is not None:
        log.warning("%s", needed)
    return folder


@in_usual_modes
def load(
    folder: Path | str, *, model: nn.Module | None = None, heads: HeadsGiven | None = None, gates: Any = None
) -> Artifact:
    """The dynamic net that `save` wrote into ``folder``.

    Args:
        model: the static net's architecture, where it is not from the catalog; a `StagedNet` is taken as it is.
        heads: where heads are of one's own, what `attach` was given for them; a folder never makes anybody run code.
            Heads that an installed package registers (entry points ``dynext.heads``) are found by their name.
        gates: the same for gates, as `attach_gates` was given them.

    Raises:
        ArtifactError: files are missing, truncated, from another net or from a later version, or ``model`` is not
            the net that was saved.
    """
    folder = Path(folder)
    card = _card(folder)
    try:
        net = to_int8(_untrained(folder, card, model, heads, gates), card.get("int8"))
        _fill(net, read_weights(folder / WEIGHTS, card["weights"]), folder)
        check_answers(net, card.get("own_answers", []))
        net.cost = None if card["cost"] is None else CostTable.from_dict(card["cost"])
        net.seen = Content.from_text(card.get("seen", ""))  # early folders lack this key
        policy = Policy.from_dict(card["policy"])
        net.check_policy(policy)
        spec = InputSpec(**{key: tuple(value) for key, value in card["input"].items()})
        names = None if card["class_names"] is None else tuple(card["class_names"])
        net.check_described(spec, names)
        net.spec = spec
        return Artifact(
            net=net.eval(),
            policy=policy,
            spec=spec,
            class_names=names,
            model_recipe=card["model"],
            cost=net.cost,
            table=ExitTable.load(folder / TABLE) if (folder / TABLE).exists() else None,
            provenance=card["provenance"],
            versions=card["versions"],
        )
    except ArtifactError:
        raise
    except DynextError as error:
        raise ArtifactError(f"{folder} cannot be loaded: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ArtifactError(f"{folder / CARD} is damaged ({reason}); convert the net again") from error


def saved_recipe(folder: Path | str) -> dict[str, Any] | None:
    """How the static net of ``folder`` is built again, without building it; ``None`` where it was the user's own.

    Raises:
        ArtifactError: there is no dynamic net, or its description is damaged.
    """
    recipe = _card(Path(folder)).get("model")
    if recipe is not None and not (isinstance(recipe, dict) and isinstance(recipe.get("arguments"), dict)):
        raise ArtifactError(f"{Path(folder) / CARD} is damaged (model {recipe!r}); convert the net again")
    return recipe


def _stages(staged: StagedNet) -> dict[str, Any]:
    return {
        "after": list(staged.cuts),
        "granularity": staged.granularity,
        "names": [stage.name for stage in staged.stages],
        "live_shapes": [[list(shape) for shape in stage.live_shapes] for stage in staged.stages],
        "shrunk": staged.shrunk,
    }


def _versions() -> dict[str, str]:
    return {"dynext": metadata.version("dynext"), "torch": torch.__version__, "python": platform.python_version()}


def _json(card: Mapping[str, Any]) -> str:
    try:
        return json.dumps(card, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"recipe and provenance must be JSON ({error}); leave the offending entry out") from error


def _card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    if not path.is_file():
        raise ArtifactError(f"there is no dynamic net in {folder} (no {CARD}); `dynext convert MODEL -o DIR` makes one")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}); convert the net again") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ArtifactError(f"{path} was not written by dynext; name the folder of a dynamic net")
    version = card.get("version")
    if not isinstance(version, int) or version < 1:
        raise ArtifactError(f"{path} is damaged (version {version!r}); convert the net again")
    if version > VERSION:
        raise ArtifactError(f"{folder} is of format version {version}, this dynext reads up to {VERSION}; update it")
    return card


def _untrained(folder: Path, card: Mapping[str, Any], model: nn.Module | None, heads: Any, gates: Any) -> DynamicNet:
    """The net as it was put together, its weights to be filled in."""
    cascaded = card.get("cascade")
    exits = card["exits"] if cascaded is None else cascaded["heads"]
    cuts = card["stages"]["after"] if cascaded is None else cascaded["after"]
    staged = _staged(card, cuts, model)
    if card.get("cosine_classes") is not None and not staged.cosine:  # early folders lack this key and one for gates
        replace_last(staged, int(card["cosine_classes"]))
    if cascaded is None:  # a model of other sizes shows in its stages, before heads fail to fit
        take_classes(staged, card["stages"]["names"], card["stages"]["live_shapes"])
        _check_stages(folder, card["stages"], staged)
    specs = [exit["head"] for exit in exits]
    names = [staged.stages[exit["after"]].name for exit in exits]
    own = given_parts(list(zip(names, specs, strict=True)), card.get("gates"), heads, gates, staged.zeros(0))
    with seeded(0):
        net = from_specs(staged, specs, [exit["after"] for exit in exits], card.get("gates"), **own)
    if cascaded is not None:
        net = cascade(net, cascaded["rule"])
        _check_stages(folder, card["stages"], net.staged)
    return net


def _staged(card: Mapping[str, Any], cuts: Sequence[str], model: nn.Module | None) -> StagedNet:
    stages = card["stages"]
    shrunk = stages.get("shrunk")  # folders from before nets were pruned have no such key
    if isinstance(model, StagedNet):
        return shrink(model, shrunk)
    if stages["granularity"] == "hand":
        raise ArtifactError("the stages were given by hand; give them again: model=dx.graph.stages_by_hand(...)")
    if model is None:
        if card["model"] is None:
            raise ModelError("the static net was your own; give its architecture: dx.load(folder, model=...)")
        model = rebuild(card["model"])
    else:
        model = private_copy(model)
    dtype = getattr(torch, card["dtype"])
    example = torch.zeros(1, *card["input"]["shape"], dtype=dtype)
    cuts = cuts if shrunk is None else shrunk["cuts"]
    return shrink(split_again(model.cpu().to(dtype), example, cuts, granularity=stages["granularity"]), shrunk)


def _check_stages(folder: Path, saved: Mapping[str, Any], staged: StagedNet) -> None:
    own = _stages(staged)
    for key in ("names", "live_shapes"):
        if own[key] != saved[key]:
            raise ArtifactError(
                f"the model is not the one in {folder}: stages' {key.replace('_', ' ')} are {own[key]}, "
                f"saved were {saved[key]}"
            )


def _fill(net: DynamicNet, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    own = net.state_dict()
    differing = sorted(own.keys() ^ state.keys()) + [
        f"{name} ({list(state[name].shape)} {state[name].dtype} for {list(own[name].shape)} {own[name].dtype})"
        for name in own
        if name in state and (own[name].shape, own[name].dtype) != (state[name].shape, state[name].dtype)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        heads = all(name.startswith("exits.") for name in differing) and any(exit.own for exit in net.exits)
        part = "heads= does not give the heads" if heads else "the model is not the one"
        raise ArtifactError(f"{part} in {folder}: {', '.join(differing[:3])}{more} differ")
    net.load_state_dict(dict(state))
