"""A measure of confidence of somebody else's: what it must give, what is checked of it, and how a policy keeps it.

A measure is a function ``logits [n k] -> [n]``: how sure an exit is of each row, in [0, 1], higher is surer, from that
row alone. The logits are divided by the exit's temperature already. A policy is JSON and holds no code: it keeps a
measure by the name that it is registered by (entry point ``dynext.confidences``, or `dynext.plugins.register`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynext import plugins
from dynext.errors import DynextError, PolicyError, line

GROUP = "dynext.confidences"

OwnMeasure = Callable[[Tensor], Tensor]
"""``logits [n k] -> [n]`` in [0, 1]."""

ROUNDING = 1e-5
"""How far beyond 0 or 1 a value may lie and be taken as that."""


def names() -> tuple[str, ...]:
    """Names of the measures that other packages bring."""
    return tuple(plugins.registered(GROUP))


def named(measure: str | OwnMeasure) -> OwnMeasure:
    """The function of that name, or the function itself, checked at every call.

    Raises:
        PluginError: its package is broken. PolicyError: what is registered is no function.
    """
    function = plugins.registered(GROUP)[measure].load() if isinstance(measure, str) else measure
    name = measure_name(measure)
    if not callable(function) or isinstance(function, type):
        raise PolicyError(f"confidence {name} is a {type(function).__name__}; register a function logits [n k] -> [n]")

    def checked(logits_nk: Tensor) -> Tensor:
        if not len(logits_nk):
            return logits_nk.new_zeros(0)
        wide_nk = logits_nk if logits_nk.dtype == torch.float64 else logits_nk.float()
        try:
            value_n = function(wide_nk)
        except DynextError:
            raise
        except Exception as error:  # code of somebody else's can fail in any way
            raise PolicyError(
                f"confidence {name} failed ({line(error)}); it is called with logits {tuple(wide_nk.shape)} and gives "
                f"one number in [0, 1] for each sample"
            ) from error
        return _checked(value_n, wide_nk, name)

    return checked


def _checked(value_n: Any, logits_nk: Tensor, name: str) -> Tensor:
    if not isinstance(value_n, Tensor) or value_n.shape != logits_nk.shape[:1] or not value_n.is_floating_point():
        told = f"{value_n.dtype} {tuple(value_n.shape)}" if isinstance(value_n, Tensor) else type(value_n).__name__
        raise PolicyError(
            f"confidence {name} gave {told} for logits {tuple(logits_nk.shape)}; give floats [n], one for each sample"
        )
    value_n = value_n.detach().to(logits_nk.device)
    # such a row never leaves early, whatever the measure makes of it
    makes_sense_n = logits_nk.amax(-1).isfinite() & ~logits_nk.isnan().any(-1)
    inside = value_n[makes_sense_n]
    if inside.isnan().any() or (len(inside) and (inside.min() < -ROUNDING or inside.max() > 1 + ROUNDING)):
        raise PolicyError(
            f"confidence {name} gave values from {float(inside.min()):.4g} to {float(inside.max()):.4g}; give numbers "
            f"in [0, 1], higher is surer: value.sigmoid(), say"
        )
    return value_n.clamp(0, 1).where(makes_sense_n, torch.nan)


def check_rows_alone(function: OwnMeasure, logits_nk: Tensor, name: str) -> None:
    """Raises PolicyError: a row's confidence depends on the rows beside it, which leave one by one in a run."""
    if len(logits_nk) < 2:
        return
    whole, alone = function(logits_nk)[:1], function(logits_nk[:1])
    if not torch.allclose(whole, alone, atol=1e-4, equal_nan=True):
        raise PolicyError(
            f"confidence {name} gives a sample {float(alone):.4g} by itself and {float(whole):.4g} among others; "
            f"compute it of each sample alone (dim=-1), not over the batch"
        )


def measure_name(measure: object) -> str:
    """How reports call a measure."""
    return plugins.reference(measure) if callable(measure) else str(measure)


def saved_name(measure: OwnMeasure) -> str:
    """The name that ``measure`` is registered by.

    Raises:
        PolicyError: it is not registered, and how it is.
    """
    for name, part in plugins.registered(GROUP).items():
        if part.value is measure or (part.value is None and part.reference == plugins.reference(measure)):
            return name
    raise PolicyError(
        f"the policy's confidence is the function {plugins.reference(measure)}, which JSON cannot hold; give it a name "
        f"by dx.plugins.register({GROUP!r}, 'mine', function), or in a package by the entry point {GROUP}, and do so "
        f"again where the policy is loaded"
    )
