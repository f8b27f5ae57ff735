"""What a command keeps for its resumption: where it lies, and when it goes."""

import errno
import importlib
import os
from pathlib import Path
from typing import Any

import pytest
from shell import SMALL, TINY, done, refused, run

from dynext.cli.shared.work import BEGAN

STEPS = importlib.import_module("dynext.zeroshot.convert_steps")


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def interrupted(monkeypatch: pytest.MonkeyPatch, *command: Any) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(STEPS, "distill", stop)
        assert run("convert", *TINY, *SMALL, *command).exit_code == 130


def test_a_refused_conversion_leaves_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "net"
    refused("convert", *TINY[:3], "-o", output, "--after", "nowhere", *SMALL)
    assert not hidden(tmp_path)
    interrupted(monkeypatch, "-o", output)
    assert len(list(tmp_path.glob(".net.work-*"))) == 1
    refused("convert", *TINY[:3], "-o", output, "--after", "nowhere", *SMALL)
    assert not list(tmp_path.iterdir())


def test_work_that_took_long_outlives_a_refusal_and_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "net"
    interrupted(monkeypatch, "-o", output)
    work = next(tmp_path.glob(".net.work-*"))
    began = (work / BEGAN).stat().st_mtime - 600
    os.utime(work / BEGAN, (began, began))
    result = run("convert", *TINY[:3], "-o", output, "--after", "nowhere", *SMALL)
    assert result.exit_code == 2
    assert f"Note: {work} keeps 10 minutes of work" in result.stderr
    done("convert", *TINY, *SMALL, "-o", output)
    assert not hidden(tmp_path)


def test_work_lies_in_an_output_that_is_there_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "net").symlink_to(tmp_path / "disk")
    interrupted(monkeypatch, "-o", tmp_path / "net")
    assert [path.name.partition("-")[0] for path in (tmp_path / "disk").iterdir()] == [".net.work"]
    done("convert", *TINY, *SMALL, "-o", tmp_path / "net")
    assert (tmp_path / "net").is_symlink()
    assert (tmp_path / "disk" / "net.json").exists()
    assert not hidden(tmp_path)


def test_a_disk_that_fills_up_is_one_line_and_the_work_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitting = importlib.import_module("dynext.fitting")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(fitting.torch, "save", full)
        told = refused("convert", *TINY, *SMALL, "-o", tmp_path / "net")
    assert "cannot be written: the disk is full" in told
    assert told.endswith("The same command again goes on where it was interrupted.")
    assert len(list(tmp_path.glob(".net.work-*/bank*/shard*"))) == 1
    done("convert", *TINY, *SMALL, "-o", tmp_path / "net")
    assert not hidden(tmp_path)


@pytest.mark.parametrize(
    "command",
    [("convert", *TINY, *SMALL, "-o"), ("synthesize", *TINY[:3], "--out"), ("demo", "--quick", "--out")],
)
def test_a_place_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(
        os, "access", lambda path, mode, **_: not (mode & os.W_OK and str(path).startswith(str(tmp_path)))
    )
    for output in (tmp_path / "net", tmp_path / "there"):
        assert "you may not write in" in refused(*command, output)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
