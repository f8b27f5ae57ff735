"""Options of a command from the fields of settings, and the settings from what was given: nothing is written twice.

A field takes part when its metadata has a ``help``; there, ``flag`` names it otherwise than the field is called, and
``least``, ``most`` and ``above`` bound a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

Settings = TypeVar("Settings")
Command = TypeVar("Command", bound=Callable[..., Any])


def settings_options(*kinds: type, types: Mapping[str, click.ParamType] | None = None) -> Callable[[Command], Command]:
    """Options for the fields of ``kinds``, in their order; a field that several kinds share is one option.

    Args:
        types: click's types of fields whose choices only the command knows.
    """
    options = {}
    for kind in kinds:
        hints = get_type_hints(kind)
        for one in fields(kind):
            if "help" in one.metadata and one.name not in options:
                options[one.name] = _option(one, (types or {}).get(one.name) or _number(one, hints[one.name]))

    def decorate(command: Command) -> Command:
        for option in reversed(options.values()):
            command = option(command)
        return command

    return decorate


def settings_of(kind: type[Settings], given: Mapping[str, Any], **others: Any) -> Settings:
    """An object of ``kind`` from those of the ``given`` options that are its fields, and from ``others``."""
    named = {one.name: given[one.name] for one in fields(kind) if "help" in one.metadata}  # type: ignore[arg-type]
    return kind(**{**named, **others})


def _option(one: Field[Any], kind: click.ParamType) -> Callable[[Command], Command]:
    flags = one.metadata.get("flag", (f"--{one.name.replace('_', '-')}",))
    shown = one.default is not None
    return click.option(*flags, one.name, type=kind, default=one.default, show_default=shown, help=one.metadata["help"])


def _number(one: Field[Any], hint: Any) -> click.ParamType:
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    least, most, above = (one.metadata.get(bound) for bound in ("least", "most", "above"))
    bounds: dict[str, Any] = {"min": least if above is None else above, "max": most, "min_open": above is not None}
    return click.IntRange(**bounds) if kinds == [int] else click.FloatRange(**bounds)
