"""The command line: thin. Each command parses, calls the library and prints."""

from __future__ import annotations

import click

from dynext import __version__
from dynext.cli.commands.adapt import adapt
from dynext.cli.commands.align import align
from dynext.cli.commands.bench import bench
from dynext.cli.commands.convert import convert
from dynext.cli.commands.evaluate import evaluate
from dynext.cli.commands.export import export
from dynext.cli.commands.inspect import inspect
from dynext.cli.commands.meta_train import meta_train
from dynext.cli.commands.predict import predict
from dynext.cli.commands.prune import prune
from dynext.cli.commands.recipe import recipe
from dynext.cli.commands.report import report
from dynext.cli.commands.synthesize import synthesize
from dynext.cli.demo.command import demo
from dynext.cli.group import Commands


@click.group(cls=Commands, invoke_without_command=True)
@click.version_option(__version__, prog_name="dynext")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Make a pretrained static classifier dynamic, without its training data.

    Easy inputs leave the net at an early exit; hard ones run it to the end.

    \b
    Start here:
      dynext demo                               the whole story, in minutes
      dynext inspect torchvision:resnet18       where a net could be cut
      dynext convert MODEL -o DIR               make it dynamic
      dynext evaluate DIR --data FOLDER         what that costs and saves

    MODEL is bundled:NAME, torchvision:NAME[@WEIGHTS], timm:NAME[@pretrained], cifar:resnet20 or file.py:factory.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


COMMANDS = (
    demo, inspect, convert, evaluate, predict, align, meta_train, adapt, prune, bench, export, report,
    synthesize, recipe,
)  # fmt: skip

for command in COMMANDS:
    main.add_command(command)
