"""Rows come out of files as they went in; damaged, missing and misshapen ones say what is wrong and what to do."""

import gzip
import hashlib
import io
import struct
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from dynext import data
from dynext.data import Rows, array, augment, cifar10, fashion_mnist, image, images, open_rows
from dynext.errors import SourceError
from dynext.seeding import generator
from dynext.testing import check_source
from dynext.types import Batch, InputSpec

GRAY = InputSpec(shape=(1, 6, 5), mean=(0.5,), std=(0.25,))
COLOR = InputSpec(shape=(3, 6, 5), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def some_pixels(n: int = 7, shape: tuple[int, ...] = (6, 5, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


def idx(x: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{x.ndim}I", 0, 0, 8, x.ndim, *x.shape) + x.tobytes()


def write_fashion(folder: Path, stem: str = "t10k", packed: bool = True) -> tuple[np.ndarray, np.ndarray]:
    x, y = some_pixels(7, (28, 28)), np.arange(7, dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((f"{stem}-images-idx3-ubyte", idx(x)), (f"{stem}-labels-idx1-ubyte", idx(y))):
        path = folder / (name + ".gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)
    return x, y


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("inner", [".", "FashionMNIST/raw"])
def test_fashion_is_read_from_idx_files(tmp_path: Path, packed: bool, inner: str) -> None:
    x, y = write_fashion(tmp_path / inner, packed=packed)
    rows = fashion_mnist("test", root=tmp_path)
    assert np.array_equal(rows.pixels[:, 0].numpy(), x)
    assert rows.y.tolist() == y.tolist()
    assert_close(rows.take(torch.tensor([2])).x[0, 0], torch.from_numpy((x[2] / 255 - 0.2860) / 0.3530).float())
    check_source(rows, (1, 28, 28))


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: gzip.compress(raw)[:-9],
        lambda raw: gzip.compress(raw)[:40] + b"x" * 50,
        lambda raw: gzip.compress(raw[:-3]),
        lambda raw: gzip.compress(raw[:2]),
        lambda raw: gzip.compress(b"\0\0\x0d" + raw[3:]),
        lambda raw: b"<html>not found</html>",
        lambda raw: b"",
    ],
)
def test_damaged_idx_files_say_so(tmp_path: Path, damage) -> None:
    x, _ = write_fashion(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(idx(x)))
    with pytest.raises(SourceError, match=f"{path.name} is damaged .*; fetch it again"):
        fashion_mnist("test", root=tmp_path)


def test_rows_and_labels_of_different_lengths_are_refused(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(3, np.uint8))))
    with pytest.raises(SourceError, match="3 labels for 7 rows"):
        fashion_mnist("test", root=tmp_path)


def test_missing_fashion_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"is in none of {tmp_path}, .*raw; .*download=True"):
        fashion_mnist("train", root=tmp_path)


def serve(monkeypatch, answer) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: answer(url))


def test_download_offline_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    def offline(url: str) -> None:
        raise urllib.request.URLError("no route to host")

    serve(monkeypatch, offline)
    with pytest.raises(SourceError, match=rf"cannot be downloaded .*no route to host.*by hand into {tmp_path}"):
        fashion_mnist("test", root=tmp_path, download=True)


def test_download_compares_checksums_and_keeps_what_fits(tmp_path: Path, monkeypatch) -> None:
    write_fashion(tmp_path / "server")
    serve(monkeypatch, lambda url: io.BytesIO((tmp_path / "server" / url.rsplit("/", 1)[1]).read_bytes()))
    with pytest.raises(SourceError, match="has checksum .*, expected bef4ecab"):
        fashion_mnist("test", root=tmp_path / "cache", download=True)
    assert not (tmp_path / "cache").exists()
    known = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in (tmp_path / "server").iterdir()}
    monkeypatch.setattr(data, "_FASHION_MD5", known)
    rows = fashion_mnist("test", root=tmp_path / "cache", download=True)
    assert len(rows) == 7
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == sorted(known)
    serve(monkeypatch, lambda url: pytest.fail("downloaded twice"))
    assert len(fashion_mnist("test", root=tmp_path / "cache", download=True)) == 7


def test_cifar10_from_an_array_or_nowhere(tmp_path: Path) -> None:
    x = some_pixels(4, (32, 32, 3))
    np.savez(tmp_path / "some.npz", x=x, y=np.array([3, 1, 2, 0]))
    rows = cifar10("test", root=tmp_path / "some.npz")
    assert rows.y.tolist() == [3, 1, 2, 0]
    assert np.array_equal(rows.pixels.permute(0, 2, 3, 1).numpy(), x)
    with pytest.raises(SourceError, match=f"CIFAR-10 is not under {tmp_path}"):
        cifar10("train", root=tmp_path)


@pytest.mark.parametrize("form", ["[n h w c]", "[n c h w]", "float", "double"])
def test_arrays_in_every_form_give_the_same_rows(tmp_path: Path, form: str) -> None:
    x = some_pixels()
    wanted = COLOR.normalize(torch.from_numpy(x).permute(0, 3, 1, 2))
    given = {
        "[n h w c]": x,
        "[n c h w]": x.transpose(0, 3, 1, 2),
        "float": x.astype(np.float32) / 255,
        "double": x / 255,
    }[form]
    np.savez(tmp_path / "x.npz", x=given, y=np.arange(7))
    np.save(tmp_path / "x.npy", given)
    labelled = array(tmp_path / "x.npz", COLOR)
    assert labelled.y.tolist() == list(range(7))
    for rows in (
        labelled,
        array(tmp_path / "x.npy", COLOR),
        open_rows(given, COLOR),
        open_rows(torch.as_tensor(given), COLOR),
    ):
        found = rows.take(torch.arange(7)).x
        assert found.dtype == torch.float32
        assert_close(found, wanted)


def test_gray_arrays_need_no_channel_axis() -> None:
    x = some_pixels(4, (6, 5))
    assert torch.equal(open_rows(x, GRAY).pixels[:, 0], torch.from_numpy(x))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is no array file"),
        (b"PK\x03\x04 broken zip", "is no array file"),
        (b"\x80\x04\x95 pickle", "is no array file"),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_damaged_arrays_say_so(tmp_path: Path, content: bytes, told: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=told):
        array(path, COLOR)


def test_pickled_and_missing_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "other.npz", images=some_pixels())
    for name in ("evil.npy", "other.npz", "absent.npz"):
        with pytest.raises(SourceError, match=f"{name} is no array file with rows under 'x'"):
            array(tmp_path / name, COLOR)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.full((2, 3, 6, 5), 255.0), "pixels between 255 and 255; give uint8, or float in"),
        (np.full((2, 3, 6, 5), -0.5), "pixels between -0.5 and -0.5"),
        (np.full((2, 3, 6, 5), np.nan), "pixels between nan and nan"),
        (np.array(["cat"]), "an array of <U3 holds no pixels"),
        (np.zeros((2, 3, 7, 7), np.uint8), r"rows have shape \(3, 7, 7\), the net eats \(3, 6, 5\)"),
        (np.zeros((2, 6, 5), np.uint8), r"rows have shape \(1, 6, 5\)"),
        (np.zeros((0, 3, 6, 5), np.uint8), "there is not one row"),
    ],
)
def test_arrays_that_are_no_pixels_are_refused(given: np.ndarray, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        open_rows(given, COLOR)


def write_images(folder: Path) -> None:
    """Two classes, wide and tall, gray, color, with a palette and with transparency."""
    for name, mode, size, color in (
        ("a/red.png", "RGB", (10, 12), (255, 0, 0)),
        ("a/gray.png", "L", (20, 12), 128),
        ("b/palette.gif", "P", (5, 6), 0),
        ("b/deep/clear.png", "RGBA", (50, 60), (0, 0, 255, 128)),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, color).save(folder / name)
    (folder / "readme.txt").write_text("no image")


@pytest.mark.parametrize("spec", [GRAY, COLOR])
def test_image_folders_gray_or_color(tmp_path: Path, spec: InputSpec) -> None:
    write_images(tmp_path)
    rows = images(tmp_path, spec, labelled=True)
    assert rows.pixels.shape == (4, *spec.shape)
    assert rows.pixels.dtype == torch.uint8
    assert rows.y.tolist() == [0, 0, 1, 1]
    assert rows.pixels[0].flatten(1).unique(dim=1).tolist() == ([[128]] if spec is GRAY else [[128], [128], [128]])
    assert rows.pixels[1, :, 0, 0].tolist() == ([76] if spec is GRAY else [255, 0, 0])
    assert images(tmp_path, spec).y is None
    assert torch.equal(open_rows(tmp_path, spec).pixels, rows.pixels)
    assert open_rows(str(tmp_path), spec).y is None


def test_images_are_cropped_in_the_middle(tmp_path: Path) -> None:
    picture = np.zeros((6, 15), np.uint8)
    picture[:, 5:10] = 200
    Image.fromarray(picture).save(tmp_path / "wide.png")
    assert image(tmp_path / "wide.png", GRAY).unique().tolist() == [200]
    Image.fromarray(picture.T.copy()).save(tmp_path / "tall.png")
    assert image(tmp_path / "tall.png", InputSpec(shape=(1, 5, 6), mean=(0.0,), std=(1.0,))).unique().tolist() == [200]


def test_one_class_and_a_limit_spread_over_the_classes(tmp_path: Path) -> None:
    write_images(tmp_path)
    assert images(tmp_path / "b", COLOR).pixels.shape[0] == 2
    assert images(tmp_path, COLOR, labelled=True, limit=2).y.tolist() == [0, 1]
    assert len(images(tmp_path, COLOR, limit=99)) == 4
    for other in ("red.png", "gray.png"):
        (tmp_path / "a" / other).unlink()
    assert images(tmp_path, COLOR, labelled=True).y.tolist() == [0, 0]


def test_image_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no image in .*name a folder that holds some"):
        images(tmp_path, COLOR)
    write_images(tmp_path)
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(SourceError, match="broken.png is no image that can be read"):
        images(tmp_path, COLOR)
    (tmp_path / "a" / "broken.png").replace(tmp_path / "loose.png")
    with pytest.raises(SourceError, match="holds images outside sub-folders"):
        images(tmp_path, COLOR, labelled=True)


class Stream:
    """A Source that is no `Rows`: normalized batches with labels."""

    shape, bn = COLOR.shape, "batch"

    def __len__(self) -> int:
        return 6

    def __iter__(self):
        x = COLOR.normalize(torch.from_numpy(some_pixels(6)).permute(0, 3, 1, 2))
        yield from (Batch(x=part, y=torch.zeros(3)) for part in x.split(3))


def test_sources_become_unlabelled_rows() -> None:
    pixels = torch.from_numpy(some_pixels(6)).permute(0, 3, 1, 2)
    found = open_rows(Stream(), COLOR)
    assert found.y is None
    assert found.bn == "batch"
    assert_close(found.pixels, pixels.float() / 255)
    labelled = Rows(pixels=pixels, y=torch.arange(6), spec=COLOR, batch_size=2)
    assert open_rows(labelled, COLOR).y is None
    assert labelled.y is not None
    with pytest.raises(SourceError, match=r"the net eats \(1, 6, 5\)"):
        open_rows(labelled, GRAY)


def test_rows_are_a_source_and_subsets_keep_labels() -> None:
    rows = Rows(pixels=torch.from_numpy(some_pixels()).permute(0, 3, 1, 2), y=torch.arange(7), spec=COLOR, batch_size=3)
    check_source(rows)
    assert [len(batch.x) for batch in rows] == [3, 3, 1]
    assert rows.subset(torch.tensor([6, 2])).y.tolist() == [6, 2]
    assert_close(COLOR.pixels(rows.take(torch.arange(7)).x), rows.pixels.float() / 255)


def test_augment_shifts_and_mirrors_by_its_generator() -> None:
    x = torch.rand(64, 1, 8, 8, generator=generator(0)) + 1
    first, again, other = (augment(x, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    candidates = {}
    for top in range(5):
        for left in range(5):
            shifted = torch.nn.functional.pad(x, (2, 2, 2, 2))[..., top : top + 8, left : left + 8]
            candidates[top, left, False], candidates[top, left, True] = shifted, shifted.flip(-1)
    seen = set()
    for i in range(64):
        match = [key for key, value in candidates.items() if torch.equal(value[i], first[i])]
        assert len(match) == 1, f"row {i} is no shifted or mirrored row"
        seen.add(match[0][2])
    assert seen == {False, True}
    assert torch.equal(augment(x, generator(0), pad=0, flip=False), x)
