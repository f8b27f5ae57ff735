"""Arrays in every form give the same samples; what holds no pixels is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pixels import COLOR, GRAY, some_pixels
from torch.testing import assert_close

from dynext.data.datasets import array, open_rows
from dynext.errors import SourceError


@pytest.mark.parametrize("form", ["[n h w c]", "[n c h w]", "float", "double"])
def test_arrays_in_every_form_give_the_same_samples(tmp_path: Path, form: str) -> None:
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
    for samples in (
        labelled,
        array(tmp_path / "x.npy", COLOR),
        open_rows(given, COLOR),
        open_rows(torch.as_tensor(given), COLOR),
    ):
        drawn = samples.take(torch.arange(7)).x
        assert drawn.dtype == torch.float32
        assert_close(drawn, wanted)


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
    told = {
        "evil.npy": "is no array file (ValueError: damaged, another kind of file, or Python objects)",
        "other.npz": "holds 'images'; save the pixels as 'x'",
        "absent.npz": "no file",
    }
    for name, words in told.items():
        with pytest.raises(SourceError, match=re.escape(words)):
            array(tmp_path / name, COLOR)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.full((2, 3, 6, 5), 255.0), "pixels between 255 and 255; give uint8, or float in"),
        (np.full((2, 3, 6, 5), -0.5), "pixels between -0.5 and -0.5"),
        (np.full((2, 3, 6, 5), np.nan), "pixels between nan and nan"),
        (np.array(["cat"]), "an array of <U3 holds no pixels"),
        (np.zeros((2, 3, 7, 7), np.uint8), r"samples have shape \(3, 7, 7\), the model expects \(3, 6, 5\)"),
        (np.zeros((2, 6, 5), np.uint8), r"samples have shape \(1, 6, 5\)"),
        (np.zeros((0, 3, 6, 5), np.uint8), "there is not one sample"),
    ],
)
def test_arrays_that_are_no_pixels_are_refused(given: np.ndarray, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        open_rows(given, COLOR)
