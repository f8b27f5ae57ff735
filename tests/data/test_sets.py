"""Fashion-MNIST and CIFAR-10 come out of their files as they went in; damaged and missing ones say what to do."""

import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from pixels import some_pixels
from torch.testing import assert_close

from dynext.data.datasets import cifar10, digits, fashion_mnist
from dynext.errors import SourceError
from dynext.testing import check_source


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
    samples = fashion_mnist("test", root=tmp_path)
    assert np.array_equal(samples.pixels[:, 0].numpy(), x)
    assert samples.y.tolist() == y.tolist()
    assert_close(samples.take(torch.tensor([2])).x[0, 0], torch.from_numpy((x[2] / 255 - 0.2860) / 0.3530).float())
    check_source(samples, (1, 28, 28))


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


def test_images_and_labels_of_different_lengths_are_refused(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(3, np.uint8))))
    with pytest.raises(SourceError, match="3 labels for 7 samples"):
        fashion_mnist("test", root=tmp_path)


def test_missing_fashion_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"is in none of {tmp_path}, .*raw; .*download=True"):
        fashion_mnist("train", root=tmp_path)


def serve(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], bytes]) -> None:
    """Have torchvision download what ``answer`` gives for an address."""

    def download(url: str, folder: str, name: str) -> None:
        (Path(folder) / name).write_bytes(answer(url))

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)


def test_download_offline_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    def offline(url: str) -> bytes:
        raise URLError("no route to host")

    serve(monkeypatch, offline)
    with pytest.raises(SourceError, match=rf"cannot be downloaded .*no route to host.*by hand into {tmp_path}"):
        fashion_mnist("test", root=tmp_path, download=True)


def test_download_compares_checksums_and_keeps_what_fits(tmp_path: Path, monkeypatch) -> None:
    write_fashion(tmp_path / "server")
    serve(monkeypatch, lambda url: (tmp_path / "server" / url.rsplit("/", 1)[1]).read_bytes())
    with pytest.raises(SourceError, match="has checksum .*, expected bef4ecab"):
        fashion_mnist("test", root=tmp_path / "cache", download=True)
    assert not (tmp_path / "cache").exists()
    known = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in (tmp_path / "server").iterdir()}
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.resources", list(known.items()))
    samples = fashion_mnist("test", root=tmp_path / "cache", download=True)
    assert len(samples) == 7
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == sorted(known)
    serve(monkeypatch, lambda url: pytest.fail("downloaded twice"))
    assert len(fashion_mnist("test", root=tmp_path / "cache", download=True)) == 7


def test_cifar10_from_an_array_or_nowhere(tmp_path: Path) -> None:
    x = some_pixels(4, (32, 32, 3))
    np.savez(tmp_path / "some.npz", x=x, y=np.array([3, 1, 2, 0]))
    samples = cifar10("test", root=tmp_path / "some.npz")
    assert samples.y.tolist() == [3, 1, 2, 0]
    assert np.array_equal(samples.pixels.permute(0, 2, 3, 1).numpy(), x)
    with pytest.raises(SourceError, match=f"CIFAR-10 is not under {tmp_path}"):
        cifar10("train", root=tmp_path)


def test_digits_of_no_size() -> None:
    with pytest.raises(SourceError, match="side=0; give 1 pixel or more"):
        digits(side=0)
