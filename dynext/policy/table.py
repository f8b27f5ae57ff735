"""One small table decides everything after training: what each exit said of each row, and what it cost.

Shape legend: n rows, e exits (the last is the full net), k classes, g gated stages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dynext.atomic import replaced_file
from dynext.brief import short_repr
from dynext.errors import ArtifactError, PolicyError
from dynext.policy.confidence import confidences, first_sure_exit
from dynext.policy.policy import Policy
from dynext.policy.skip_record import Skipped
from dynext.types import Basis

TABLE_VERSION = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ExitTable:
    """Logits of every exit on every row ``[n e k]`` (float32), with the cost of getting there.

    Raises:
        PolicyError: no rows, or shapes and lengths that do not fit together.
    """

    __repr__ = short_repr

    logits_nek: Tensor
    trunk_macs_e: tuple[int, ...]
    """MACs of the stages up to each exit, heads not included; the last is the static net."""
    head_macs_e: tuple[int, ...]
    """MACs of each exit's own head; 0 for the last, whose head is part of the static net."""
    label_n: Tensor | None
    basis: Basis
    """Right against the labels, or against the full net's own answer."""
    name_e: tuple[str, ...]
    """Where each exit sits."""
    rows: str
    """Which rows these are, in words: "2,000 Fashion-MNIST test images"."""
    synthetic: bool = False
    trunk_ms_e: tuple[float, ...] | None = None
    head_ms_e: tuple[float, ...] | None = None
    """Measured milliseconds at batch 1, in the same two parts."""
    skipped: Skipped | None = None
    """What the rows skipped, where gates decided; the last exit is then the net as they left it, not the static one."""
    learned_n: Tensor | None = None
    """Which rows the exits have learned from, where there are such (bool): on these they agree more than on others."""

    def __post_init__(self) -> None:
        if self.logits_nek.ndim != 3 or self.logits_nek.dtype != torch.float32:
            shape, kind = list(self.logits_nek.shape), self.logits_nek.dtype
            raise PolicyError(f"logits {shape} of {kind}; a table wants [samples, exits, classes] of torch.float32")
        n, e, k = self.logits_nek.shape
        if n == 0:
            raise PolicyError("a table of 0 samples says nothing; collect at least one")
        if k < 2:
            raise PolicyError(f"logits of {k} classes; a table wants at least 2")
        lengths = [len(self.trunk_macs_e), len(self.head_macs_e), len(self.name_e)]
        lengths += [len(ms_e) for ms_e in (self.trunk_ms_e, self.head_ms_e) if ms_e is not None]
        if set(lengths) != {e}:
            raise PolicyError(f"logits of {e} exits but costs and names of {lengths}; give one of each per exit")
        if list(self.trunk_macs_e) != sorted(self.trunk_macs_e) or min(self.head_macs_e) < 0 or self.head_macs_e[-1]:
            raise PolicyError(
                f"trunk MACs {self.trunk_macs_e} must not fall, head MACs {self.head_macs_e} not be negative, "
                f"the last head cost 0"
            )
        if self.basis not in ("labels", "teacher") or (self.basis == "labels" and self.label_n is None):
            raise PolicyError(f"basis {self.basis!r} with labels {self.label_n}; give labels, or basis 'teacher'")
        if self.label_n is not None:
            self._check_labels(self.label_n)
        if self.skipped is not None:
            self.skipped.check(n, e, k)
        if self.learned_n is not None and (self.learned_n.shape != (n,) or self.learned_n.dtype != torch.bool):
            shape, kind = list(self.learned_n.shape), self.learned_n.dtype
            raise PolicyError(f"learned_n {shape} of {kind} for {n} samples; give one bool each")

    def _check_labels(self, label_n: Tensor) -> None:
        n, _, k = self.logits_nek.shape
        if label_n.shape != (n,) or label_n.dtype != torch.int64:
            raise PolicyError(f"labels {list(label_n.shape)} of {label_n.dtype} for {n} samples; give one int64 each")
        low, high = int(label_n.min()), int(label_n.max())
        if low < 0 or high >= k:
            raise PolicyError(f"labels from {low} to {high} for classes 0 to {k - 1}; number classes as the net does")

    def __len__(self) -> int:
        return len(self.logits_nek)

    @property
    def num_learned(self) -> int:
        """Rows that the exits have learned from."""
        return 0 if self.learned_n is None else int(self.learned_n.sum())

    @property
    def num_exits(self) -> int:
        return self.logits_nek.shape[1]

    @property
    def num_classes(self) -> int:
        return self.logits_nek.shape[2]

    @property
    def static_macs(self) -> int:
        """MACs of the static net, per row."""
        return self.trunk_macs_e[-1]

    @property
    def keep_g(self) -> tuple[float | None, ...] | None:
        """By which rule stages were skipped; ``None`` where none was."""
        return None if self.skipped is None else self.skipped.keep_g

    @property
    def full_nk(self) -> Tensor:
        """Logits of the full net, nothing skipped ``[n k]``: what agreement is with."""
        return self.logits_nek[:, -1] if self.skipped is None else self.skipped.full_nk

    @cached_property
    def answer_ne(self) -> Tensor:
        """Each exit's answer ``[n e]``, int64."""
        return self.logits_nek.argmax(-1)

    @cached_property
    def full_answer_n(self) -> Tensor:
        """The full net's answer ``[n]``, int64."""
        return self.full_nk.argmax(-1)

    @property
    def target_n(self) -> Tensor:
        """What counts as right ``[n]``: the labels, or the full net's answers."""
        if self.basis == "labels" and self.label_n is not None:
            return self.label_n
        return self.full_answer_n

    @cached_property
    def right_ne(self) -> Tensor:
        """Whether each exit is right ``[n e]``, bool."""
        return self.answer_ne == self.target_n[:, None]

    @property
    def accuracy_e(self) -> tuple[float, ...]:
        """Share of the rows that each exit answers like their label.

        Raises:
            PolicyError: the table has no labels; `agreement_e` needs none.
        """
        if self.label_n is None:
            raise PolicyError(
                f"the table of {self.rows} has no labels to be right against; collect labelled samples, or take "
                f"table.agreement_e: the share answered like the full net"
            )
        return _means(self.answer_ne == self.label_n[:, None])

    @property
    def agreement_e(self) -> tuple[float, ...]:
        """Share of the rows that each exit answers like the full net: no accuracy, the full net errs as well."""
        return _means(self.answer_ne == self.full_answer_n[:, None])

    @cached_property
    def full_right_n(self) -> Tensor:
        """Whether the full net is right ``[n]``, bool."""
        return self.full_answer_n == self.target_n

    @cached_property
    def trunk_macs_ne(self) -> Tensor:
        """MACs of the stages that each row runs up to each exit ``[n e]``, int64, gates included, heads not."""
        if self.skipped is not None:
            return self.skipped.macs_ne
        return torch.tensor(self.trunk_macs_e).expand(len(self), -1)

    def macs_ne(self, enabled_e: Sequence[bool]) -> Tensor:
        """MACs of each row if it leaves at each exit ``[n e]``, int64, as `macs_e` counts them."""
        heads_e = [head if enabled else 0 for head, enabled in zip(self.head_macs_e, enabled_e, strict=True)]
        return self.trunk_macs_ne + torch.tensor(heads_e).cumsum(0)

    def macs_e(self, enabled_e: Sequence[bool]) -> tuple[int, ...]:
        """MACs of a row that leaves at each exit: the stages up to it and every head run on the way. Where stages are
        skipped, rounded means over the rows."""
        macs_ne = self.macs_ne(enabled_e)
        return tuple((macs_ne[0] if self.skipped is None else macs_ne.double().mean(0).round().long()).tolist())

    def check_whole(self, what: str) -> None:
        """Refuse rows that skipped stages, where ``what`` knows of exits only."""
        if self.skipped is not None:
            raise PolicyError(
                f"{what} knows of exits only, and the samples of this table skipped stages; collect it without keep=, "
                f"or choose by MACs with dx.choose"
            )

    def subset(self, index: Tensor) -> ExitTable:
        """The rows at ``index``, an int64 or bool tensor."""
        label_n = None if self.label_n is None else self.label_n[index]
        skipped = None if self.skipped is None else self.skipped.subset(index)
        learned_n = None if self.learned_n is None else self.learned_n[index]
        return replace(self, logits_nek=self.logits_nek[index], label_n=label_n, skipped=skipped, learned_n=learned_n)

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, atomically."""
        path = Path(path)
        plain = {name: getattr(self, name) for name in _PLAIN}
        tensors = {"logits_nek": self.logits_nek.contiguous()}
        if self.label_n is not None:
            tensors["label_n"] = self.label_n.contiguous()
        if self.learned_n is not None:
            tensors["learned_n"] = self.learned_n.contiguous()
        if self.skipped is not None:
            tensors |= self.skipped.tensors()
            plain["keep_g"] = list(self.skipped.keep_g)
        with replaced_file(path) as partial:
            save_file(tensors, partial, metadata={"dynext_table": json.dumps({"version": TABLE_VERSION, **plain})})

    @classmethod
    def load(cls, path: Path | str) -> ExitTable:
        """The table that ``save`` wrote.

        Raises:
            ArtifactError: the file is missing, truncated, no exit table, or of a later version.
        """
        try:
            with safe_open(path, framework="pt") as file:
                plain = json.loads((file.metadata() or {})["dynext_table"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            version = plain.pop("version")
            if version != TABLE_VERSION:
                raise ArtifactError(f"{path} is a table of version {version}, this dynext reads {TABLE_VERSION}")
            plain = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
            if "keep_g" in plain:
                plain["skipped"] = Skipped.take(plain.pop("keep_g"), tensors)
            return cls(**{"label_n": None, **tensors, **plain})
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, PolicyError) as error:
            raise ArtifactError(f"{path} is no exit table that can be read ({error}); collect it again") from error


def _means(right_ne: Tensor) -> tuple[float, ...]:
    return tuple(right_ne.double().mean(0).tolist())


_PLAIN = ("trunk_macs_e", "head_macs_e", "basis", "name_e", "rows", "synthetic", "trunk_ms_e", "head_ms_e")


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a policy does on a table, row by row and on average."""

    __repr__ = short_repr

    exit_n: Tensor
    """Where each row leaves, int64."""
    macs_n: Tensor
    """What each row costs, int64, the heads it passed included."""
    right_n: Tensor
    """Whether its answer is the label (basis labels) or the full net's (basis teacher)."""
    share_e: tuple[float, ...]
    """Share of the rows that leave at each exit."""
    macs: float
    """Mean MACs per row."""
    saved: float
    """Share of the static net's MACs that is saved; below 0 when heads cost more than they save."""
    agreement: float
    """Share of the rows answered like the full net."""
    accuracy: float | None
    """Share of the rows answered like their label; ``None`` when the basis is the teacher."""
    ms: float | None
    """Mean milliseconds per row at batch 1 by the table's measured times, if it has them."""


def simulate(table: ExitTable, policy: Policy) -> Outcome:
    """What ``policy`` would do: each row leaves at the first exit that is on and sure enough.

    A row whose logits are NaN or infinite at an exit does not leave there, whatever the threshold,
    unless it is the last.

    Raises:
        PolicyError: the policy is for another number of exits, or skips by another rule than the table's rows did.
    """
    policy.check_exits(table.num_exits)
    if policy.skip_rule != table.keep_g:
        raise PolicyError(
            f"the policy skips by {policy.skip_rule}, the table's samples by {table.keep_g}; "
            f"collect a table with keep=policy.keep_g"
        )
    conf_ne = confidences(table.logits_nek, policy.confidence, policy.temperature_e, policy.enabled_e)
    return outcome_of(table, first_sure_exit(conf_ne, policy.threshold_e), policy)


def outcome_of(table: ExitTable, exit_n: Tensor, policy: Policy) -> Outcome:
    """What leaving at ``exit_n`` comes to, with the heads run that ``policy`` has on."""
    return _outcome(table, exit_n, table.macs_ne(policy.enabled_e), _ms_e(table, policy))


def oracle(table: ExitTable) -> Outcome:
    """The least any exit rule could pay on these rows: each leaves at the cheapest exit that is right.

    It pays that one head only; rows that no exit gets right go to the last. No rule can know this: a reference.
    """
    cost_ne = table.trunk_macs_ne + torch.tensor(table.head_macs_e)
    wrong_cost_ne = cost_ne.masked_fill(~table.right_ne, torch.iinfo(torch.int64).max)
    exit_n = wrong_cost_ne.argmin(1).where(table.right_ne.any(1), table.num_exits - 1)
    return _outcome(table, exit_n, cost_ne, None)


def _ms_e(table: ExitTable, policy: Policy) -> list[float] | None:
    if table.trunk_ms_e is None or table.head_ms_e is None:
        return None
    head_e = [ms if on else 0.0 for ms, on in zip(table.head_ms_e, policy.enabled_e, strict=True)]
    return [trunk + sum(head_e[: e + 1]) for e, trunk in enumerate(table.trunk_ms_e)]


def _outcome(table: ExitTable, exit_n: Tensor, macs_ne: Tensor, ms_e: Sequence[float] | None) -> Outcome:
    macs_n = macs_ne.gather(1, exit_n[:, None])[:, 0]
    answer_n = table.answer_ne.gather(1, exit_n[:, None])[:, 0]
    right_n = answer_n == table.target_n
    share_e = torch.bincount(exit_n, minlength=table.num_exits).double() / len(table)
    macs = float(macs_n.double().mean())
    return Outcome(
        exit_n=exit_n,
        macs_n=macs_n,
        right_n=right_n,
        share_e=tuple(share_e.tolist()),
        macs=macs,
        saved=1 - macs / table.static_macs if table.static_macs else 0.0,
        agreement=float((answer_n == table.full_answer_n).double().mean()),
        accuracy=float(right_n.double().mean()) if table.basis == "labels" else None,
        ms=None if ms_e is None else float(torch.tensor(ms_e, dtype=torch.float64)[exit_n].mean()),
    )
