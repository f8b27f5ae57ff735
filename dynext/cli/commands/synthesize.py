"""``dynext synthesize``: a bank of samples out of a net alone, a picture of some, and how good they are."""

from __future__ import annotations

import inspect
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import click
from matplotlib.figure import Figure

from dynext.atomic import replaced_file
from dynext.cli.shared.options import (
    Argument,
    device_option,
    json_option,
    model_options,
    open_artifact,
    open_given,
    seed_option,
    writable_folder,
)
from dynext.cli.shared.show import print_json
from dynext.errors import SourceError
from dynext.models.catalog import Reference
from dynext.zeroshot.bank import HEAD, Bank
from dynext.zeroshot.synth.method import option_names
from dynext.zeroshot.synth.quality import quality
from dynext.zeroshot.synth.registry import METHODS
from dynext.zeroshot.synth.synthesize import synthesize as make_rows

SHOWN, COLUMNS = 64, 8
"""Pictures on a contact sheet, and how many side by side."""


def _bank_folder(ctx: click.Context, param: click.Parameter, value: Path) -> Path:
    if value.is_file():
        raise click.BadParameter(f"{value} is a file; name a folder")
    if value.is_dir() and not (value / HEAD).exists() and any(not p.name.startswith(".") for p in value.iterdir()):
        raise click.BadParameter(f"{value} holds other files and no bank; name another folder")
    return writable_folder(ctx, param, value)


def _sheet_file(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() != ".png":
        raise click.BadParameter(f"{value} does not end with .png; the contact sheet is a PNG")
    if value is not None and not value.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {value.absolute().parent}")
    if value is not None:
        writable_folder(ctx, param, value.absolute().parent)
    return value


@click.command(short_help="Make a bank of samples out of a net alone.")
@model_options
@click.option(
    "--method", type=click.Choice(list(METHODS)), default="fitted", show_default=True, help="How samples are made."
)
@click.option("-n", "--samples", "rows", type=click.IntRange(min=1), default=4096, show_default=True, help="How many.")
@click.option(
    "--out", metavar="FOLDER", type=click.Path(path_type=Path), required=True, callback=_bank_folder,
    help="Where the bank goes.",
)  # fmt: skip
@click.option(
    "--set", "changes", type=Argument(), multiple=True, help="An option of the method, such as iterations=40; repeat."
)
@click.option(
    "--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The one image, for patches."
)
@click.option(
    "--against", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A dynamic net whose exits the samples should teach what they do not know.",
)  # fmt: skip
@click.option(
    "--sheet", metavar="PNG", type=click.Path(dir_okay=False, path_type=Path), callback=_sheet_file,
    help="Put pictures of some samples there.",
)  # fmt: skip
@seed_option
@device_option
@json_option
def synthesize(
    model: str,
    method: str,
    rows: int,
    out: Path,
    changes: tuple[tuple[str, Any], ...],
    image: Path | None,
    against: Path | None,
    sheet: Path | None,
    seed: int,
    device: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Synthesize samples out of MODEL, without any training image, and say how good its own statistics find them.

    The bank can be distilled on (dx.Bank.open, dx.distill). A synthesis that was interrupted goes on when the same
    command is run again.

    \b
    Example: dynext synthesize bundled:fashion_resnet20 --method inversion -n 512 --out bank --sheet bank.png
    """
    opened = open_given(model, **given)
    if not opened.trained and opened.recipe["kind"] != "file":
        click.echo(f"Note: {model} has random weights; give --checkpoint, or weights by name@WEIGHTS.", err=True)
    options = method_options(method, changes)
    if image is not None:
        options["image"] = image
    student = None
    if against is not None:
        own_file = model if Reference.parse(model).kind == "file" else None
        student = open_artifact(against, own_file, given["arguments"]).net.to(device)
        if "against" in option_names(METHODS[method]):
            options["against"] = student
        else:
            click.echo(
                f"Note: {method} makes the same samples for every student; --against is only measured.", err=True
            )
    teacher = opened.model.to(device)
    bank = make_rows(
        teacher, shape=opened.spec.shape, n=rows, seed=seed, method=method, spec=opened.spec, folder=out, **options
    )
    worth = quality(bank, teacher, student)
    if sheet is not None:
        write_sheet(bank, sheet)
    if as_json:
        print_json({"folder": str(out), "provenance": asdict(bank.provenance), "quality": worth.to_dict()})
        return
    click.echo(f"{worth}\n\nThe bank is in {out}" + ("." if sheet is None else f", pictures of it in {sheet}."))


def method_options(method: str, changes: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """``key=value`` pairs as options of ``method``; a key may also be a field of its ``settings``.

    Raises:
        SourceError: no such option, or a value of another kind.
    """
    names = option_names(METHODS[method])
    parameters = inspect.signature(METHODS[method]).parameters
    settings: Any = parameters["settings"].default if "settings" in names else None
    known = {f.name: getattr(settings, f.name) for f in fields(settings)} if is_dataclass(settings) else {}
    plain = {name: parameters[name].default for name in names if name not in ("settings", "against", "image", "style")}
    options: dict[str, Any] = {}
    changed: dict[str, Any] = {}
    for key, value in changes:
        if key in plain:
            options[key] = _like(key, value, plain[key])
        elif key in known:
            changed[key] = _like(key, value, known[key])
        else:
            raise SourceError(f"method {method} has no option {key}; it has {', '.join([*plain, *known]) or 'none'}")
    return {**options, "settings": replace(settings, **changed)} if changed else options


def _like(key: str, value: Any, default: Any) -> Any:
    """``value``, if it is of the default's kind; a list becomes a tuple."""
    value = tuple(value) if isinstance(value, list) else value
    if default is inspect.Parameter.empty:  # somebody else's method, which names no default
        return value
    kinds = {float: (int, float), type(None): (tuple, dict)}.get(type(default), type(default))
    fits = isinstance(value, kinds)
    if not fits or (isinstance(value, bool) and not isinstance(default, bool)):  # Python's True is an int
        raise SourceError(f"{key}={value!r}; give a value like {default!r}")
    return value


def write_sheet(bank: Bank, path: Path) -> None:
    """Samples spread evenly over the bank, side by side, as a PNG; atomically.

    Raises:
        SourceError: samples that are no pictures.
    """
    pixels = bank.sheet(SHOWN)
    if pixels.shape[1] not in (1, 3):
        raise SourceError(f"samples of {pixels.shape[1]} channels cannot be shown; leave --sheet out")
    from torchvision.utils import make_grid  # only here: its import takes long

    sheet = make_grid(pixels, nrow=COLUMNS, padding=max(1, pixels.shape[2] // 16), pad_value=1.0).permute(1, 2, 0)
    height, width = sheet.shape[:2]
    figure = Figure(figsize=(8, 8 * height / width + 0.4), dpi=max(100, -(-width // 8)))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1 - 0.4 / figure.get_figheight()))
    axes.imshow(sheet.numpy(), interpolation="nearest")
    axes.axis("off")
    figure.suptitle(f"{len(bank):,} samples by {bank.provenance.method}, seed {bank.provenance.seed}", fontsize=9)
    with replaced_file(path) as partial:
        figure.savefig(partial, format="png")
