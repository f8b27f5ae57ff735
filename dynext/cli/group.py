"""The group that holds every command, and how it tells a mistake: one line, exit code 2."""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from dynext.errors import DynextError

INTERRUPTED = 130
RESUMED = ("convert", "synthesize", "align", "meta-train")
"""Commands that keep what they have done so far."""
FULL = (errno.ENOSPC, errno.EDQUOT)


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
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "dynext"
            said = error.format_message().rstrip(".")
            _refuse(f"{said}{'' if said.endswith('?') else '.'} See '{path} --help'.")
        except click.ClickException as error:
            _refuse(error.format_message())
        except DynextError as error:
            _refuse(str(error))
        except OSError as error:
            if error.filename is None and error.errno not in FULL:
                raise
            _refuse(": ".join(str(part) for part in (error.filename, error.strerror) if part))
        except click.Abort:
            asked = [*(sys.argv[1:] if args is None else args), ""][0]
            again = " The same command again goes on where it was interrupted." if asked in RESUMED else ""
            click.echo(f"\nStopped.{again}", err=True)
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


def _refuse(message: str) -> NoReturn:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(2)
