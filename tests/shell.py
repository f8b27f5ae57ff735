"""The commands, called as from a shell, on nets and amounts small enough for a test."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner, Result

from dynext.cli import main

TINY = ("cifar:resnet8", "--argument", "width=2", "--after", "layer1,layer2")
SMALL = ("--method", "leaves", "--samples", "64", "--steps", "3")


def run(*arguments: Any) -> Result:
    """``dynext ARGUMENTS``; what nobody foresaw is raised."""
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="dynext", catch_exceptions=False)


def done(*arguments: Any) -> str:
    """What a call that succeeds prints."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: Any) -> str:
    """The one line that refuses a call, with exit code 2."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("Error:")] == lines[-1:]
    return lines[-1]
