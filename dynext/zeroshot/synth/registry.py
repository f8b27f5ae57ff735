"""Methods of synthesis by name: our own, and those that other packages bring (`dynext.plugins`)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from dynext import plugins
from dynext.errors import SourceError
from dynext.types import InputSpec
from dynext.zeroshot.synth import procedural
from dynext.zeroshot.synth.fitted import fitted
from dynext.zeroshot.synth.foreign import adopted
from dynext.zeroshot.synth.generator import generator as trained_generator
from dynext.zeroshot.synth.impressions import impressions
from dynext.zeroshot.synth.inversion import inversion
from dynext.zeroshot.synth.method import Method, Sampler, UntrainedSampler, samples_per_chunk
from dynext.zeroshot.synth.mixture import mixture_of
from dynext.zeroshot.synth.patches import patches
from dynext.zeroshot.synth.styles import LEAVES, OBJECTS, Style

GROUP = "dynext.synthesizers"

Make = Callable[..., Sampler | UntrainedSampler]


def _gaussian(teacher: nn.Module, spec: InputSpec, seed: int) -> Sampler:
    return Sampler(
        sample=lambda count, draw: procedural.gaussian(count, spec.shape, draw), per_chunk=samples_per_chunk(spec.shape)
    )


def _painted(verb: Callable[..., Tensor], default: Style) -> Callable[..., Sampler]:
    """A method that paints the same samples for every teacher."""

    def method(teacher: nn.Module, spec: InputSpec, seed: int, *, style: Style = default) -> Sampler:
        return Sampler(
            sample=lambda count, draw: spec.normalize(verb(count, spec.shape, draw, style)),
            per_chunk=samples_per_chunk(spec.shape),
        )

    return method


BLIND = ("gaussian", "pink", "leaves", "objects", "patches")
"""Methods that never look at the teacher."""

OWN: dict[str, Make] = {
    "gaussian": _gaussian,
    "pink": _painted(procedural.pink, LEAVES),
    "leaves": _painted(procedural.leaves, LEAVES),
    "objects": _painted(procedural.objects, OBJECTS),
    "fitted": fitted,
    "inversion": inversion,
    "impressions": impressions,
    "generator": trained_generator,
    "patches": patches,
}


class Methods(Mapping[str, Make]):
    """``method(teacher, spec, seed, **options) -> Sampler`` (or ``UntrainedSampler``) by name, our own ones first."""

    def __getitem__(self, name: str) -> Make:
        if name in OWN:
            return OWN[name]
        return adopted(plugins.registered(GROUP)[name].load(), name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*OWN, *plugins.registered(GROUP))))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in list(self)


METHODS = Methods()

OWN["mixture"] = mixture_of(METHODS)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A method, the name by which a bank tells of it, and who made it: nothing where it is our own."""

    name: str
    make: Make
    made_by: str = ""


def chosen(method: Method) -> Chosen:
    """The method of that name, or the callable itself, called by where it was defined.

    Raises:
        SourceError: no such method (the nearest is suggested), or something else. PluginError: a package is broken.
    """
    if not isinstance(method, str):
        if not callable(method):
            raise SourceError(f"method={method!r}; give a name, or a function (teacher, spec, seed, **options)")
        name = plugins.reference(method)
        return Chosen(name=name, make=adopted(method, name), made_by=plugins.digest(method))
    if method in OWN:
        return Chosen(name=method, make=OWN[method])
    known = plugins.registered(GROUP)
    if method not in known:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"methods are {', '.join(METHODS)}"
        raise SourceError(f"no method {method!r}; {hint}")
    part = known[method]
    made_by = plugins.identity(part.value) if part.value is not None else f"{part.version} ({part.reference})"
    return Chosen(name=method, make=METHODS[method], made_by=made_by)
