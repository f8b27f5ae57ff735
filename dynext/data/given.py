"""Verbs take samples in every form: one decorator at their entry makes a Source of what the user has."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, ParamSpec, TypeVar

from dynext.data.sources import as_source, named
from dynext.errors import SourceError
from dynext.fitting import FitOptions
from dynext.types import InputSpec, Source

P = ParamSpec("P")
R = TypeVar("R")

TOLD = """

Samples ({names}) are whatever `dynext.data.as_source` takes: (x, y), a data set, a loader, a folder, a Source. ``spec``
says how the net wants pixels normalized, where neither the samples nor ``net.spec`` do.
"""


class LearnOptions(FitOptions, total=False):
    """The keywords that every method of training takes: fields of `FitConfig`, and the spec of samples that carry
    none.
    """

    spec: InputSpec | None


def takes_data(
    *names: str, unlabelled: Collection[str] = (), besides: tuple[type, ...] = (), own_classes: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A verb whose arguments ``names`` and ``unlabelled`` are samples: it is given Sources,
    whatever it was called with.

    The verb also takes ``spec=``, which never reaches it. Without it the net's own spec counts (``net.spec``), else
    that of other samples among the arguments.

    Args:
        unlabelled: samples whose labels are not looked at.
        besides: types that the verb knows itself.
        own_classes: classes are the samples' own, not the net's.
    """

    def taking(verb: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(verb)

        @functools.wraps(verb)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            spec: Any = kwargs.pop("spec", None)
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return verb(*args, **kwargs)  # which says it better
            given = bound.arguments
            wanted = {name: given[name] for name in (*names, *unlabelled) if given.get(name) is not None}
            others = [value for name, value in given.items() if name not in wanted]
            wanted = {name: value for name, value in wanted.items() if not isinstance(value, besides)}
            net = next((one for one in others if hasattr(one, "num_classes")), None)
            told = _spec_for(wanted, others, spec)
            for name, value in wanted.items():
                if told is None and not isinstance(value, Source):
                    raise _no_spec(name, others)
                with named(name):
                    given[name] = as_source(
                        value,
                        told,
                        labelled=False if name in unlabelled else None,
                        classes=None if own_classes or net is None else net.num_classes,
                    )
            return verb(*bound.args, **bound.kwargs)

        called.__doc__ = (inspect.getdoc(verb) or "") + TOLD.format(names=", ".join((*names, *unlabelled)))
        return called

    return taking


def _spec_for(wanted: Mapping[str, Any], others: Collection[Any], spec: Any) -> InputSpec | None:
    """The spec that was given, else the net's own, else that of other samples."""
    if spec is not None and not isinstance(spec, InputSpec):
        raise SourceError(f"spec is a {type(spec).__name__}; give dx.InputSpec(shape=..., mean=..., std=...)")
    known = [own for one in others if isinstance(own := getattr(one, "spec", None), InputSpec)]
    if spec is not None and known and (known[0].mean, known[0].std) != (spec.mean, spec.std):
        raise SourceError(
            f"spec= says mean {spec.mean}, std {spec.std}, the net's own mean {known[0].mean}, std {known[0].std}; "
            f"leave spec= out, or correct net.spec"
        )
    beside = [own for one in wanted.values() if isinstance(own := getattr(one, "spec", None), InputSpec)]
    return spec or next(iter((*known, *beside)), None)


def _no_spec(name: str, others: Collection[Any]) -> SourceError:
    """Asks for a spec, of the net's shape."""
    shapes = [getattr(getattr(one, "staged", None), "input_shape", None) for one in others]
    shape = next((tuple(one) for one in shapes if one), (3, 224, 224))
    figures = "(...,)" if shape[0] == 1 else "(" + ", ".join(["..."] * shape[0]) + ")"
    return SourceError(
        f"nothing says how the net wants the pixels of {name} normalized; give spec=dx.InputSpec(shape={shape}, "
        f"mean={figures}, std={figures}), with mean 0 and std 1 for a net that takes pixels in [0, 1]"
    )
