"""The files that ship with dynext are found in a checkout and in a wheel, and their absence is told."""

from pathlib import Path

import pytest

from dynext.data import bundled
from dynext.data.bundled import bundled_file, bundled_folder
from dynext.errors import DynextError

ROOT = Path(__file__).resolve().parents[2]


def test_a_checkout_finds_its_data_folder() -> None:
    assert bundled_folder() == ROOT / "data"


def test_a_wheel_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, checkout = tmp_path / "bundled_files", tmp_path / "data"
    monkeypatch.setattr(bundled, "FOLDERS", (wheel, checkout))
    with pytest.raises(DynextError, match="install dynext again"):
        bundled_folder()
    checkout.mkdir()
    (checkout / "net.json").write_text("{}")
    assert bundled_file("net.json") == checkout / "net.json"
    wheel.mkdir()
    assert bundled_folder() == wheel
    with pytest.raises(DynextError, match="no file 'net.json' ships with dynext; there is: nothing"):
        bundled_file("net.json")
