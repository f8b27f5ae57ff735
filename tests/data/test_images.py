"""Folders of images, gray or color, with and without classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pixels import COLOR, GRAY

from dynext.data.datasets import open_rows
from dynext.data.folders import images
from dynext.data.image_files import class_names
from dynext.data.image_pixels import image
from dynext.errors import SourceError
from dynext.types import InputSpec


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
    samples = images(tmp_path, spec, labelled=True)
    assert samples.pixels.shape == (4, *spec.shape)
    assert samples.pixels.dtype == torch.uint8
    assert samples.y.tolist() == [0, 0, 1, 1]
    assert samples.pixels[0].flatten(1).unique(dim=1).tolist() == ([[128]] if spec is GRAY else [[128], [128], [128]])
    assert samples.pixels[1, :, 0, 0].tolist() == ([76] if spec is GRAY else [255, 0, 0])
    assert images(tmp_path, spec).y is None
    assert torch.equal(open_rows(tmp_path, spec).pixels, samples.pixels)
    assert open_rows(str(tmp_path), spec).y is None


def test_images_are_cropped_in_the_middle(tmp_path: Path) -> None:
    picture = np.zeros((6, 15), np.uint8)
    picture[:, 5:10] = 200
    Image.fromarray(picture).save(tmp_path / "wide.png")
    assert image(tmp_path / "wide.png", GRAY).unique().tolist() == [200]
    Image.fromarray(picture.T.copy()).save(tmp_path / "tall.png")
    assert image(tmp_path / "tall.png", InputSpec(shape=(1, 5, 6), mean=(0.0,), std=(1.0,))).unique().tolist() == [200]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)).save(tmp_path / "deep.png")
    for spec in (GRAY, COLOR):
        assert image(tmp_path / "deep.png", spec).unique().tolist() == [128]


def test_what_a_net_expects_is_told_in_pixels_from_0_to_1() -> None:
    for given, told in (
        ({"mean": (123.7,)}, r"mean \(123\.7,\) is of pixels in \[0, 1\]; divide by 255"),
        ({"std": (float("nan"),)}, "must be positive in every channel"),
        ({"shape": ()}, r"shape \(\); give one sample's"),
    ):
        with pytest.raises(SourceError, match=told):
            InputSpec(**{"shape": (1, 8, 8), "mean": (0.5,), "std": (0.5,), **given})


def test_one_class_and_a_limit_spread_over_the_classes(tmp_path: Path) -> None:
    write_images(tmp_path)
    assert images(tmp_path / "b", COLOR).pixels.shape[0] == 2
    assert images(tmp_path, COLOR, labelled=True, limit=2).y.tolist() == [0, 1]
    assert len(images(tmp_path, COLOR, limit=99)) == 4
    for other in ("red.png", "gray.png"):
        (tmp_path / "a" / other).unlink()
    (tmp_path / "a").rmdir()
    assert images(tmp_path, COLOR, labelled=True).y.tolist() == [0, 0]


def test_hidden_images_are_no_class_and_an_empty_one_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path)
    for hidden in (".ipynb_checkpoints/red.png", "__MACOSX/a/red.png", "a/._red.png"):
        (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / hidden).write_bytes((tmp_path / "a" / "gray.png").read_bytes())
    assert class_names(tmp_path) == ("a", "b")
    assert images(tmp_path, COLOR, labelled=True).y.tolist() == [0, 0, 1, 1]
    (tmp_path / "aa").mkdir()
    (tmp_path / "aa" / "photo.xyz").write_bytes(b"unknown")
    with pytest.raises(
        SourceError, match="aa holds no image; put some of its class there, remove it, or give the names"
    ):
        images(tmp_path, COLOR, labelled=True)
    assert len(images(tmp_path, COLOR)) == 4
    caplog.clear()
    assert images(tmp_path, COLOR, labelled=True, classes=["a", "aa", "b"]).y.tolist() == [0, 0, 2, 2]
    assert "images of 2 of 3 classes, none of 'aa'; no image in 'aa'" in caplog.text


def test_image_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no image in .*name a folder that holds some"):
        images(tmp_path, COLOR)
    write_images(tmp_path)
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(SourceError, match="broken.png is no image that can be read"):
        images(tmp_path, COLOR, strict=True)
    (tmp_path / "a" / "broken.png").replace(tmp_path / "loose.png")
    with pytest.raises(SourceError, match="holds images outside sub-folders, such as loose.png"):
        images(tmp_path, COLOR, labelled=True)
