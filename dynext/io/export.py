"""Export of a dynamic net: each stage, exit and gate as a program of its own, and a runner that chains them.

The batch size is dynamic in every program, so that samples can leave between them.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynext.atomic import check_replaceable, check_writable, disk_fault, replaced_folder
from dynext.errors import DynextError, PolicyError
from dynext.io import run_onnx
from dynext.io.onnx_ops import reason, supported
from dynext.modules.gates import Gates
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.confidence import CONFIDENCES, Learned
from dynext.policy.foreign_confidence import measure_name
from dynext.policy.policy import Policy
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.usual_modes import in_usual_modes

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
CARD, RUNNER = "policy.json", "run_onnx.py"
VERSION = 1
_ONE_FILE = 1 << 30
"""Bytes of parameters up to which a program keeps them inside its one file (ONNX has a limit of 2 GiB)."""


class _Program(NamedTuple):
    """What becomes one exported file: its name without suffix, a module, and example inputs for it."""

    stem: str
    module: nn.Module
    inputs: tuple[Tensor, ...]


class _AllGates(nn.Module):
    """Samples to the logits of all gates, where these decide at once."""

    def __init__(self, gates: Gates) -> None:
        super().__init__()
        self.gates = gates

    def forward(self, x: Tensor) -> Tensor:
        return self.gates.begin(x)[0]


class _OneGate(nn.Module):
    """One gate: tap and memory to its logit and its new memory."""

    def __init__(self, gates: Gates, g: int) -> None:
        super().__init__()
        self.gates, self.g = gates, g

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        logit_b, memory = self.gates.ask(self.g, given[0], given[1:])
        return (logit_b, *memory)


@in_usual_modes
def export(
    net: DynamicNet,
    folder: Path | str,
    *,
    policy: Policy,
    spec: InputSpec,
    formats: Sequence[str] = ("onnx", "torch"),
    class_names: Sequence[str] | None = None,
) -> Path:
    """Write ``stage_00.onnx``, ``exit_00.onnx``, ``gate_00.onnx``, ... and ``policy.json``; returns the folder.

    With ``"onnx"`` a runner in plain NumPy and onnxruntime comes along, ``run_onnx.py``, which gives what ``net.run``
    gives: same exits, logits to 1e-4; nets in float64 and bfloat16 run in float32 there. With ``"torch"`` the programs
    are ``torch.export`` ones (``.pt2``). What is in the folder from before is replaced when everything is written.

    Raises:
        PolicyError: the policy is for another number of exits or gates.
        ModelError: the spec or the class names do not fit the net.
        DynextError: an unknown format, packages that are not installed, or a part that cannot be exported, such as
            gates that decide by chance.
    """
    net.check_policy(policy)
    if isinstance(policy.confidence, Learned):
        raise PolicyError("an exported net runs without learned gates; choose thresholds by another confidence")
    if policy.confidence not in CONFIDENCES:
        raise PolicyError(
            f"an exported net decides by {', '.join(CONFIDENCES)}, not by {measure_name(policy.confidence)}; choose "
            f"thresholds by one of them (dx.choose(table, confidence=...))"
        )
    net.check_described(spec, class_names)
    if net.gates is not None and net.gates.spec["kind"] == "random":
        raise DynextError("gates that decide by chance are a control and are not exported; attach other gates")
    if net.gates is not None and net.gates.own is not None and not net.gates.at_once:
        _check_start(net)
    _check_formats(formats)
    check_replaceable(Path(folder), CARD)
    check_writable(Path(folder))
    private = copy.deepcopy(net).cpu().eval()
    owned = [CARD, RUNNER, *(f"*{suffix}*" for suffix in FORMATS.values())]
    with replaced_folder(Path(folder), mark=CARD, owned=owned) as partial, _quiet():
        for name in formats:
            for program in _programs(_runnable(private) if name == "onnx" else private):
                _export_program(program, name, partial)
        card = _card(private, policy, spec, class_names, "onnx" if "onnx" in formats else formats[0])
        (partial / CARD).write_text(json.dumps(card, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if "onnx" in formats:
            shutil.copyfile(run_onnx.__file__, partial / RUNNER)
    return Path(folder)


@torch.no_grad()
def _check_start(net: DynamicNet) -> None:
    """Raises DynextError: gates of one's own that remember something before the net runs; exported ones begin at 0."""
    like = next(net.parameters())
    x = torch.randn(2, *net.staged.input_shape, generator=generator(0)).to(like)
    memory = () if net.gates is None else net.gates.begin(x)
    if any(kept.ndim != 2 or kept.any() for kept in memory):
        raise DynextError(
            "gates are exported whose memory is vectors [b d] that begin as zeros; give these from begin(x), and look "
            "at the samples by at_once = True or at the first stage"
        )


def _check_formats(formats: Sequence[str]) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats or isinstance(formats, str):
        raise DynextError(f"formats {formats!r}; give a list of some of {', '.join(FORMATS)}")
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if "onnx" in formats and absent:
        raise DynextError(f"{' and '.join(absent)} must be installed for ONNX; pip install 'dynext[onnx]'")


def _runnable(net: DynamicNet) -> DynamicNet:
    """The net in single precision where ONNX runtimes have no convolutions in its own."""
    unsupported = next(net.parameters()).dtype in (torch.float64, torch.bfloat16)
    return copy.deepcopy(net).float() if unsupported else net


@torch.no_grad()
def _programs(net: DynamicNet) -> Iterator[_Program]:
    """Every stage, exit and gate with example inputs of two samples."""
    like = next(net.parameters())
    live: tuple[Tensor, ...] = (torch.zeros(2, *net.staged.input_shape, dtype=like.dtype),)
    exit_after: dict[int, int] = {int(exit.after): e for e, exit in enumerate(net.exits)}
    yield from _gate_programs(net, live[0])
    for s, stage in enumerate(net.staged.stages):
        yield _Program(f"stage_{s:02}", stage, live)
        live = stage(*live)
        if s in exit_after:
            e = exit_after[s]
            yield _Program(f"exit_{e:02}", net.exits[e], (live[stage.tap],))


def _gate_programs(net: DynamicNet, x: Tensor) -> Iterator[_Program]:
    if net.gates is None:
        return
    memory = net.gates.begin(x)
    if net.gates.at_once:
        yield _Program("gates", _AllGates(net.gates), (x,))
        return
    for g, shape in enumerate(net.gates.spec["taps"]):
        yield _Program(f"gate_{g:02}", _OneGate(net.gates, g), (x.new_zeros(2, *shape), *memory))


def _export_program(program: _Program, name: str, folder: Path) -> None:
    path = folder / f"{program.stem}{FORMATS[name]}"
    batch = torch.export.Dim("batch")
    each = tuple({0: batch} for _ in program.inputs)
    shapes = (each,) if program.stem.startswith(("stage", "gate_")) else each  # these take their tensors as *args
    exported = None
    try:
        apart = tuple(tensor.clone() for tensor in program.inputs)  # one tensor given twice would become one input
        exported = torch.export.export(program.module, apart, dynamic_shapes=shapes)
        _WRITERS[name](exported, path)
    except Exception as error:  # exporters raise many kinds
        if disk_fault(error):
            raise
        raise DynextError(f"{program.stem} ({name}) cannot be exported: {reason(error, exported)}") from error


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    written = torch.onnx.export(supported(program), dynamo=True, verbose=False, optimize=True)
    if written is None:
        raise DynextError("torch.onnx gave no program; update torch")
    written.save(path, external_data=size > _ONE_FILE)


def _write_torch(program: torch.export.ExportedProgram, path: Path) -> None:
    torch.export.save(program, path)


_WRITERS: dict[str, Callable[[torch.export.ExportedProgram, Path], None]] = {
    "onnx": _write_onnx,
    "torch": _write_torch,
}


def _card(
    net: DynamicNet, policy: Policy, spec: InputSpec, class_names: Sequence[str] | None, name: str
) -> dict[str, Any]:
    stages, exits, suffix = net.staged.stages, net.exits, FORMATS[name]
    return {
        "format": "dynext-export",
        "version": VERSION,
        "policy": policy.to_dict(),
        "input": asdict(spec),
        "num_classes": net.num_classes,
        "class_names": None if class_names is None else list(class_names),
        "stages": [
            {"file": f"stage_{s:02}{suffix}", "name": stage.name, "macs": stage.macs, "tap": stage.tap}
            for s, stage in enumerate(stages)
        ],
        "exits": [
            {"file": f"exit_{e:02}{suffix}", "name": exit.name, "macs": exit.macs, "after": exit.after, "exit": e}
            for e, exit in enumerate(exits)
        ],
        "gates": None if net.gates is None else _gates_card(net.gates, suffix),
    }


def _gates_card(gates: Gates, suffix: str) -> dict[str, Any]:
    """How a runner evaluates the gates: by one program for all or by one each, with the sizes of their memory."""
    sizes = [] if gates.at_once else [int(kept.shape[1]) for kept in gates.begin(torch.zeros(2, *gates.spec["input"]))]
    each = [f"gate_{g:02}{suffix}" for g in range(len(gates))]
    return {
        "at": list(gates.at),
        "macs": list(gates.macs_g),
        "start_macs": gates.start_macs,
        "start": f"gates{suffix}" if gates.at_once else None,
        "files": [] if gates.at_once else each,
        "memory": sizes,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings about their own future, which a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
