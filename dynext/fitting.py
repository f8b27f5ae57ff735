"""The one training loop: Lightning Fabric brings device, precision and processes; a step function brings the loss.

Every verb that trains hands `fit` a module and ``step(module, draw, done) -> loss``; the step draws its samples with
the generator it is given, so that a run which was killed and resumed ends bit for bit where an unbroken one ends.
"""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from dynext.atomic import check_writable, replaced_file
from dynext.brief import short_repr
from dynext.errors import FitError
from dynext.seeding import generator
from dynext.training_modes import training_what_learns
from dynext.usual_modes import usual_modes

Step = Callable[[nn.Module, Generator, float], Tensor]
"""``step(module, draw, done)`` draws samples with ``draw`` and gives a loss; ``done`` is the share of steps done."""

Share = Callable[[str], float]
"""``share(part)``: the learning rate of the module's child ``part``, as a share of ``FitConfig.lr``."""

CHECKPOINT_VERSION = 2

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine", "onecycle", "milestones"]
Modes = Literal["learning", "given"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train: the same few knobs for every method."""

    steps: int = 1000
    lr: float = 1e-3
    trunk_lr: float | None = None
    """Learning rate of the stages, where a method trains them at a rate of their own beside heads or gates; 0 leaves
    them as they are, bit for bit, and ``None`` takes what the method says. `fit` itself does not read it."""
    batch_size: int = 0
    """Samples that a method draws at each step; 0 takes what the method says. `fit` itself draws none."""
    optimizer: Optimizer = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of the run after which the rate falls tenfold (``schedule="milestones"``)."""
    warmup: float = 0.2
    """Share of the run spent rising to ``lr`` (``schedule="onecycle"``)."""
    clip_norm: float | None = None
    seed: int = 0
    checkpoint: Path | None = None
    """File to keep the run's state in; an existing one is resumed."""
    checkpoint_seconds: float = 60.0
    accelerator: str = "cpu"
    precision: Precision = "32-true"
    """Of a step's convolutions and matrix products; bf16-mixed is about three times as fast on CPUs with AMX."""
    progress: bool = True
    label: str = "training"
    about: str = ""
    """What else tells this run from others; a checkpoint is resumed by a run of the same figures, label and this."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise FitError(f"steps={self.steps}; give 0 or more")
        if not self.lr > 0 or (self.trunk_lr is not None and not self.trunk_lr >= 0):
            raise FitError(
                f"lr={self.lr}, trunk_lr={self.trunk_lr}; the first must be positive, the second not negative"
            )
        if self.batch_size < 0:
            raise FitError(f"batch_size={self.batch_size}; give at least one sample, or 0 for the method's own")
        choices = {"optimizer": Optimizer, "schedule": Schedule, "precision": Precision}
        for name, known in ((name, get_args(kind)) for name, kind in choices.items()):
            if getattr(self, name) not in known:
                raise FitError(f"{name}={getattr(self, name)!r}; give one of {', '.join(known)}")
        if self.checkpoint is not None:  # who gives text means a path
            object.__setattr__(self, "checkpoint", Path(self.checkpoint))


class FitOptions(TypedDict, total=False):
    """Fields of `FitConfig`, as the keywords that every method of training takes in its place or beside it."""

    steps: int
    lr: float
    trunk_lr: float | None
    batch_size: int
    optimizer: Optimizer
    momentum: float
    weight_decay: float
    schedule: Schedule
    milestones: tuple[float, ...]
    warmup: float
    clip_norm: float | None
    seed: int
    checkpoint: Path | str | None
    checkpoint_seconds: float
    accelerator: str
    precision: Precision
    progress: bool


def configured(usual: FitConfig, config: FitConfig | FitOptions | None, options: FitOptions) -> FitConfig:
    """``config``, or a method's ``usual`` one where none was given, with ``options`` in place of its fields.

    A mapping of the fields that differ from the usual ones does for a config.

    The batch size is the usual one wherever nobody names one.

    Raises:
        FitError: an option that is no field (the nearest is suggested), or a figure out of range.
    """
    if isinstance(config, Mapping):
        config = configured(usual, None, config)
    check_options(options, FitOptions.__annotations__)
    asked: FitConfig = replace(usual if config is None else config, **options)  # type: ignore[arg-type]
    return replace(asked, batch_size=asked.batch_size or usual.batch_size)


def check_options(options: Collection[str], known: Collection[str]) -> None:
    """Raises FitError: an option that is none of the ``known``; the nearest is suggested."""
    unknown = [name for name in options if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"did you mean {near[0]}=?" if near else f"there are {', '.join(known)}"
        raise FitError(f"there is no option {unknown[0]}; {hint}")


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a run did: the loss of each step of this process, its seconds, and the step it was resumed at (0: new)."""

    __repr__ = short_repr

    losses: list[float] = field(repr=False)
    seconds: float
    resumed_at: int


def rate_at(config: FitConfig, step: int) -> float:
    """Learning rate as a share of ``config.lr`` at ``step`` (from 0), by the config's schedule."""
    done = step / max(config.steps, 1)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "milestones":
        return 0.1 ** sum(done >= m for m in config.milestones)
    if config.schedule == "onecycle":
        if done < config.warmup:
            return 0.04 + 0.96 * done / config.warmup
        done = (done - config.warmup) / max(1 - config.warmup, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@usual_modes()
def fit(
    module: nn.Module, step: Step, config: FitConfig, share: Share | None = None, *, modes: Modes = "learning"
) -> FitResult:
    """Train ``module`` in place by ``step``'s loss; parameters that need no gradient stay as they are.

    Meanwhile what learns is in training mode and what is frozen in evaluation, whatever ``module`` is in now: the
    BatchNorms of a frozen trunk keep their statistics, those of heads that learn gather theirs. Flags are given back.

    With ``config.checkpoint`` the state (module, optimizer, generator, step count) is written there atomically
    about every ``checkpoint_seconds`` and at the end; a second call with the same config goes on from it.

    Args:
        share: asked anew before every step; without it all parameters get the whole rate.
        modes: ``"given"`` leaves every part in the mode that it is in.

    Raises:
        FitError: nothing to train, an accelerator that is not there, a loss that is not finite, or a checkpoint of
            another run.
        DiskError: the checkpoint's disk is full, or one may not write there.
    """
    from lightning_fabric import Fabric  # brings torchmetrics along: twice as long as torch itself

    if config.checkpoint is not None:
        _check_place(config.checkpoint)
    parameters = _to_learn(module, modes)
    try:
        fabric = Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
    except (ImportError, RuntimeError, ValueError) as error:
        raise FitError(f"accelerator={config.accelerator!r} cannot be used here ({error}); give 'cpu'") from error
    parts = {"": parameters} if share is None else _by_child(module)
    optimizer = _optimizer([{"params": group} for group in parts.values()], config)
    wrapped, wrapped_optimizer = fabric.setup(module, optimizer, move_to_device=True)
    draw = generator(config.seed)
    start = _resume(module, optimizer, draw, config)
    losses: list[float] = []
    began = saved = time.monotonic()
    bar = tqdm(
        total=config.steps, initial=start, desc=config.label, disable=None if config.progress else True, leave=False
    )
    with bar, training_what_learns(module) if modes == "learning" else nullcontext():
        for t in range(start, config.steps):
            for part, group in zip(parts, optimizer.param_groups, strict=True):
                group["lr"] = config.lr * rate_at(config, t) * (1.0 if share is None else share(part))
            optimizer.zero_grad(set_to_none=True)
            with fabric.autocast():  # also what a step computes beside the module's own forward
                loss = step(wrapped, draw, t / config.steps)
            losses.append(_finite(loss, t, config))
            fabric.backward(loss)
            if config.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            wrapped_optimizer.step()
            bar.update()
            if t % 20 == 0:
                bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            if config.checkpoint is not None and time.monotonic() - saved > config.checkpoint_seconds:
                _save(module, optimizer, draw, t + 1, config)
                saved = time.monotonic()
    if config.checkpoint is not None and start < config.steps:
        _save(module, optimizer, draw, config.steps, config)
    return FitResult(losses=losses, seconds=time.monotonic() - began, resumed_at=start)


def _to_learn(module: nn.Module, modes: Modes) -> list[nn.Parameter]:
    """The parameters that want a gradient."""
    if modes not in get_args(Modes):
        raise FitError(f"modes={modes!r}; give 'learning' (what learns is in training) or 'given' (as it is now)")
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise FitError("no parameter of the module requires a gradient; nothing would be trained")
    return parameters


def _by_child(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """What is trained, by the child of ``module`` that holds it first."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(name.split(".")[0], []).append(parameter)
    return parts


def _optimizer(groups: list[dict[str, Any]], config: FitConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, weight_decay=config.weight_decay)


def _finite(loss: Tensor, step: int, config: FitConfig) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FitError(
            f"{config.label}: the loss is {value} at step {step}; "
            f"lower lr (now {config.lr}) or look for NaN among the samples"
        )
    return value


def _identity(config: FitConfig) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that resumes it."""
    figures = {name: getattr(config, name) for name in _FIGURES}
    return {"version": CHECKPOINT_VERSION, **figures, "milestones": list(config.milestones)}


_FIGURES = (
    "steps", "seed", "lr", "optimizer", "momentum", "weight_decay", "schedule", "warmup", "clip_norm", "precision",
    "label", "about",
)  # fmt: skip


def check_same_run(recorded: Mapping[str, Any], current: Mapping[str, Any], name: str = "the checkpoint") -> None:
    """That a run goes on with the options it began with, those that ``name`` has ``recorded``.

    Raises:
        FitError: they differ; it says how.
    """
    changes = [f"{key} was {recorded.get(key)}, is {now}" for key, now in current.items() if recorded.get(key) != now]
    if changes:
        raise FitError(f"{name} belongs to another run ({', '.join(changes)}); delete it or name another file")


def _save(module: nn.Module, optimizer: torch.optim.Optimizer, draw: Generator, step: int, config: FitConfig) -> None:
    path = config.checkpoint
    if path is None:
        return
    state = {
        "identity": _identity(config),
        "step": step,
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": draw.get_state(),
    }
    with replaced_file(path) as partial:
        torch.save(state, partial)


def _check_place(path: Path) -> None:
    """That a checkpoint can be kept at ``path``, before there is anything to lose."""
    if path.is_dir():
        raise FitError(f"the checkpoint {path} is a folder; name a file")
    check_writable(path.parent)


def _resume(module: nn.Module, optimizer: torch.optim.Optimizer, draw: Generator, config: FitConfig) -> int:
    if config.checkpoint is None or not config.checkpoint.exists():
        return 0
    try:
        state = torch.load(config.checkpoint, weights_only=True, map_location="cpu")
        identity = state["identity"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise FitError(
            f"{config.checkpoint} is not a training checkpoint of dynext ({type(error).__name__}); "
            f"delete it to start over"
        ) from error
    check_same_run(identity, _identity(config), str(config.checkpoint))
    try:
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:  # names or shapes differ
        reason = " ".join(str(error).split())[:200]
        raise FitError(
            f"{config.checkpoint} belongs to another net ({reason}); delete it or name another file"
        ) from error
    draw.set_state(state["generator"])
    return int(state["step"])
