"""The figures that benchmarks leave behind."""

import json
from argparse import Namespace

import pytest

from benchmarks import harness


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [(0.9, ">= 0.90", True), (0.89, ">= 0.90", False), (1.0, "<= 1.05", True), (None, ">= 1", False), (3, None, None)],
)
def test_targets(value, target, met):
    assert harness.figure("a", value, "x", target)["met"] is met


def test_written_as_json_and_markdown(tmp_path, capsys):
    options = Namespace(quick=True, json=tmp_path / "new" / "a.json", markdown=tmp_path / "a.md")
    harness.write("a", options, [harness.figure("speed", 1.5, "x", ">= 1")], markdown="more", models=[1])
    written = json.loads(options.json.read_text())
    assert written["benchmark"] == "a"
    assert written["quick"] is True
    assert written["figures"] == [{"name": "speed", "value": 1.5, "unit": "x", "target": ">= 1", "met": True}]
    assert {"machine", "versions", "command", "models"} <= set(written)
    page = options.markdown.read_text()
    assert "| speed | 1.5 | x | >= 1 | yes |" in page
    assert page in capsys.readouterr().out


def test_a_quiet_write_prints_nothing(tmp_path, capsys):
    harness.write("a", Namespace(quick=False, json=tmp_path / "a.json", markdown=None), [], quiet=True)
    assert (tmp_path / "a.json").is_file()
    assert capsys.readouterr().out == ""
