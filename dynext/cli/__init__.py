"""The command line: thin. Each command parses, calls the library and prints."""

from __future__ import annotations

import click

from dynext import __version__
from dynext.cli.adapt import adapt
from dynext.cli.align import align
from dynext.cli.bench import bench
from dynext.cli.commands import Commands
from dynext.cli.convert import convert
from dynext.cli.demo import demo
from dynext.cli.evaluate import evaluate
from dynext.cli.export import export
from dynext.cli.inspect import inspect
from dynext.cli.meta_train import meta_train
from dynext.cli.predict import predict
from dynext.cli.prune import prune
from dynext.cli.recipe import recipe
from dynext.cli.report import report
from dynext.cli.synthesize import synthesize


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
