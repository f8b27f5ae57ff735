"""A run that dies after one of its checkpoints was written."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

fit_module = importlib.import_module("dynext.fitting")  # the package's `fit` is the function


@contextmanager
def killed_at_save(monkeypatch: pytest.MonkeyPatch, count: int = 2) -> Iterator[None]:
    """What runs in here is interrupted as soon as `dynext.fitting.fit` has saved ``count`` times."""
    saves, save = [], fit_module._save

    def dying(*given: object) -> None:
        saves.append(save(*given))
        if len(saves) == count:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "_save", dying)
        with pytest.raises(KeyboardInterrupt):
            yield
