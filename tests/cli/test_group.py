"""Every command explains itself; a mistake ends in one line and exit code 2, a fault of ours in a traceback."""

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from shell import refused, run

from dynext.cli import main
from dynext.cli.group import Commands
from dynext.errors import DynextError

COMMANDS = (
    "demo", "inspect", "convert", "evaluate", "predict", "align", "meta-train", "adapt", "prune", "bench", "export",
    "report", "synthesize", "recipe",
)  # fmt: skip


def test_the_commands_stand_in_a_newcomers_order() -> None:
    assert tuple(main.list_commands(click.Context(main))) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_and_how(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Example: dynext {name}" in result.output
    described = [option for option in main.commands[name].params if isinstance(option, click.Option)]
    assert all(option.help for option in described)
    assert len(result.output.splitlines()) < 64


def test_alone_it_shows_where_to_start() -> None:
    result = run()
    assert result.exit_code == 0
    assert "dynext demo" in result.output
    assert all(f"\n  {name} " in result.output for name in COMMANDS)
    assert "..." not in result.output.split("Commands:")[1]


def test_unknown_words_are_met_with_the_nearest() -> None:
    assert refused("inpect") == "Error: No command 'inpect'; did you mean inspect? See 'dynext --help'."
    assert "there are demo, inspect" in refused("xyzzy")
    assert "--foo" in refused("inspect", "--foo")
    assert refused("inspect") == "Error: Missing argument 'MODEL'. See 'dynext inspect --help'."


def _raising(error: BaseException, name: str = "go") -> Commands:
    @click.group(cls=Commands)
    def group() -> None:
        """A group."""

    @group.command(name)
    def go() -> None:
        """Fail."""
        raise error

    return group


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DynextError("given\n  this"), "Error: given this"),
        (PermissionError(13, "Permission denied", "/there"), "Error: /there: Permission denied"),
        (click.ClickException("no"), "Error: no"),
    ],
)
def test_a_mistake_is_one_line(error: Exception, line: str) -> None:
    result = CliRunner().invoke(_raising(error), ["go"])
    assert result.exit_code == 2
    assert result.stderr == f"{line}\n"


@pytest.mark.parametrize("error", [ZeroDivisionError("ours"), OSError("without a file")])
def test_a_fault_keeps_its_traceback(error: Exception) -> None:
    result = CliRunner().invoke(_raising(error), ["go"])
    assert result.exit_code == 1
    assert result.exception is error


@pytest.mark.parametrize(
    ("name", "goes_on"), [("convert", True), ("synthesize", True), ("align", True), ("report", False)]
)
def test_an_interruption_says_how_to_go_on_where_one_can(name: str, goes_on: bool) -> None:
    result = CliRunner().invoke(_raising(KeyboardInterrupt(), name), [name])
    assert result.exit_code == 130
    assert "Stopped." in result.stderr
    assert ("The same command again goes on" in result.stderr) == goes_on


def test_it_runs_from_a_real_shell() -> None:
    call = "import sys; from dynext.cli import main; main(prog_name='dynext')"
    arguments = ["inspect", "cifar:resnet8", "--argument", "width=2", "--json"]
    result = subprocess.run([sys.executable, "-c", call, *arguments], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["num_classes"] == 10
