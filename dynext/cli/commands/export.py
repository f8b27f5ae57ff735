"""``dynext export``: the dynamic net for places without dynext."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dynext.cli.shared.options import artifact_options, open_artifact, writable_folder
from dynext.io.export import CARD, FORMATS, RUNNER
from dynext.io.export import export as export_net


@click.command(short_help="Programs for places without dynext.")
@artifact_options
@click.option(
    "-o", "--output", required=True, metavar="OUT", type=click.Path(path_type=Path), callback=writable_folder,
    help="Folder to write.",
)  # fmt: skip
@click.option(
    "--format",
    "formats",
    type=click.Choice(list(FORMATS)),
    multiple=True,
    default=["onnx"],
    show_default=True,
    help="Repeat for both. ONNX needs: pip install 'dynext[onnx]'.",
)
def export(
    folder: Path,
    model: str | None,
    arguments: tuple[tuple[str, Any], ...],
    trust: bool,
    output: Path,
    formats: tuple[str, ...],
) -> None:
    """Write the stages and exits of the net in DIR as programs, with the policy that chains them, to OUT.

    With onnx a runner in plain NumPy and onnxruntime comes along; it needs neither dynext nor torch.

    \b
    Example: dynext export fashion -o fashion_onnx
    """
    kept = open_artifact(folder, model, arguments, trust=trust)
    export_net(
        kept.net, output, policy=kept.policy, spec=kept.spec, formats=list(formats), class_names=kept.class_names
    )
    programs = sorted(p.name for p in output.iterdir() if p.suffix in FORMATS.values())
    click.echo(f"Wrote {len(programs)} programs ({programs[0]} ... {programs[-1]}) and {CARD} to {output}")
    if "onnx" in formats:
        click.echo(f"{output / RUNNER} runs them; its first lines say how.")
