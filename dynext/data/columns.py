"""Which part of a data set's items is the image, and which the label."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from dynext.errors import SourceError

IMAGE_NAMES = ("image", "img", "pixel_values", "images", "pixels", "x", "input", "inputs", "picture", "photo")
LABEL_NAMES = ("label", "labels", "y", "target", "targets", "class", "class_id")
BETTER = "select or rename columns: ds.select_columns(['image', 'label']), ds.rename_column('...', 'label')"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How items (or batches of them) are taken apart: by name, by place, or not at all."""

    image: str | int | None
    label: str | int | None

    @classmethod
    def of(cls, item: Any, features: Any = None) -> Columns:
        """Those of ``item``, of ``features`` (Hugging Face: what type a column has) where there are some.

        Raises:
            SourceError: no image in it, or several parts that may be meant.
        """
        if isinstance(item, Mapping):
            kinds = features if isinstance(features, Mapping) else {}
            image = _chosen(item, kinds, "Image", IMAGE_NAMES, is_image, "image")
            label = _chosen(item, kinds, "ClassLabel", LABEL_NAMES, is_label, "label")
            if image is None:
                raise SourceError(f"an item holds {_names(item)}, and none is an image; {BETTER}")
            return cls(image=image, label=label)
        if isinstance(item, tuple) or (isinstance(item, list) and not _is_numbers(item)):
            if not item or not is_image(item[0]):
                kinds_given = ", ".join(type(part).__name__ for part in item) or "nothing"
                raise SourceError(
                    f"an item is ({kinds_given}); give (image, label), a mapping of both, or images alone"
                )
            if len(item) > 1 and not is_label(item[1]):
                raise SourceError(
                    f"an item is ({', '.join(map(_kind, item))}); its second part is no class number: give (image, "
                    f"label)"
                )
            return cls(image=0, label=1 if len(item) > 1 else None)
        return cls(image=None, label=None)

    def image_of(self, item: Any) -> Any:
        return item if self.image is None else self._part(item, self.image)

    def label_of(self, item: Any) -> Any:
        """``None`` where there is none."""
        return None if self.label is None else self._part(item, self.label)

    def _part(self, item: Any, place: str | int) -> Any:
        try:
            return item[place]
        except (KeyError, IndexError, TypeError) as error:
            raise SourceError(f"some items hold {place!r}, others do not; give all in one form") from error


def _chosen(
    item: Mapping[str, Any], kinds: Mapping[str, Any], kind: str, names: tuple[str, ...], fits: Any, what: str
) -> str | None:
    """The one column of this kind: by the data set's own types, else by a usual name, else by its value."""
    typed = [name for name in item if type(kinds.get(name)).__name__ == kind]
    named = [name for name in item if str(name).lower() in names]
    fitting = [name for name in item if fits(item[name])]
    for candidates in (typed, named, fitting):
        if len(candidates) > 1:
            usual = [name for name in names if name in candidates][:1]
            if not usual:
                raise SourceError(f"which {what} is meant, {_names(candidates)}? {BETTER[0].upper()}{BETTER[1:]}")
            return usual[0]
        if candidates:
            return candidates[0]
    return None


def _is_numbers(value: list[Any]) -> bool:
    """Whether it is an image as nested lists."""
    return bool(value) and (isinstance(value[0], int | float) or (isinstance(value[0], list) and _is_numbers(value[0])))


def is_picture(value: Any) -> bool:
    """Whether it is an image of Pillow's, or a file's content as Hugging Face gives it undecoded."""
    if isinstance(value, Mapping):
        return bool(value) and set(value) <= {"bytes", "path"}
    return hasattr(value, "getexif") and hasattr(value, "convert")


def is_image(value: Any) -> bool:
    """Whether it may be an image, or some."""
    if is_picture(value):
        return True
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim >= 2
    if isinstance(value, list) and value:
        return is_image(value[0]) or (isinstance(value[0], list) and np.ndim(value[0]) >= 1)
    return False


def is_label(value: Any) -> bool:
    """Whether it may be a class, or those of a batch: also ones that are no numbers, of which labels then tell."""
    if isinstance(value, Integral | float | str):
        return True
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.ndim <= 2
    return isinstance(value, list | tuple) and all(isinstance(one, Integral | float | str) for one in value)


def _names(names: Collection[Any]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def _kind(part: Any) -> str:
    return f"{type(part).__name__} {list(part.shape)}" if isinstance(part, Tensor | np.ndarray) else type(part).__name__
