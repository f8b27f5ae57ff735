"""What a conversion is asked for, one concern a class. A wrong combination cannot be written down.

`dynext.convert` takes these objects; ``dynext convert`` makes its options out of their fields, with the help that
stands beside each, and builds the same objects; and the record of a conversion is `dataclasses.asdict` of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from dynext.brief import short_repr
from dynext.errors import FitError, PolicyError, SourceError
from dynext.net.given_heads import HeadsGiven
from dynext.policy.choose import DEFAULT_MAX_DROP
from dynext.policy.unproven import WhenUnsafe
from dynext.zeroshot.synth.method import Method

SkipKind = Literal["skipnet", "blockdrop", "static"]

SAMPLES, STEPS, JOINT_STEPS, SKIP_STEPS = 8192, 1000, 500, 600
"""What a conversion does when nobody is in a hurry; a time budget keeps their proportion."""

VIEWS = 8
"""How often each calibration sample is seen when it is distilled on."""


def _setting(default: Any, told: str, **more: Any) -> Any:
    """A field with what ``--help`` says of it, and ``more`` for the command line: another flag, a least and a most."""
    return field(default=default, metadata={"help": told, **more})


@dataclass(frozen=True, kw_only=True)
class Exits:
    """Where exits stand and what they are made of."""

    after: tuple[str, ...] | tuple[float, ...] | None = None
    """Layer names, or shares of the MACs between 0 and 1; found automatically without."""
    heads: HeadsGiven | None = None
    """As `dynext.attach` takes them: heads of ours, your own, one for each exit, a name; `default_heads` without."""


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """Samples to distil on, made out of the teacher: no image is needed.

    Raises:
        SourceError: fewer than one sample.
    """

    __repr__ = short_repr

    method: Method = _setting("fitted", "How samples are synthesized.", flag=("--method", "--synth"))  # noqa: RUF009
    """A name, or a function ``(teacher, spec, seed, **options)``, as `dynext.synthesize` takes them."""
    n: int = _setting(SAMPLES, "Samples to synthesize.", flag=("--samples",), least=1)
    options: Mapping[str, Any] = field(default_factory=dict)
    """The method's own, as `dynext.synthesize` takes them."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise SourceError(f"n={self.n}; ask for at least one sample")


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The exits alone are distilled: the full net stays the teacher, bit for bit.

    Raises:
        FitError: a negative number of steps.
    """

    steps: int = _setting(STEPS, "Distillation steps of the exits.", least=0)

    def __post_init__(self) -> None:
        _check_steps(steps=(self.steps, 0))


@dataclass(frozen=True, kw_only=True)
class Joint:
    """The exits alone, then trunk and exits together (`dynext.zeroshot.distill_jointly`): for thin nets, whose early
    layers have little to tell. What the last exit loses by that is taken off what may be lost.

    Raises:
        FitError: too few steps.
    """

    steps: int = _setting(STEPS, "Distillation steps of the exits.", least=0)
    joint_steps: int = _setting(JOINT_STEPS, "Steps of trunk and exits together.", least=1)

    def __post_init__(self) -> None:
        _check_steps(steps=(self.steps, 0), joint_steps=(self.joint_steps, 1))


@dataclass(frozen=True)
class Skip:
    """Residual blocks are taught to be skipped as well. The trunk is trained for it; where skipping is not safe by the
    rule that exits are judged by, the trunk stays the teacher's.

    ``"skipnet"``: recurrent gates; ``"blockdrop"``: a policy network that sees the input once; ``"static"``: the same
    blocks for every sample.

    Raises:
        FitError: another kind, or too few steps.
    """

    kind: SkipKind = "skipnet"
    _: KW_ONLY
    steps: int = _setting(STEPS, "Distillation steps of the exits.", least=0)
    skip_steps: int = _setting(SKIP_STEPS, "Steps of learning to skip.", least=2)

    def __post_init__(self) -> None:
        if self.kind not in get_args(SkipKind):
            raise FitError(f"Skip({self.kind!r}); give one of {', '.join(get_args(SkipKind))}")
        _check_steps(steps=(self.steps, 0), skip_steps=(self.skip_steps, 2))


def _check_steps(**given: tuple[int, int]) -> None:
    """Each a number of steps and the least that makes sense."""
    for name, (steps, least) in given.items():
        if steps < least:
            raise FitError(f"{name}={steps}; give {least} or more")


Training: TypeAlias = Frozen | Joint | Skip


@dataclass(frozen=True)
class Unlabelled:
    """A few hundred unlabelled samples that temperatures, class biases and thresholds come from: agreement with the
    full net needs no label.
    """

    __repr__ = short_repr

    samples: Any
    """In any form that `dynext.data.as_source` takes."""
    _: KW_ONLY
    distill: bool = False
    """Exits are also distilled on them, each seen in several views. Thresholds are then chosen on answers of exits that
    have not seen the sample (cross-fitting). Saves far more."""
    views: int = VIEWS


@dataclass(frozen=True, kw_only=True)
class Target:
    """What may be lost, or what may be spent; with neither, a hundredth may be lost.

    Raises:
        PolicyError: a share out of range.
    """

    max_drop: float | None = _setting(
        None, f"Accuracy that may be lost.  [default: {DEFAULT_MAX_DROP}, a point]", least=0.0, most=1.0
    )
    """As a share of the samples: 0.01 is a point."""
    budget: float | None = _setting(None, "Share of the static net's MACs to spend.", above=0.0)
    when_unsafe: Literal["static", "least"] = _setting(
        "static", "Where nothing is proven safe: the static net, or the least unsafe."
    )
    """``"least"`` gives the policy that needs the least loss to be allowed, its note saying that it is not proven."""

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise PolicyError(f"max_drop {self.max_drop}; give a share of the samples from 0 to 1, 0.01 for one point")
        if self.budget is not None and not 0 < self.budget < float("inf"):
            raise PolicyError(
                f"budget {self.budget}; give a positive share of the static net's MACs, 0.5 for half of them"
            )
        if self.when_unsafe not in get_args(WhenUnsafe):
            raise PolicyError(f"when_unsafe={self.when_unsafe!r}; give 'static' or 'least'")

    @property
    def loss(self) -> float | None:
        """What may be lost: what was asked for, a hundredth if nothing was, ``None`` with a budget alone."""
        return DEFAULT_MAX_DROP if self.max_drop is None and self.budget is None else self.max_drop


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a conversion is carried out.

    Raises:
        SourceError: a number of minutes that is not positive.
    """

    seed: int = _setting(0, "All that is random follows it.")
    minutes: float | None = _setting(None, "Plan samples and steps to take so long.", above=0.0)
    """Time to take: samples and steps are then planned by this machine's speed."""
    folder: Path | None = None
    """Banks and training state are kept here, so that an interrupted conversion goes on where it was; one folder for
    each conversion."""
    accelerator: str = "cpu"
    progress: bool = True

    def __post_init__(self) -> None:
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise SourceError(f"minutes={self.minutes}; give a positive number")
        if self.folder is not None:  # who gives text means a path
            object.__setattr__(self, "folder", Path(self.folder))


TRAININGS = ("frozen", "joint", *get_args(SkipKind))
"""What the command line calls them."""


def training_name(training: Training) -> str:
    """One of `TRAININGS`."""
    return training.kind if isinstance(training, Skip) else type(training).__name__.lower()


def training_named(name: str, **figures: int) -> Training:
    """The training of that name, with those of the ``figures`` that it has."""
    kind: type[Training] = {"frozen": Frozen, "joint": Joint}.get(name, Skip)
    own: dict[str, Any] = {key: value for key, value in figures.items() if key in {one.name for one in fields(kind)}}
    return Skip(name, **own) if kind is Skip else kind(**own)  # type: ignore[arg-type]
