"""What the library says of its progress and of what it was given, shown by a command on standard error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click


class _Progress(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            click.echo(f"  {record.getMessage()}", err=True)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            click.echo(f"Note: {' '.join(record.getMessage().split())}", err=True)


@contextmanager
def progress_shown() -> Iterator[None]:
    """Inside, each line of progress that the logger ``dynext`` is given is printed."""
    with _heard(_Progress(), logging.INFO):
        yield


@contextmanager
def notes_shown() -> Iterator[None]:
    """Inside, what the library has to say of the user's files and nets is printed, a line each."""
    with _heard(_Notes(), logging.WARNING):
        yield


@contextmanager
def _heard(handler: logging.Handler, level: int) -> Iterator[None]:
    log = logging.getLogger("dynext")
    before = log.level
    log.addHandler(handler)
    log.setLevel(min(level, log.getEffectiveLevel()))
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
