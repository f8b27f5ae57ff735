"""``dynext recipe``: the experiments of this version, to look at, to copy and to run."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from dynext.cli.shared.recipes import about, recipe_file, recipe_module, recipes
from dynext.cli.shared.show import columns
from dynext.errors import DynextError
from dynext.recipe import run_recipe


@click.group(short_help="Experiments to look at, to copy and to run.", invoke_without_command=True)
@click.pass_context
def recipe(ctx: click.Context) -> None:
    """Whole experiments, one Python file each, as they belong to this version of dynext, and those of installed
    packages (entry points dynext.recipes).

    \b
    Example: dynext recipe run exits_joint --smoke
             dynext recipe cp exits_joint mine.py
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@recipe.command("ls", short_help="The recipes there are.")
def list_() -> None:
    """Name every recipe and say what it is for.

    \b
    Example: dynext recipe ls
    """
    lines = [("recipe", "what it does")]
    lines += [(name, about(one)) for name, one in recipes().items()]
    click.echo(columns(lines, left=(0, 1)))


@recipe.command(short_help="Print a recipe.")
@click.argument("name")
def show(name: str) -> None:
    """Print the recipe NAME.

    \b
    Example: dynext recipe show exits_joint
    """
    click.echo(recipe_file(name).read_text(encoding="utf-8"), nl=False)


@recipe.command("cp", short_help="Copy a recipe, to change it.")
@click.argument("name")
@click.argument("to", type=click.Path(path_type=Path), default=Path())
def copy(name: str, to: Path) -> None:
    """Copy the recipe NAME to a file or into a folder (here, by default); nothing is overwritten.

    \b
    Example: dynext recipe cp exits_joint mine.py
    """
    source = recipe_file(name)
    target = to / source.name if to.is_dir() else to
    if target.exists():
        raise DynextError(f"{target} is there already; name another file")
    if not target.parent.is_dir():
        raise DynextError(f"there is no folder {target.parent}; make it first")
    shutil.copyfile(source, target)
    click.echo(f"Copied to {target}; run it: python {target} --help")


@recipe.command(short_help="Run a recipe.", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("name")
@click.argument("settings", nargs=-1, type=click.UNPROCESSED)
def run(name: str, settings: tuple[str, ...]) -> None:
    """Run the recipe NAME; field=value changes a setting, --smoke takes the smallest, --help after NAME lists them.

    \b
    Example: dynext recipe run exits_joint method=boostnet epochs=2
    """
    if name == "--help":
        click.echo(run.get_help(click.get_current_context()))
        return
    module = recipe_module(name)
    run_recipe(module.PAPER, module.SMOKE, module.main, settings)
