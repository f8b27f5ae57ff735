"""docs/extend.md: its Python blocks run, in order, each part under fifteen lines; the example package installs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dynext import plugins

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "extend.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_snippets_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(BLOCKS) >= 10
    monkeypatch.setattr(plugins, "_registered", {group: {} for group in plugins.GROUPS})
    space: dict[str, object] = {"__name__": "extend"}
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), space)


def test_each_part_is_under_fifteen_lines() -> None:
    assert all(len(block.strip().splitlines()) < 15 for block in BLOCKS)


def test_the_example_package_installs_and_its_own_tests_pass(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="70.1", reason="it builds the example's wheel")
    package, site = tmp_path / "plugin", tmp_path / "site"
    shutil.copytree(ROOT / "examples" / "plugin", package)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(site), str(package)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(site)!r}]; import pytest; sys.exit(pytest.main(['-q']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=package, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout
