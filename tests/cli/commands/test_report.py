"""Report from the shell: the page, its samples and pictures."""

import importlib
import json
import re
import webbrowser
from pathlib import Path

import pytest
from PIL import Image
from shell import done, refused

import dynext as dx


def test_the_page_is_written_anew_with_its_pictures(net: Path) -> None:
    (net / "report.html").unlink()
    assert done("report", net) == f"Wrote {net / 'report.html'}\n"
    page = (net / "report.html").read_text()
    assert page.count("<img") == 3
    for caption in ("Synthesized inputs (leaves)", "Inputs that leave first", "Inputs that leave last"):
        assert caption in page
    assert "60 unlabelled samples" in page
    assert not re.search(r"""(src|href)=["']http|url\(["']?http""", page)


def test_test_rows_come_first(net: Path, images: Path) -> None:
    done("report", net, "--data", images)
    page = (net / "report.html").read_text()
    assert page.index("Test samples") < page.index("The samples that thresholds were chosen on")
    assert f"60 samples of {images}" in page


def test_it_opens_the_page_when_asked_only(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    done("report", net)
    assert not opened
    done("report", net, "--open")
    assert opened == [(net / "report.html").as_uri()]


def test_mistakes(net: Path) -> None:
    (net / "pictures.safetensors").write_bytes(b"torn")
    assert "pictures.safetensors is damaged" in refused("report", net)
    (net / "pictures.safetensors").unlink()
    (net / "table.safetensors").unlink()
    assert "give samples with --data" in refused("report", net)


def test_sub_folders_count_as_the_nets_classes_of_that_name(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = json.loads((net / "net.json").read_text())
    card["class_names"] = [f"kind {k}" for k in range(10)]
    (net / "net.json").write_text(json.dumps(card))
    for name in ("kind 7", "kind 2"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / name / "x.png")
    module, tables = importlib.import_module("dynext.cli.commands.report"), []
    monkeypatch.setattr(module, "report_on", lambda table, policy: tables.append(table) or dx.report(table, policy))
    done("report", net, "--data", tmp_path / "data")
    assert tables[0].label_n.tolist() == [2, 7]
