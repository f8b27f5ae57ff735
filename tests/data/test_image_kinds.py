"""Images as cameras, scanners, archives and broken disks leave them."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin
from pixels import COLOR, GRAY

from dynext.data.datasets import open_rows
from dynext.data.folders import images
from dynext.data.image_files import image_files
from dynext.data.image_pixels import image
from dynext.errors import SourceError
from dynext.types import InputSpec

SQUARE = InputSpec(shape=(1, 4, 4), mean=(0.5,), std=(0.5,))
RAMP = np.linspace(0, 65535, 16).round().reshape(4, 4)
"""From black to white, in sixteen bits."""
EIGHT = (RAMP / 257).round().astype(np.uint8)


def tiff(path: Path, values: np.ndarray, bits: int, kind: int, photometric: int, order: str = "<") -> Path:
    """A TIFF of one gray channel, written by hand: Pillow does not write each kind that it reads."""
    data = values.tobytes()
    tags = [(256, 3, values.shape[1]), (257, 3, values.shape[0]), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
            (273, 4, 8), (277, 3, 1), (278, 3, values.shape[0]), (279, 4, len(data)), (339, 3, kind)]  # fmt: skip
    out = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(data)) + data
    out += struct.pack(f"{order}H", len(tags))
    for tag, form, value in tags:
        out += struct.pack(f"{order}HHI", tag, form, 1)
        out += struct.pack(f"{order}HH", value, 0) if form == 3 else struct.pack(f"{order}I", value)
    path.write_bytes(out + struct.pack(f"{order}I", 0))
    return path


@pytest.mark.parametrize(
    "given",
    [
        (RAMP.astype("<u2"), 16, 1, 1, "<"),
        (RAMP.astype(">u2"), 16, 1, 1, ">"),
        ((65535 - RAMP).astype("<u2"), 16, 1, 0, "<"),
        (RAMP.astype("<i4"), 32, 2, 1, "<"),
        (EIGHT.astype("<i4"), 32, 2, 1, "<"),
        ((RAMP / 65535).astype("<f4"), 32, 3, 1, "<"),
        ((RAMP / 65535).astype(">f4"), 32, 3, 1, ">"),
        ((1 - RAMP / 65535).astype("<f4"), 32, 3, 0, "<"),
        ((RAMP / 257).astype("<f4"), 32, 3, 1, "<"),
        (RAMP.astype("<f4"), 32, 3, 1, "<"),
        ((RAMP / 65535 * 1.04 - 0.02).astype("<f4"), 32, 3, 1, "<"),
    ],
)
def test_wide_tiffs_are_scaled(tmp_path: Path, given: Any) -> None:
    file = tiff(tmp_path / "x.TIF", *given)
    off = np.abs(image(file, SQUARE)[0].numpy().astype(int) - EIGHT)
    assert off.max() <= (6 if given[0].min() < 0 else 1)
    color = image(file, InputSpec(shape=(3, 4, 4), mean=(0.0,) * 3, std=(1.0,) * 3))
    assert torch.equal(color, image(file, SQUARE).expand(3, -1, -1))


def test_a_dark_picture_of_sixteen_bits_stays_dark(tmp_path: Path) -> None:
    dark = np.full((4, 4), 200, np.uint16)
    Image.fromarray(dark).save(tmp_path / "dark.png")
    Image.fromarray(dark).save(tmp_path / "dark.tif")
    for name in ("dark.png", "dark.tif"):
        assert image(tmp_path / name, SQUARE).unique().tolist() == [1]


def test_a_png_is_right_in_whichever_mode_pillow_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "x.PNG")
    assert image(tmp_path / "x.PNG", SQUARE)[0].numpy().tolist() == EIGHT.tolist()
    real = Image.open

    def as_before(file: Any) -> Image.Image:
        """Pillow 10.1 opens it in mode I."""
        opened = real(file)
        opened.load()
        old = Image.fromarray(np.asarray(opened).astype(np.int32))
        old.format = "PNG"
        return old

    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "dark.png")
    monkeypatch.setattr(Image, "open", as_before)
    assert image(tmp_path / "x.PNG", SQUARE)[0].numpy().tolist() == EIGHT.tolist()
    assert image(tmp_path / "dark.png", SQUARE).unique().tolist() == [1]


@pytest.mark.parametrize("wrong", [[[-1.0, 1.0]], [[0.0, 1e6]], [[float("nan"), 1.0]]])
def test_floats_that_are_no_pixels_are_told(tmp_path: Path, wrong: list[list[float]]) -> None:
    Image.fromarray(np.array(wrong, np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(
        SourceError, match=r"x.tiff is no image that can be read .*pixels between .* floats in \[0, 1\]"
    ):
        image(tmp_path / "x.tiff", GRAY)


def test_twelve_bits(tmp_path: Path) -> None:
    file = tiff(tmp_path / "x.tif", np.full((4, 6), 0xFF, np.uint8), 12, 1, 1)
    head = bytearray(file.read_bytes())
    width = head.index(struct.pack("<HHIHH", 256, 3, 1, 6, 0))
    head[width : width + 12] = struct.pack("<HHIHH", 256, 3, 1, 4, 0)
    file.write_bytes(bytes(head))
    assert image(file, SQUARE).unique().tolist() == [255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.zeros((32, 32), np.uint8)
    upright[:16, :16], upright[16:, :16] = 250, 120
    back = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
        6: np.rot90, 7: lambda a: np.rot90(a.T, 2), 8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(back(upright))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"x.{suffix}"
    stored.save(file, exif=exif, **({"quality": 100} if suffix in ("jpg", "webp") else {}))
    pixels = image(file, InputSpec(shape=(1, 32, 32), mean=(0.0,), std=(1.0,)))[0].numpy().astype(int)
    assert np.abs(pixels - upright).mean() < 3


def test_a_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    Image.new("L", (6, 6), 77).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f garbage")
    assert image(tmp_path / "x.jpg", GRAY).unique().tolist() == [77]


@pytest.mark.parametrize(
    ("mode", "fill", "suffix", "expected"),
    [
        ("1", 1, "png", (255, 255, 255)),
        ("L", 90, "bmp", (90, 90, 90)),
        ("LA", (90, 128), "png", (90, 90, 90)),
        ("RGBA", (200, 100, 50, 0), "png", (200, 100, 50)),
        ("RGBA", (200, 100, 50, 255), "WEBP", (200, 100, 50)),
        ("CMYK", (0, 255, 255, 0), "tif", (255, 0, 0)),
        ("RGB", (200, 100, 50), "ppm", (200, 100, 50)),
        ("RGB", (200, 100, 50), "BMP", (200, 100, 50)),
        ("RGB", (200, 100, 50), "JPEG", (200, 100, 50)),
        ("RGB", (200, 100, 50), "jfif", (200, 100, 50)),
    ],
)
def test_modes_and_suffixes(tmp_path: Path, mode: str, fill: Any, suffix: str, expected: tuple[int, ...]) -> None:
    options = {"lossless": True, "exact": True} if suffix == "WEBP" else {}
    Image.new(mode, (9, 9), fill).save(tmp_path / f"x.{suffix}", **options)
    pixels = images(tmp_path, COLOR).pixels[0, :, 3, 3].tolist()
    assert np.abs(np.array(pixels) - expected).max() <= 2
    gray = images(tmp_path, GRAY).pixels[0, 0, 3, 3].item()
    assert abs(gray - float(np.dot(expected, (0.299, 0.587, 0.114)))) <= 2


def test_palettes_with_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (6, 6), 1)
    picture.putpalette([0, 0, 0, 10, 200, 30])
    picture.save(tmp_path / "bytes.png", transparency=bytes([255, 0]))
    picture.save(tmp_path / "one.png", transparency=1)
    assert images(tmp_path, COLOR).pixels[:, :, 0, 0].tolist() == [[10, 200, 30]] * 2


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    data, store = tmp_path / "data", tmp_path / "store"
    for folder in (data / "a", data / "c", store / "b" / "deep"):
        folder.mkdir(parents=True)
    for file in (data / "a" / "0.png", store / "b" / "0.png", store / "b" / "deep" / "1.png", store / "c.png"):
        Image.new("L", (6, 6), 9).save(file)
    (data / "b").symlink_to(store / "b", target_is_directory=True)
    (data / "c" / "0.png").symlink_to(store / "c.png")
    (data / "c" / "self.png").symlink_to(data / "c" / "self.png")
    (store / "b" / "deep" / "up").symlink_to(data, target_is_directory=True)
    (data / "a" / "round").symlink_to(data / "a", target_is_directory=True)
    (data / "c" / "gone.png").symlink_to(store / "nowhere.png")
    names = [path.relative_to(data).as_posix() for path in image_files(data)]
    assert names == ["a/0.png", "b/0.png", "b/deep/1.png", "c/0.png", "c/gone.png", "c/self.png"]
    assert images(data, GRAY, labelled=True).y.tolist() == [0, 1, 1, 2]
    (tmp_path / "link").symlink_to(data, target_is_directory=True)
    assert len(images(tmp_path / "link", GRAY)) == 4


def test_what_file_managers_leave_is_no_image(tmp_path: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "._0.jpg", "a/.ipynb_checkpoints/0.png", "@eaDir/0.png", "a/desktop.ini"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    Image.new("L", (6, 6), 9).save(tmp_path / "a" / "0.JPG")
    assert images(tmp_path, GRAY, labelled=True, classes=["a", "b"], strict=True).y.tolist() == [0]


def test_unreadable_files_are_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(40):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        Image.effect_noise((60, 60), 90).save(tmp_path / str(i % 2) / f"{i:02}.png")
    whole = images(tmp_path, GRAY, labelled=True)
    torn = tmp_path / "0" / "06.png"
    torn.write_bytes(torn.read_bytes()[:900])
    (tmp_path / "1" / "11.png").write_bytes(b"")
    (tmp_path / "1" / "13.png").write_text("<html>")
    caplog.clear()
    rest = images(tmp_path, GRAY, labelled=True)
    left = [i for i in range(40) if i not in (3, 20 + 5, 20 + 6)]
    assert torch.equal(rest.pixels, whole.pixels[left])
    assert torch.equal(rest.y, whole.y[left])
    assert "3 of 40 image files cannot be read, skipped: " in caplog.text
    assert all(name in caplog.text for name in ("06.png", "11.png", "13.png"))
    assert len(open_rows(tmp_path, GRAY)) == 37
    for strict in (lambda: images(tmp_path, GRAY, strict=True), lambda: open_rows(tmp_path, GRAY, strict=True)):
        with pytest.raises(SourceError, match="06.png is no image that can be read"):
            strict()
    with pytest.raises(SourceError, match="samples of shape .* images have 1 or 3 channels"):
        images(tmp_path, InputSpec(shape=(4, 6, 6), mean=(0.5,) * 4, std=(0.5,) * 4))


def test_no_readable_file_at_all(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i:02}.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    with pytest.raises(SourceError, match="30 of 30 image files cannot be read: .*00.png.*; and 20 more") as error:
        images(tmp_path, GRAY)
    assert "29.png" not in str(error.value)
    with pytest.raises(SourceError, match="there is no folder"):
        images(tmp_path / "gone", GRAY)


def test_a_reader_that_fails_in_its_own_way_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.tif", "b.tif"):
        Image.new("L", (6, 6), 9).save(tmp_path / name)
    real = TiffImagePlugin.TiffImageFile.load

    def load(self: Any) -> Any:
        if str(self.filename).endswith("a.tif"):
            raise struct.error("unpack requires a buffer of 4 bytes")
        return real(self)

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", load)
    assert len(images(tmp_path, GRAY)) == 1
