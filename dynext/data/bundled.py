"""Where the small files that ship with dynext lie: the bundled net, its card, the sample images, the recipes."""

from pathlib import Path

from dynext.errors import DynextError

FOLDERS = (
    Path(__file__).parents[1] / "bundled_files",  # an installed wheel
    Path(__file__).parents[2] / "data",  # a checkout, also when installed with --editable
)

RECIPES = (Path(__file__).parents[1] / "bundled_recipes", Path(__file__).parents[2] / "recipes")
"""The recipes of this very version, in the same two kinds of installation."""


def recipe_folder() -> Path:
    """The folder of the recipes that ship with dynext.

    Raises:
        DynextError: the installation lost them.
    """
    for folder in RECIPES:
        if folder.is_dir():
            return folder
    raise DynextError(f"the recipes that ship with dynext are not in {RECIPES[0]}; install dynext again")


def bundled_folder() -> Path:
    """The folder of the files that ship with dynext.

    Raises:
        DynextError: the installation lost them.
    """
    for folder in FOLDERS:
        if folder.is_dir():
            return folder
    raise DynextError(f"the files that ship with dynext are not in {FOLDERS[0]}; install dynext again")


def bundled_file(name: str) -> Path:
    """The path of one file that ships with dynext, such as ``"fashion_resnet20.safetensors"``.

    Raises:
        DynextError: there is no such file; the message lists those there are.
    """
    folder = bundled_folder()
    path = folder / name
    if not path.is_file():
        present = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise DynextError(f"no file {name!r} ships with dynext; there is: {present}")
    return path
