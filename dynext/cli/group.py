"""The group that holds every command, and how it tells a mistake: one line, exit code 2."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from dynext.atomic import disk_fault
from dynext.cli.shared.progress import notes_shown
from dynext.errors import DiskError, DynextError

INTERRUPTED = 130
RESUMED = ("convert", "synthesize", "align", "meta-train")
"""Commands that keep what they have done so far."""


class Commands(click.Group):
    """Commands whose users' mistakes end in one line and exit code 2. What is ours to mend keeps its traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            with notes_shown():
                code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "dynext"
            said = error.format_message().rstrip(".")
            _refuse(f"{said}{'' if said.endswith('?') else '.'} See '{path} --help'.")
        except click.ClickException as error:
            _refuse(error.format_message())
        except DiskError as error:
            _refuse(f"{error}.{_again(args)}")
        except DynextError as error:
            _refuse(str(error))
        except OSError as error:
            fault = disk_fault(error)
            if error.filename is None and fault is None:
                raise
            _refuse(": ".join(str(part) for part in (error.filename, fault or error.strerror) if part))
        except click.Abort:
            click.echo(f"\nStopped.{_again(args)}", err=True)
            sys.exit(INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
            raise click.UsageError(f"No command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order a newcomer needs them, not by the alphabet."""
        return list(self.commands)


def _again(args: Sequence[str] | None) -> str:
    asked = [*(sys.argv[1:] if args is None else args), ""][0]
    return " The same command again goes on where it was interrupted." if asked in RESUMED else ""


def _refuse(message: str) -> NoReturn:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(2)
