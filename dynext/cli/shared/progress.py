"""What the library says of its progress, shown by a command on standard error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click


class _Echo(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"  {record.getMessage()}", err=True)


@contextmanager
def progress_shown() -> Iterator[None]:
    """Inside, each line that the logger ``dynext`` is given is printed."""
    log, handler = logging.getLogger("dynext"), _Echo()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
