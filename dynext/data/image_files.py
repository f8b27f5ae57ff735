"""Images as files: which files of a folder are images, of which class each is, and the pixels of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dynext.errors import SourceError, line
from dynext.types import InputSpec

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


def class_names(folder: Path | str) -> tuple[str, ...]:
    """The sub-folders of ``folder`` that hold an image, in the order in which `images` numbers them."""
    folder = Path(folder)
    return tuple(sorted({p.relative_to(folder).parts[0] for p in image_files(folder)}))


def image_files(folder: Path) -> list[Path]:
    """Image files under ``folder`` in order, without the hidden ones that editors and file managers leave there."""
    files = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES]
    return [p for p in files if all(map(is_visible, p.relative_to(folder).parts))]


def is_visible(name: str) -> bool:
    """Whether a file or a folder of this name is not a hidden one."""
    return not name.startswith(".") and name != "__MACOSX"


def image(file: Path | str, spec: InputSpec) -> Tensor:
    """One image file as uint8 pixels ``[c h w]`` of ``spec.shape``: short side resized, center cropped, gray or color.

    Raises:
        SourceError: no such file, or no image.
    """
    from PIL import Image, UnidentifiedImageError

    channels, height, width = spec.shape
    if channels not in (1, 3):
        raise SourceError(
            f"the model expects {channels} channels, images have 1 or 3; give its samples as a .npz or .npy"
        )
    try:
        with Image.open(file) as opened:
            # PIL clips 16 bits to 8 where it should scale them: all but the darkest pixels would be white.
            deep = opened.mode.startswith("I;16")
            eight = Image.fromarray((np.asarray(opened) // 257).astype(np.uint8)) if deep else opened
            picture = eight.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise SourceError(f"{file} is no image that can be read ({line(error)})") from error
    scale = max(height / picture.height, width / picture.width)
    size = (max(round(picture.width * scale), width), max(round(picture.height * scale), height))
    picture = picture.resize(size, Image.Resampling.BILINEAR) if size != picture.size else picture
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    crop = np.array(picture.crop((left, top, left + width, top + height)))
    return torch.from_numpy(crop.reshape(height, width, channels)).permute(2, 0, 1)
