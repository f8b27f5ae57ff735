"""How support samples are learned: what a caller may say, and what that comes to for a given net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from dynext.errors import FitError
from dynext.fitting import check_options
from dynext.meta.inner import InnerLoop
from dynext.meta.norms import Norm
from dynext.meta.start import MetaStart
from dynext.net.dynamic_net import DynamicNet

Method = Literal["prototypes", "head", "classifier", "owned", "used"]
"""What adapting changes: classifiers to class means without a gradient, or by gradient steps one of `Adapts`."""

Classifiers = Literal["prototypes", "kept"]
"""What gradient steps start from: class means of the support, or the classifiers as they are."""


class AdaptOptions(TypedDict, total=False):
    """How to learn support samples, as the keywords of `adapt` and `evaluate_episodes`; `adapt` says what each means.

    What is left out, or ``None``, is for the net to say: as it was meta-trained, else class means alone.
    """

    steps: int | None
    method: Method | None
    lr: float | None
    classifiers: Classifiers | None
    bn: Norm | None


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How support samples are learned, every choice made.

    Raises:
        FitError: a figure out of range, or a word that is no choice.
    """

    method: Method
    steps: int
    lr: float
    bn: Norm
    classifiers: Classifiers
    careful: bool = False
    """Halve a step that makes the loss on the support samples larger: step sizes that nobody has learned."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.method, get_args(Method)),
            ("classifiers", self.classifiers, get_args(Classifiers)),
            ("bn", self.bn, get_args(Norm)),
        ):
            if value not in known:
                raise FitError(f"{name}={value!r}; give one of {', '.join(known)}")
        if self.steps < 0 or not self.lr > 0:
            raise FitError(f"steps={self.steps}, lr={self.lr}; give 0 or more steps of a positive size")


def as_start(net: DynamicNet | MetaStart) -> MetaStart:
    """A net of any origin as a start, its inner loop the default one."""
    return net if isinstance(net, MetaStart) else MetaStart(net=net, inner=InnerLoop())


def adapt_config(net: DynamicNet | MetaStart, options: AdaptOptions) -> AdaptConfig:
    """The given options, and for the others what a meta-learned start was learned for, else class means alone.

    Gradient steps that were meta-trained on some statistics take these: an inner loop learned on those of the samples
    at hand leads nowhere on others. The default is the net's running statistics else.

    Raises:
        FitError: an option that does not exist, a figure out of range, or options that exclude each other.
    """
    check_options(options, AdaptOptions.__annotations__)
    steps, lr, classifiers = options.get("steps"), options.get("lr"), options.get("classifiers")
    inner = as_start(net).inner
    if lr is not None and as_start(net).step_sizes is not None:
        raise FitError(f"lr={lr}, but this start has learned its own step sizes; leave lr out")
    method = options.get("method") or _usual_method(net, steps)
    if method == "prototypes":
        _check_class_means(steps, lr, classifiers)
    # A start for class means has never trained its classifiers, nor a step size.
    for_steps = isinstance(net, MetaStart) and inner.rule != "prototypes"
    as_trained = for_steps and method != "prototypes"
    usual_steps = 0 if method == "prototypes" else inner.steps
    return AdaptConfig(
        method=method,
        steps=usual_steps if steps is None else steps,
        lr=inner.lr if lr is None else lr,
        bn=options.get("bn") or (inner.bn if as_trained else "frozen"),
        classifiers=classifiers or ("kept" if as_trained else "prototypes"),
        careful=not for_steps,
    )


def _usual_method(net: DynamicNet | MetaStart, steps: int | None) -> Method:
    if isinstance(net, MetaStart):
        return "prototypes" if net.inner.rule == "prototypes" else net.inner.adapts
    return "head" if steps else "prototypes"


def _check_class_means(steps: int | None, lr: float | None, classifiers: Classifiers | None) -> None:
    """Refuse what class means, which replace classifiers and take no gradient step, would pass over."""
    if steps or lr is not None:
        given = f"steps={steps}" if steps else f"lr={lr}"
        raise FitError(f"{given}, but class means take none; give method='head' to go on from them by gradient")
    if classifiers == "kept":
        raise FitError(
            "classifiers='kept', but class means replace classifiers; give steps, which go on from the net's own"
        )
