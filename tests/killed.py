"""A run that dies after one of its checkpoints was written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dynext import fitting


@contextmanager
def killed_at_save(monkeypatch: pytest.MonkeyPatch, count: int = 2) -> Iterator[None]:
    """What runs in here is interrupted as soon as `dynext.fitting.fit` has saved ``count`` times."""
    saves, save = [], fitting._save

    def dying(*arguments: object) -> None:
        saves.append(save(*arguments))
        if len(saves) == count:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_save", dying)
        with pytest.raises(KeyboardInterrupt):
            yield
