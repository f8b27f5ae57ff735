"""Proxies that answer what is the same for all samples, and record the rest.

``x.shape`` of ``[b 3 8 8]`` is ``(a recorded b, 3, 8, 8)``: Python code may do with the numbers what it likes.
``x.dtype`` and ``x.device`` stay recorded, for a net that moves or changes its precision; comparing them is answered.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch.fx.proxy import Attribute, TraceError

FIXED_ATTRIBUTES = frozenset(
    ("ndim", "requires_grad", "is_cuda", "is_leaf", "is_meta", "is_mps", "is_nested", "is_quantized", "is_sparse")
)
FIXED_METHODS = frozenset(
    ("dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size", "get_device", "type")
)
FIXED_METHODS |= {"is_floating_point", "is_complex", "is_signed", "is_contiguous", "is_inference"}
KINDS = ("dtype", "device")


class TracedShape(tuple[Any, ...]):
    """A shape, with recorded values where it follows the number of samples."""

    def __fx_create_arg__(self, tracer: fx.Tracer) -> Any:
        return tuple(tracer.create_arg(size) for size in self)

    def numel(self) -> Any:
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        items = super().__getitem__(index)
        return TracedShape(items) if isinstance(index, slice) else items

    def __add__(self, other: Any) -> Any:
        return TracedShape((*self, *other)) if isinstance(other, tuple) else NotImplemented


class InPlaceProxy(fx.Proxy):
    """Records ``x += y`` and ``x[i] = y`` as what they are; plain fx forgets that other names of ``x`` change too."""

    tracer: Any

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._record(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._record(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._record(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._record(operator.itruediv, other)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._record(operator.setitem, index, value)

    def __getattr__(self, k: str) -> Any:
        attribute = InPlaceAttribute(self, k)
        if k == "shape":
            return sizes(self, attribute)
        if k in FIXED_ATTRIBUTES or (isinstance(self, InPlaceAttribute) and self.attr in KINDS):
            return fixed(self, operator.attrgetter(k), attribute)
        return attribute

    def __len__(self) -> int:
        return int(self.tracer.decide(self, len))

    def __int__(self) -> int:
        return int(self.tracer.decide(self, int))

    def __float__(self) -> float:
        return float(self.tracer.decide(self, float))

    def _record(self, operation: Callable[..., Any], *others: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, *others), {})


class InPlaceAttribute(InPlaceProxy, Attribute):
    """``x.T``, or ``x.size`` on its way to be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        def recorded() -> fx.Proxy:
            return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)

        if self.attr == "size":
            of = args[0] if args else kwargs.get("dim")
            whole = sizes(self.root, None)
            return recorded() if whole is None else (whole if of is None else whole[of])
        if self.attr in FIXED_METHODS and not (self.attr == "type" and (args or kwargs)):
            return fixed(self.root, operator.methodcaller(self.attr, *args, **kwargs), recorded)
        return recorded()

    def __hash__(self) -> int:
        return hash(fixed(self.root, operator.attrgetter(self.attr), id(self)) if self.attr in KINDS else id(self))


def sizes(proxy: Any, otherwise: Any) -> Any:
    """The shape of a tensor, numbers where it is the same for all samples; ``otherwise`` where that is not known."""
    try:
        shapes = proxy.tracer.answers(proxy, lambda result: tuple(result.shape) if is_tensor(result) else None)
    except TraceError:
        return otherwise
    if shapes[0] is None or len({len(shape) for shape in shapes}) > 1:
        return otherwise
    record = proxy.tracer.create_proxy
    return TracedShape(
        each[0] if len(set(each)) == 1 else record("call_method", "size", (proxy, index), {})
        for index, each in enumerate(zip(*shapes, strict=True))
    )


def fixed(proxy: Any, question: Callable[[Any], Any], otherwise: Any) -> Any:
    """The answer of all samples, else ``otherwise``, called if that is a function."""
    try:
        answers = proxy.tracer.answers(proxy, question)
        if all(answer == answers[0] for answer in answers) and not is_tensor(answers[0]):
            return answers[0]
    except TraceError:
        pass
    return otherwise() if callable(otherwise) and not isinstance(otherwise, fx.Proxy) else otherwise


def is_tensor(value: Any) -> bool:
    """Whether a node gives a tensor."""
    return isinstance(value, Tensor)
