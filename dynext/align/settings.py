"""What `align_exits` can be told beside how to train: the aligning term, the trunk, and what exits learn to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from dynext.align.augmentations import Augmentations
from dynext.align.losses import Loss, Term, check_loss, loss_name, weight_of
from dynext.errors import FitError
from dynext.fitting import FitConfig

Trunk = Literal["frozen", "joint"]

Learn = Literal["teacher", "labels"]


@dataclass(frozen=True, kw_only=True)
class AlignmentTerm:
    """The term of the loss that pulls early exits' embeddings towards the last exit's.

    ``term="barlow"`` is short for ``term=AlignmentTerm(loss="barlow")``.

    Raises:
        FitError: no such loss, or a figure out of range.
    """

    loss: Loss | Term = "cosine"
    """One of the published losses, `dynext.align.losses.term_of` says which; or a function of one's own
    (`dynext.align.losses.Term`)."""
    weight: float | None = None
    """What the term counts beside classification: `dynext.align.losses.WEIGHTS` without it, 0 for classification alone
    (the control)."""
    contrast: float = 0.1
    """Temperature of ``"ntxent"`` and ``"selfcon"``."""
    hidden: int = 256
    """Width of the projection heads' hidden layers."""
    size: int = 128
    """Size of what the projection heads give."""
    drop_conflicts: bool = False
    """Leave the term out of each step at which its gradient points away from classification's. Takes two further
    backward passes a step."""

    def __post_init__(self) -> None:
        check_loss(self.loss, self.contrast)
        if self.weight is not None and not self.weight >= 0:
            raise FitError(f"weight={self.weight}; give 0 or more")
        if min(self.hidden, self.size) < 1:
            raise FitError(f"hidden={self.hidden}, size={self.size}; both are positive")

    @property
    def effective_weight(self) -> float:
        """``weight``, or the loss's own default without it."""
        return weight_of(self.loss) if self.weight is None else self.weight


@dataclass(frozen=True, kw_only=True)
class JointTrunk:
    """Train the trunk too, and hold the last exit near the static net. ``trunk="joint"`` is short for this.

    Raises:
        FitError: a share out of range.
    """

    max_drift: float = 0.02
    """Share of the held-out samples that the last exit may answer unlike the static net."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_drift <= 1:
            raise FitError(f"max_drift={self.max_drift}; give a share of the samples, in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class FromTeacher:
    """Distil the full net's answers into the exits; no label is read. ``learn="teacher"`` is short for this.

    Raises:
        FitError: a temperature that is not positive.
    """

    temperature: float = 4.0
    """Of distillation (`dynext.losses.exits.distillation`)."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise FitError(f"temperature={self.temperature}; give a positive one")


@dataclass(frozen=True, kw_only=True)
class AlignmentSettings:
    """Everything that one run of `align_exits` is told beside its `FitConfig`, every short form written out."""

    term: AlignmentTerm
    joint: JointTrunk | None
    """``None`` with a frozen trunk."""
    teacher: FromTeacher | None
    """``None`` where exits learn from labels."""
    classes: tuple[int, ...] | None
    augmentations: Augmentations | None

    @classmethod
    def of(
        cls,
        term: AlignmentTerm | Loss | Term,
        trunk: JointTrunk | Trunk,
        learn: FromTeacher | Learn,
        classes: Sequence[int] | None,
        augmentations: Augmentations | None,
    ) -> AlignmentSettings:
        """Raises FitError: a word that is no short form."""
        trunks: dict[object, JointTrunk | None] = {"frozen": None, "joint": JointTrunk()}
        teachers: dict[object, FromTeacher | None] = {"labels": None, "teacher": FromTeacher()}
        trunk_known = isinstance(trunk, JointTrunk) or trunk in get_args(Trunk)
        if not trunk_known or not (isinstance(learn, FromTeacher) or learn in get_args(Learn)):
            raise FitError(f"trunk={trunk!r}, learn={learn!r}; give 'frozen' or 'joint', and 'teacher' or 'labels'")
        return cls(
            term=term if isinstance(term, AlignmentTerm) else AlignmentTerm(loss=term),
            joint=trunk if isinstance(trunk, JointTrunk) else trunks[trunk],
            teacher=learn if isinstance(learn, FromTeacher) else teachers[learn],
            classes=None if classes is None else tuple(dict.fromkeys(map(int, classes))),
            augmentations=augmentations,
        )

    @property
    def trunk(self) -> Trunk:
        return "frozen" if self.joint is None else "joint"

    @property
    def temperature(self) -> float:
        """Of distillation; the default where there is none."""
        return (self.teacher or FromTeacher()).temperature

    def identity(self, config: FitConfig) -> dict[str, Any]:
        """What must agree between a checkpoint and the run that resumes it.

        Keys are part of the checkpoint's format, and what a choice leaves out has its default there.
        """
        return {
            "loss": loss_name(self.term.loss),
            "weight": self.term.effective_weight,
            "trunk": self.trunk,
            "learn": "labels" if self.teacher is None else "teacher",
            "classes": None if self.classes is None else list(self.classes),
            "views": None if self.augmentations is None else asdict(self.augmentations),
            "batch_size": config.batch_size,
            "trunk_lr": config.trunk_lr,
            "temperature": self.temperature,
            "contrast": self.term.contrast,
            "drop_conflicts": self.term.drop_conflicts,
            "max_drift": (self.joint or JointTrunk()).max_drift,
        }
