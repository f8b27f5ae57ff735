"""Every notebook runs from its first cell to its last, with little work; what is stored is what this code printed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat")
client = pytest.importorskip("nbclient")
LESS = {"01_convert_without_data": ("distill=True)", "distill=True, views=1)")}
"""Less work than the notebook's own quick run, which a reader would not care for."""


def execute() -> ModuleType:
    spec = importlib.util.spec_from_file_location("execute_notebooks", ROOT / "notebooks" / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("default")  # the kernel's own machinery warns
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYNEXT_QUICK", "1")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells if path.stem in LESS else ():
        cell.source = cell.source.replace(*LESS[path.stem])
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert any(output.output_type == "display_data" for output in outputs), "no picture"
    printed = "\n".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    shares = [float(share) for share in re.findall(r"(\d+(?:\.\d+)?) ?%", printed)]
    assert all(share <= 1000 for share in shares)
    assert not re.search(r"\bnan\b", printed), "a figure is no number"


def test_stored_outputs_are_of_the_stored_code() -> None:
    assert len(NOTEBOOKS) >= 6
    stored = execute()
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        told = notebook.metadata.get("dynext", {}).get("code")
        assert told == stored.digest(notebook), f"{path.name} was changed since it ran; make notebooks"
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), path.name
        assert any(cell.outputs for cell in code), path.name
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(home|root|work|tmp|Users)/", text), f"{path.name} holds a path of a machine"
        assert path.stat().st_size < 1_500_000, path.name
