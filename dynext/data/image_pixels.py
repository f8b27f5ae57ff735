"""The pixels of an image file, as a model expects them: 8 bits a channel, upright, resized and cropped.

White is the largest value of the file's own format, not the largest in the picture, except where the format has none:

=========================  ==================================================================
integers of 16 bits        65,535, or the bits that a TIFF says it has
floats                     1, 255 or 65,535, the first that no pixel exceeds by more than 10 %
integers of 32 bits        255 or 65,535, likewise
=========================  ==================================================================
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dynext.errors import SourceError, line
from dynext.types import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

ORIENTATION, BITS, PHOTOMETRIC, WHITE_IS_ZERO = 0x0112, 258, 262, 0
"""The tags of EXIF and TIFF."""
NAMED = 10
"""Files that a message names; it counts the others."""


def image(file: Path | str, spec: InputSpec) -> Tensor:
    """One image file as uint8 pixels ``[c h w]`` of ``spec.shape``: turned upright as its EXIF says, short side
    resized, center cropped, gray or color. Transparency is left out, as torchvision does.

    Raises:
        SourceError: no such file, or no image.
    """
    _check_channels(spec)
    return _image(Path(file), spec)


def read_images(
    files: Sequence[Path], spec: InputSpec, *, strict: bool = False, some: bool = True
) -> tuple[Tensor, dict[int, str]]:
    """Pixels ``[n c h w]`` of those ``files`` that can be read, and the reason for each other one by its place.

    Raises:
        SourceError: none can be read where ``some`` must be; or, with ``strict``, one cannot.
    """
    _check_channels(spec)
    pixels = torch.empty(len(files), *spec.shape, dtype=torch.uint8)
    failed: dict[int, str] = {}
    for i, file in enumerate(files):
        try:
            pixels[i - len(failed)] = _image(file, spec)
        except SourceError as error:
            if strict:
                raise
            failed[i] = str(error)
    if some and failed and len(failed) == len(files):
        raise SourceError(unreadable(failed, len(files)))
    return pixels[: len(files) - len(failed)], failed


def unreadable(failed: dict[int, str], count: int) -> str:
    """The first few of the ``failed`` files among ``count``, with their reasons, and how many more there are."""
    more = f"; and {len(failed) - NAMED:,} more" if len(failed) > NAMED else ""
    skipped = "" if len(failed) == count else ", skipped"
    return f"{len(failed):,} of {count:,} image files cannot be read{skipped}: " + (
        "; ".join(list(failed.values())[:NAMED]) + more
    )


def _check_channels(spec: InputSpec) -> None:
    if len(spec.shape) != 3 or spec.shape[0] not in (1, 3):
        raise SourceError(
            f"the model expects samples of shape {spec.shape}, images have 1 or 3 channels; "
            f"give its samples as a .npz or .npy"
        )


def _image(file: Path, spec: InputSpec) -> Tensor:
    from PIL import Image

    with _quiet():
        try:
            opened = Image.open(file)
        except (
            Exception
        ) as error:  # Pillow's readers fail in ways of their own: struct.error, IndexError, EOFError, ...
            raise _no_image(str(file), error) from error
        with opened:
            return fitted(opened, spec, name=str(file))


def fitted(opened: Image, spec: InputSpec, *, name: str = "a PIL image") -> Tensor:
    """A picture of Pillow as uint8 pixels ``[c h w]``, as `image` makes them of a file.

    Raises:
        SourceError: it cannot be read.
    """
    from PIL import Image

    _check_channels(spec)
    channels, height, width = spec.shape
    try:
        with _quiet():
            opened.load()
            turn = _turn(opened)
            picture = _eight_bits(opened, "L" if channels == 1 else "RGB")
    except Exception as error:
        raise _no_image(name, error) from error
    picture = picture if turn is None else picture.transpose(turn)
    scale = max(height / picture.height, width / picture.width)
    size = (max(round(picture.width * scale), width), max(round(picture.height * scale), height))
    picture = picture.resize(size, Image.Resampling.BILINEAR) if size != picture.size else picture
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    crop = np.array(picture.crop((left, top, left + width, top + height)))
    return torch.from_numpy(crop.reshape(height, width, channels)).permute(2, 0, 1)


def _no_image(name: str, error: Exception) -> SourceError:
    return SourceError(f"{name} is no image that can be read ({line(error)})")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings, of a damaged EXIF or a large picture: it reads these all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _turn(opened: Image) -> Transpose | None:
    """How the picture is turned upright.

    `ImageOps.exif_transpose` would also write the EXIF anew, which fails where a camera's is damaged.
    """
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    try:
        return turns.get(opened.getexif().get(ORIENTATION, 1))
    except Exception:  # a picture whose EXIF is damaged is still a picture
        return None


def _eight_bits(opened: Image, mode: str) -> Image:
    """The picture as gray or color. Pillow clips wider pixels to 8 bits where it should scale them."""
    from PIL import Image

    if opened.mode == "F" or opened.mode.startswith("I"):
        values = np.asarray(opened).astype(np.float64)
        white = _white(opened, float(values.min()), float(values.max()))
        values = white - values if _tag(opened, PHOTOMETRIC) == WHITE_IS_ZERO else values
        gray = (values / white * 255).round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(gray).convert(mode)
    if isinstance(opened.info.get("transparency"), bytes):  # of a palette: Pillow warns of any other way
        return opened.convert("RGBA").convert(mode)
    return opened.convert(mode)


def _white(opened: Image, low: float, high: float) -> float:
    """The value that stands for white."""
    if opened.mode.startswith("I;16"):
        bits = _tag(opened, BITS)
        return float(2**bits - 1 if bits is not None and 8 < bits < 16 else 65535)
    if opened.mode == "I" and opened.format in ("PNG", "PPM"):  # how Pillow before 10.4 or so opens 16 bits
        return 65535.0
    known = (1.0, 255.0, 65535.0) if opened.mode == "F" else (255.0, 65535.0)
    white = next((value for value in known if high <= 1.1 * value), None)
    if white is None or not low >= -0.1 * white:
        raise ValueError(f"pixels between {low:g} and {high:g}; save it in 8 or 16 bits, or as floats in [0, 1]")
    return white


def _tag(opened: Image, tag: int) -> int | None:
    """One number of a TIFF's header."""
    value = getattr(opened, "tag_v2", {}).get(tag)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None
