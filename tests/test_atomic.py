"""Where things are written: links, mount points, full and forbidden disks, interruptions. All or nothing, all told."""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dynext import atomic
from dynext.atomic import check_writable, replaced_file, replaced_folder
from dynext.errors import ArtifactError, DiskError
from dynext.fitting import FitConfig, FitError, fit

MARK = "card.json"


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def write(folder: Path, text: str = "new") -> None:
    with replaced_folder(folder, mark=MARK, owned=[MARK, "*.bin"]) as partial:
        save_file({"x": torch.ones(2)}, partial / "w.bin")
        (partial / MARK).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text(errors="ignore")[:5] for p in sorted(folder.iterdir()) if p.suffix != ".bin"}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "disk" / "net"
    folder.parent.mkdir()
    write(folder, "old")
    (folder / "more.bin").write_text("old")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_a_link_stays_one_and_so_does_what_is_others(old: Path, tmp_path: Path) -> None:
    link = tmp_path / "here"
    link.symlink_to(old)
    write(link)
    assert link.is_symlink()
    assert content(old) == {MARK: "new", "notes.txt": "mine"}
    assert sorted(p.name for p in old.iterdir()) == [MARK, "notes.txt", "w.bin"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "here"]
    assert [p.name for p in old.parent.iterdir()] == ["net"]


def test_a_link_to_a_folder_that_is_yet_to_be_made(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "disk" / "net")
    write(tmp_path / "here")
    assert (tmp_path / "here").is_symlink()
    assert content(tmp_path / "disk" / "net") == {MARK: "new"}
    (tmp_path / "lost").symlink_to(tmp_path / "unmounted" / "net")
    with pytest.raises(ArtifactError, match="lost is a link to .*unmounted/net, which is not there"):
        write(tmp_path / "lost")


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EACCES])
def test_a_mount_point_is_never_moved(old: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def busy(move: Callable[..., None]) -> Callable[..., None]:
        def moved(source: Path | str, target: Path | str, **given: object) -> None:
            if Path(source) == old or Path(target) == old or Path(target).parent == old.parent:
                raise OSError(number, os.strerror(number), str(source))
            move(source, target, **given)

        return moved

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, busy(getattr(os, name)))
    write(old)
    assert content(old) == {MARK: "new", "notes.txt": "mine"}


def test_a_folder_that_somebody_made_meanwhile(tmp_path: Path) -> None:
    with replaced_folder(tmp_path / "net", mark=MARK, owned=[MARK]) as partial:
        (partial / MARK).write_text("new")
        (tmp_path / "net").mkdir()
        (tmp_path / "net" / "notes.txt").write_text("mine")
    assert content(tmp_path / "net") == {MARK: "new", "notes.txt": "mine"}
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _full_by_torch(*_: object) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


def _full_by_safetensors(*_: object) -> None:
    raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fail", [_full, _full_by_torch, _full_by_safetensors])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(old: Path, fail: Callable[[], None]) -> None:
    before = {p.name: p.read_bytes() for p in old.iterdir()}

    def write_folder_half() -> None:
        with (
            replaced_folder(old, mark=MARK, owned=[MARK]) as outer,
            replaced_folder(outer, mark=MARK, owned=[MARK]) as partial,
        ):
            (partial / MARK).write_text("half")
            fail()

    def write_file_half() -> None:
        with replaced_file(old / "notes.txt") as partial:
            partial.write_text("half")
            fail()

    with pytest.raises(DiskError, match=r"net cannot be written: the disk is full; make room"):
        write_folder_half()
    with pytest.raises(DiskError, match=r"notes\.txt cannot be written: the disk is full"):
        write_file_half()
    assert {p.name: p.read_bytes() for p in old.iterdir()} == before
    assert [p.name for p in old.parent.iterdir()] == ["net"]


def test_a_new_place_on_a_full_disk_is_not_half_made(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="the disk is full"), replaced_folder(tmp_path / "net", mark=MARK, owned=[]):
        _full()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", range(5))
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_interrupted_move_is_undone(
    old: Path, monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException
) -> None:
    before = {p.name: p.read_bytes() for p in old.iterdir()}
    replace, calls = os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == step + 1:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DiskError):
        write(old)
    assert {p.name: p.read_bytes() for p in old.iterdir()} == before


def test_modes_follow_the_umask_in_files_and_folders(old: Path, tmp_path: Path) -> None:
    write(old)
    with replaced_file(tmp_path / "x.safetensors") as partial:
        save_file({"x": torch.ones(2)}, partial)
    written = [old / MARK, old / "w.bin", tmp_path / "x.safetensors"]
    assert {oct(stat.S_IMODE(p.stat().st_mode)) for p in written} == {"0o640"}
    assert stat.S_IMODE(old.stat().st_mode) == 0o750


def test_threads_leave_the_umask_alone(tmp_path: Path) -> None:
    def work(i: int) -> None:
        for _ in range(30):
            with replaced_file(tmp_path / "one") as partial:
                partial.write_text(str(i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.name for p in tmp_path.iterdir()] == ["one"]
    (tmp_path / "two").touch()
    assert stat.S_IMODE((tmp_path / "two").stat().st_mode) == 0o640


def test_a_file_that_is_a_link_or_a_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "disk" / "file")
    for text in ("one", "two"):
        with replaced_file(tmp_path / "here") as partial:
            partial.write_text(text)
        assert (tmp_path / "here").is_symlink()
        assert (tmp_path / "disk" / "file").read_text() == text
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EBUSY, "busy")))
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["file"]
    with pytest.raises(DiskError, match="disk is a folder; name a file"), replaced_file(tmp_path / "disk"):
        pass


def test_places_are_looked_at_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "a" / "b", needed=1000)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"file is a file; name a folder"):
        check_writable(tmp_path / "file" / "b")
    with pytest.raises(DiskError, match=r"has [\d,]+ MB left, about 1,000,000,000,000 are needed"):
        check_writable(tmp_path, needed=10**18)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(DiskError, match="you may not write in"):
            check_writable(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        with pytest.raises(DiskError, match="the disk is full"):
            check_writable(tmp_path)
    denied = OSError(errno.EROFS, "Read-only file system", str(tmp_path / "x"))
    monkeypatch.setattr(atomic.tempfile, "TemporaryFile", lambda **_: (_ for _ in ()).throw(denied))
    with pytest.raises(DiskError, match="cannot be written: Read-only file system; name a place"):
        check_writable(tmp_path / "x")


def test_a_run_finds_out_before_its_steps_where_its_checkpoint_cannot_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> torch.Tensor:
        raise AssertionError("a step was made")

    with pytest.raises(FitError, match="is a folder; name a file"):
        fit(torch.nn.Linear(1, 1), never, FitConfig(steps=3, checkpoint=tmp_path, progress=False))
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(DiskError, match="the disk is full"):
        fit(torch.nn.Linear(1, 1), never, FitConfig(steps=3, checkpoint=tmp_path / "run.ckpt", progress=False))


def test_a_disk_that_fills_up_meanwhile_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.ckpt"
    path.write_bytes(b"")
    path.unlink()
    saves, save = [], torch.save

    def filling(state: object, target: Path) -> None:
        saves.append(target)
        if len(saves) > 1:
            Path(target).write_bytes(b"half")
            _full_by_torch()
        save(state, target)

    monkeypatch.setattr(torch, "save", filling)
    config = FitConfig(steps=3, checkpoint=path, checkpoint_seconds=-1, progress=False)
    net = torch.nn.Linear(1, 1)
    with pytest.raises(DiskError, match=r"run\.ckpt cannot be written: the disk is full"):
        fit(net, lambda module, draw, done: module(torch.ones(1, 1)).sum(), config)
    assert torch.load(path, weights_only=True)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]
