"""Labels in every usual form as class numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynext.errors import SourceError

NUMBERS = "give each sample the number of its class, counted from 0"


def as_labels(y: Any, count: int) -> tuple[Tensor | None, str | None]:
    """Labels of ``count`` samples as class numbers ``[n]`` (int64), and what should be known about it.

    Whole numbers of any type, ``[n]`` or ``[n 1]``, and one-hot ``[n k]`` are taken. All -1 means unlabelled.

    Raises:
        SourceError: something else: names, mixtures of classes, another number of them.
    """
    y_n = _tensor(y)
    y_n = y_n[:, 0] if y_n.ndim == 2 and y_n.shape[1] == 1 else y_n
    note = None
    if y_n.ndim == 2 and len(y_n):
        y_n, note = _from_one_hot(y_n), "labels are one-hot; the class is where the one stands"
    if y_n.ndim != 1 or len(y_n) != count:
        raise SourceError(f"labels have shape {tuple(y_n.shape)} for {count} samples; {NUMBERS}")
    if y_n.is_floating_point() and not bool((y_n == y_n.round()).all()):
        raise SourceError(f"labels are no whole numbers, such as {float(y_n[y_n != y_n.round()][0]):g}; {NUMBERS}")
    y_n = y_n.long()
    if count and bool((y_n == -1).all()):
        return None, "all labels are -1: the samples are taken for unlabelled"
    if count and int(y_n.min()) < 0:
        raise SourceError(f"labels from {int(y_n.min())} to {int(y_n.max())}; {NUMBERS}, and leave out the unlabelled")
    return y_n, note


def _tensor(y: Any) -> Tensor:
    try:
        if isinstance(y, list | tuple) and y and isinstance(y[0], Tensor):
            y = torch.stack([torch.as_tensor(one) for one in y])
        given = y if isinstance(y, Tensor) else np.asarray(y)
        if isinstance(given, np.ndarray):
            if given.dtype.kind not in "uifb":
                raise SourceError(
                    f"labels are {_example(given)}, no numbers; {NUMBERS}: [names.index(one) for one in labels], or "
                    f"class_encode_column(...) of a Hugging Face data set"
                )
            given = torch.from_numpy(given.astype(np.float64 if given.dtype.kind == "f" else np.int64))
    except (TypeError, ValueError, RuntimeError) as error:
        raise SourceError(f"labels are a {type(y).__name__} of different kinds; {NUMBERS}") from error
    return given.detach().cpu()


def _example(given: np.ndarray) -> str:
    return f"such as {given.flat[0]!r}" if given.size else f"of {given.dtype}"


def _from_one_hot(y_nk: Tensor) -> Tensor:
    if not bool(((y_nk == 0) | (y_nk == 1)).all() and (y_nk.sum(1) == 1).all()):
        raise SourceError(
            f"labels have shape {tuple(y_nk.shape)} and are mixtures of classes or several at once; {NUMBERS}, and "
            f"leave mixup out of what collates"
        )
    return y_nk.float().argmax(1)
