"""Omniglot from its zip, its folder, or the net; scikit-learn's digits; damaged files say so."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynext.data import omniglot_files as files
from dynext.data.datasets import digits, omniglot
from dynext.errors import SourceError
from dynext.testing import check_source


def png(strokes: list[tuple[int, int]]) -> bytes:
    """A white sheet of 105 pixels a side with black squares."""
    sheet = np.full((105, 105), 255, np.uint8)
    for i, j in strokes:
        sheet[i : i + 15, j : j + 15] = 0
    content = io.BytesIO()
    Image.fromarray(sheet).convert("1").save(content, "PNG")
    return content.getvalue()


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for alphabet, character, drawer in (("B", 1, 2), ("A", 2, 1), ("A", 1, 2), ("A", 1, 1)):
            name = f"images_background_small1/{alphabet}/character{character:02}/000{character}_{drawer:02}.png"
            archive.writestr(name, png([(15 * drawer, 30)]))
        archive.writestr("__MACOSX/x/character01/no.png", b"")
        archive.writestr("images_background_small1/A/character01/._0001_01.png", b"")


@pytest.mark.parametrize("form", ["zip", "short name", "zip itself", "folder", "unpacked itself"])
def test_every_place_gives_the_same_samples(form: str, tmp_path: Path) -> None:
    name = "omniglot_small1.zip" if form == "short name" else "images_background_small1.zip"
    write_zip(tmp_path / name)
    root = tmp_path / name if form == "zip itself" else tmp_path
    if form in ("folder", "unpacked itself"):
        with zipfile.ZipFile(tmp_path / name) as archive:
            archive.extractall(tmp_path)
        (tmp_path / name).unlink()
        root = tmp_path / "images_background_small1" if form == "unpacked itself" else tmp_path
    samples = omniglot("small1", root=root, side=7)
    assert samples.pixels.shape == (4, 1, 7, 7)
    assert samples.y.tolist() == [0, 0, 1, 2]
    assert samples.pixels[0, 0].argmax() == 7 + 2  # first drawer: the stroke in row 1, column 2, white on black
    assert samples.pixels[1, 0].argmax() == 14 + 2
    assert int(samples.pixels[0, 0, 6, 6]) == 0
    check_source(samples, (1, 7, 7))


def test_names_are_alphabet_and_character(tmp_path: Path) -> None:
    write_zip(tmp_path / "images_background_small1.zip")
    _, y, names = files.omniglot_images("small1", tmp_path, 28, False)
    assert names == ("A/character01", "A/character02", "B/character01")
    assert y.max() == 2


def test_what_is_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"Omniglot \(images_evaluation\) is in none of .*download=True"):
        omniglot("evaluation", root=tmp_path)
    with pytest.raises(SourceError, match="no part 'large'; give one of|no part 'large' of Omniglot"):
        omniglot("large", root=tmp_path)
    (tmp_path / "images_evaluation.zip").write_bytes(b"<html>")
    with pytest.raises(SourceError, match="is no zip that can be read"):
        omniglot("evaluation", root=tmp_path)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(SourceError, match="holds no Alphabet/character01"):
        omniglot("small1", root=tmp_path / "empty.zip")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("x/A/character01/1.png", b"no image")
    with pytest.raises(SourceError, match="1.png is no image that can be read"):
        omniglot("small1", root=tmp_path / "bad.zip")
    with pytest.raises(SourceError, match="side=2"):
        omniglot("small1", root=tmp_path, side=2)


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_the_files_of_another_part_are_not_taken_for_this_one(form: str, tmp_path: Path) -> None:
    write_zip(tmp_path / "some.zip")
    with zipfile.ZipFile(tmp_path / "some.zip") as archive:
        archive.extractall(tmp_path)
    root = tmp_path / ("some.zip" if form == "zip" else "images_background_small1")
    assert len(omniglot("small1", root=root)) == 4
    with pytest.raises(SourceError, match="is of part 'small1', asked for was 'small2'; name the zip"):
        omniglot("small2", root=root)


def test_a_zip_that_is_damaged_inside(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/A/character01/1.png", bytes(range(256)) * 20)
    content = bytearray((tmp_path / "bad.zip").read_bytes())
    content[51:81] = bytes(30)
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(SourceError, match="is no zip that can be read"):
        omniglot("small1", root=tmp_path / "bad.zip")


def test_download_compares_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(tmp_path / "served.zip")
    content = (tmp_path / "served.zip").read_bytes()
    served = []

    def download(url: str, folder: str, name: str) -> None:
        served.append(url)
        (Path(folder) / name).write_bytes(content)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    with pytest.raises(SourceError, match=r"has checksum .*, expected e704a628"):
        omniglot("small1", root=tmp_path / "cache", download=True)
    assert not (tmp_path / "cache").exists()
    known = {"images_background_small1": hashlib.md5(content).hexdigest()}
    monkeypatch.setattr(files, "SMALL_MD5", known)
    assert len(omniglot("small1", root=tmp_path / "cache", download=True)) == 4
    address = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/images_background_small1.zip"
    assert served == [address] * 2
    assert len(omniglot("small1", root=tmp_path / "cache", download=True)) == 4
    assert len(served) == 2


def test_the_published_small_sets(shared: Path) -> None:
    path = shared / "data" / "omniglot_small2.zip"
    if not path.exists():
        pytest.skip("no Omniglot among the development data")
    samples = omniglot("small2", root=shared / "data", side=14)
    counts = torch.bincount(samples.y)
    assert len(samples) == 3120
    assert counts.tolist() == [20] * 156


def test_digits_come_in_any_size() -> None:
    samples = digits()
    assert samples.pixels.shape == (1797, 1, 8, 8)
    assert samples.y.unique().tolist() == list(range(10))
    assert float(samples.pixels.max()) == 1.0
    larger = digits(side=28)
    assert larger.shape == (1, 28, 28)
    assert torch.equal(larger.y, samples.y)
    check_source(larger)
