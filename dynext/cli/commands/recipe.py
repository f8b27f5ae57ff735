"""``dynext recipe``: the experiments of this version, to look at, to copy and to run."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import shutil
import sys
from pathlib import Path

import click

from dynext.cli.shared.show import columns
from dynext.data.bundled import recipe_folder
from dynext.errors import DynextError
from dynext.recipe import run_recipe


@click.group(short_help="Experiments to look at, to copy and to run.", invoke_without_command=True)
@click.pass_context
def recipe(ctx: click.Context) -> None:
    """Whole experiments, one Python file each, as they belong to this version of dynext.

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
    lines += [(path.stem, _about(path)) for path in _recipes().values()]
    click.echo(columns(lines, left=(0, 1)))


@recipe.command(short_help="Print a recipe.")
@click.argument("name")
def show(name: str) -> None:
    """Print the recipe NAME.

    \b
    Example: dynext recipe show exits_joint
    """
    click.echo(_find(name).read_text(encoding="utf-8"), nl=False)


@recipe.command("cp", short_help="Copy a recipe, to change it.")
@click.argument("name")
@click.argument("to", type=click.Path(path_type=Path), default=Path())
def copy(name: str, to: Path) -> None:
    """Copy the recipe NAME to a file or into a folder (here, by default); nothing is overwritten.

    \b
    Example: dynext recipe cp exits_joint mine.py
    """
    source = _find(name)
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
    path = _find(name)
    spec = importlib.util.spec_from_file_location(f"dynext_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise DynextError(f"{path} is no Python file; install dynext again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in the file look themselves up there
    spec.loader.exec_module(module)
    run_recipe(module.PAPER, module.SMOKE, module.main, settings)


def _recipes() -> dict[str, Path]:
    return {path.stem: path for path in sorted(recipe_folder().glob("*.py"))}


def _find(name: str) -> Path:
    known = _recipes()
    path = known.get(name.removesuffix(".py"))
    if path is None:
        near = difflib.get_close_matches(name, known, 1)
        raise DynextError(
            f"no recipe {name!r}; {f'did you mean {near[0]}?' if near else 'dynext recipe ls lists them'}"
        )
    return path


def _about(path: Path) -> str:
    """The first sentence of the file's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ")
