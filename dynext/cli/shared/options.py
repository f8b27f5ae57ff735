"""What several commands take: a model, a shape, lists after commas, a device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from dynext.atomic import check_writable
from dynext.cli.shared.progress import progress_shown
from dynext.cli.shared.trust import Call, check_trusted, is_trusted, own_call, remember
from dynext.data.class_lists import Classes, ClassList, read_classes
from dynext.errors import DiskError, SourceError
from dynext.io.artifact import CARD, Artifact, load, saved_recipe
from dynext.models.catalog import Opened, Reference, open_model
from dynext.models.families import build

Command = TypeVar("Command", bound=Callable[..., Any])


class Shape(click.ParamType):
    """``3x32x32``: channels, height, width of one sample."""

    name = "CxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(size) for size in value.lower().split("x"))
        except ValueError:
            sizes = ()
        if len(sizes) != 3 or min(sizes) < 1:
            self.fail(f"{value!r} is no shape; give channels, height and width, such as 3x32x32", param, ctx)
        return sizes


class Floats(click.ParamType):
    """Numbers with commas between them."""

    name = "NUMBERS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(number) for number in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers; give one per channel, such as 0.5,0.5,0.5", param, ctx)


class Places(click.ParamType):
    """Layer names, or shares of the MACs, with commas between them."""

    name = "PLACES"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...] | tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        words = tuple(word.strip() for word in value.split(","))
        if not all(words):
            self.fail(f"{value!r} has an empty place; give some, such as layer1,layer2 or 0.3,0.6", param, ctx)
        try:
            shares = tuple(float(word) for word in words)
        except ValueError:
            return words
        # "1" is a module of a Sequential, no share
        return shares if all(0 < share < 1 for share in shares) else words


class Argument(click.ParamType):
    """``key=value`` for a model's constructor; the value is JSON, or else a text."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is no KEY=VALUE, such as num_classes=10", param, ctx)
        try:
            return key, json.loads(text)
        except ValueError:
            return key, text


def model_options(command: Command) -> Command:
    """MODEL and what opening it may need; `open_given` takes them."""
    file = click.Path(exists=True, path_type=Path)
    for decorate in reversed(
        [
            click.argument("model"),
            click.option("--checkpoint", type=file, help="Weights, as torch.save or safetensors write them."),
            click.option("--shape", type=Shape(), help="One input, such as 3x32x32; needed for file.py:factory."),
            click.option("--mean", type=Floats(), help="Mean of the pixels in [0, 1], per channel."),
            click.option("--std", type=Floats(), help="Their standard deviation, per channel."),
            click.option(
                "--argument", "arguments", type=Argument(), multiple=True, help="For the model's constructor; repeat."
            ),
            click.option("--trust", is_flag=True, help="Let later commands run that file.py again, unless it changes."),
        ]
    ):
        command = decorate(command)
    return command


def open_given(model: str, *, trust: bool, **given: Any) -> Opened:
    """The model that `model_options` describe. How a trusted file is called here, it may be called again."""
    if trust and Reference.parse(model).kind != "file":
        raise click.UsageError(f"--trust is about files of your own, file.py:factory; {model} needs none")
    with progress_shown():  # what a checkpoint's names needed
        opened = open_model(model, **{**given, "arguments": dict(given["arguments"])})
    if opened.recipe["kind"] == "file":
        call = Call.of(opened.recipe["name"], opened.recipe["arguments"])
        if trust or is_trusted(call.file):
            remember(call)
    return opened


def opened_with_note(model: str, given: dict[str, Any]) -> Opened:
    """The same out of all options of a command, which are left without those; random weights are told of."""
    names = ("checkpoint", "shape", "mean", "std", "arguments", "trust")
    opened = open_given(model, **{name: given.pop(name) for name in names})
    if not opened.trained and opened.recipe["kind"] != "file":
        click.echo(f"Note: {model} has random weights; give --checkpoint, or weights by name@WEIGHTS.", err=True)
    return opened


strict_option = click.option("--strict", is_flag=True, help="Refuse image files that cannot be read; else skip them.")


def data_options(*, required: bool, labels: bool = True) -> Callable[[Command], Command]:
    """``--data``, ``--root``, ``--download``, ``--strict`` and, for ``labels``, ``--class-names``; `open_samples` takes
    them.
    """
    kinds = "fashion-mnist, cifar10, bundled (the sample that ships with dynext), a folder of images, or a .npz file."

    def decorate(command: Command) -> Command:
        for option in (
            strict_option,
            *([class_names_option] if labels else []),
            click.option("--download", is_flag=True, help="Fetch Fashion-MNIST if it is nowhere (30 MB)."),
            click.option("--root", type=click.Path(exists=True, path_type=Path), help="Where the data set lies."),
            click.option("--data", required=required, metavar="DATA", help=kinds),
        ):
            command = option(command)
        return command

    return decorate


def _class_names(ctx: click.Context, param: click.Parameter, value: Path | None) -> ClassList | None:
    return None if value is None else read_classes(value)


class_names_option = click.option(
    "--class-names", "listed", type=click.Path(exists=True, dir_okay=False, path_type=Path), callback=_class_names,
    metavar="FILE", help="What sub-folders call the net's classes: a name a line, or JSON (name: number).",
)  # fmt: skip


def classes_of(kept: Artifact, listed: ClassList | None) -> Classes:
    """The net's classes: as the user's file says, as the net's folder does, or their number.

    Raises:
        SourceError: the file has more classes than the net.
    """
    if listed is None:
        return kept.class_names or kept.net.num_classes
    if listed.count > kept.net.num_classes:
        raise SourceError(f"--class-names has {listed.count} classes, the net {kept.net.num_classes}; give its own")
    return listed


def device_option(command: Command) -> Command:
    """``--device``, refused when it is not there."""
    return click.option("--device", default="cpu", callback=_device, help="cpu or cuda.  [default: cpu]")(command)


def _device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value not in ("cpu", "cuda"):
        raise click.BadParameter(f"{value!r}; give cpu or cuda")
    if value == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("this torch sees no CUDA device; leave --device out to use the CPU")
    return value


def artifact_options(command: Command) -> Command:
    """DIR, a folder that ``dynext convert`` wrote, and how to open one that came from the user's own file."""
    for decorate in reversed(
        [
            click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)),
            click.option("--model", help="The net's file.py:factory, where it moved or is not trusted."),
            click.option("--argument", "arguments", type=Argument(), multiple=True, help="For that factory; repeat."),
            click.option("--trust", is_flag=True, help="Run the net's file.py, now and later, unless it changes."),
            _kept_option(
                "--heads", "What made the heads, where they are your own: package.module:name or file.py:name."
            ),
            _kept_option("--gates", "The same for gates."),
        ]
    ):
        command = decorate(command)
    return command


def _kept_option(flag: str, told: str) -> Callable[[Command], Command]:
    """An option that no command takes as an argument: `open_artifact` looks it up."""

    def keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        ctx.meta[f"dynext{flag}"] = value

    return click.option(flag, metavar="NAME", expose_value=False, callback=keep, help=told)


def open_artifact(
    folder: Path, model: str | None, arguments: tuple[tuple[str, Any], ...], *, trust: bool = False
) -> Artifact:
    """The dynamic net that `artifact_options` describe. A file of the user's own is run if he names or trusts it."""
    meta = click.get_current_context().meta
    own: dict[str, Any] = {name: meta.get(f"dynext--{name}") for name in ("heads", "gates")}
    if model is None:
        call = own_call(folder, saved_recipe(folder))
        if call is None:
            return load(folder, **own)
        if not trust:
            check_trusted(call, folder)
    else:
        parsed = Reference.parse(model)
        if parsed.kind != "file":
            return load(folder, model=build(parsed.kind, parsed.name, dict(arguments)), **own)
        call = Call.of(parsed.name, dict(arguments))
    kept = load(folder, model=build("file", call.reference, call.arguments), **own)
    if trust:
        remember(call, folder)
    return kept


def output_option(*names: str, **attributes: Any) -> Callable[[Command], Command]:
    """A folder for a dynamic net; one that holds anything else is refused before hours of work, not after."""
    path = click.Path(path_type=Path)
    return click.option(*names, metavar="DIR", type=path, callback=_free_folder, **attributes)


def _free_folder(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is None:
        return None
    value = writable_folder(ctx, param, value)
    shown = value.is_dir() and any(not path.name.startswith(".") for path in value.iterdir())
    if shown and not (value / CARD).exists():
        raise click.BadParameter(f"{value} holds other files and no dynamic net; name another folder")
    return value


def writable_folder(ctx: click.Context, param: click.Parameter, value: Path) -> Path:
    """Refuse a folder that cannot be written."""
    folder = value if value.name not in ("", "..") else value.resolve()
    try:
        check_writable(folder)
    except DiskError as error:
        raise click.BadParameter(str(error)) from error
    return folder


seed_option = click.option("--seed", default=0, show_default=True, help="All that is random follows it.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
