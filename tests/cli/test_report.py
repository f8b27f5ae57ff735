"""Report from the shell: the page, its rows and pictures."""

import re
import webbrowser
from pathlib import Path

import pytest
from shell import done, refused


def test_the_page_is_written_anew_with_its_pictures(net: Path) -> None:
    (net / "report.html").unlink()
    assert done("report", net) == f"Wrote {net / 'report.html'}\n"
    page = (net / "report.html").read_text()
    assert page.count("<img") == 3
    for caption in ("Synthesized inputs (leaves)", "Inputs that leave first", "Inputs that leave last"):
        assert caption in page
    assert "60 unlabelled rows" in page
    assert not re.search(r"""(src|href)=["']http|url\(["']?http""", page)


def test_test_rows_come_first(net: Path, images: Path) -> None:
    done("report", net, "--data", images)
    page = (net / "report.html").read_text()
    assert page.index("Test rows") < page.index("The rows that thresholds were chosen on")
    assert f"60 rows of {images}" in page


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
    assert "give rows with --data" in refused("report", net)
