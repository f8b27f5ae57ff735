"""Runs the notebooks in full and stores them with their outputs: ``python notebooks/execute.py [NAME ...]``.

Pictures are kept as PNG up to a size; what only this machine would say (paths, kernel versions) is left out. The digest
of the code is stored too, so that a test can tell outputs of other code.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
LARGEST = 400_000
"""Bytes of a picture, in base64, that a stored notebook may hold."""


def main(names: list[str]) -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or any(path.stem.startswith(name) for name in names):
            began = time.monotonic()
            store(path)
            print(f"{path.name}: {time.monotonic() - began:.0f} s, {path.stat().st_size / 1e3:,.0f} kB", flush=True)


def store(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    os.environ.pop("DYNEXT_QUICK", None)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=3600, resources=resources, record_timing=False).execute()
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [clean(output, folder) for output in cell.outputs if shown(output)]
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "dynext": {"code": digest(notebook)},
        }
    )
    partial = path.with_suffix(".partial")
    nbformat.write(notebook, partial)
    os.replace(partial, path)


def shown(output: NotebookNode) -> bool:
    """Progress bars and warnings go to standard error; they say nothing to a reader."""
    return not (output.output_type == "stream" and output.name == "stderr")


def clean(output: NotebookNode, folder: str) -> NotebookNode:
    if output.output_type == "stream":
        output.text = output.text.replace(folder, ".")
        return output
    data = output.get("data", {})
    for kind in ("text/html", "image/svg+xml", "application/vnd.jupyter.widget-view+json"):
        data.pop(kind, None)
    if "image/png" in data:
        if len(data["image/png"]) > LARGEST:
            raise SystemExit(f"a picture of {len(data['image/png']):,} bytes; draw it smaller (figsize, dpi)")
        data["text/plain"] = "<Figure>"
    output.metadata = nbformat.from_dict({})
    return output


def digest(notebook: NotebookNode) -> str:
    """Twelve hexadecimal digits of all code."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:12]


if __name__ == "__main__":
    main(sys.argv[1:])
