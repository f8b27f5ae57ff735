"""A published file, fetched once and taken only if it is the file that was published."""

from __future__ import annotations

import hashlib
import urllib.request
from pathlib import Path

from dynext.atomic import replaced_file
from dynext.errors import SourceError


def fetch(url: str, path: Path, md5: str) -> Path:
    """``url``'s content as the file ``path``, which is whole or not there.

    Raises:
        SourceError: it cannot be downloaded, or has another checksum.
    """
    try:
        with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310  addresses are constants of the callers
            content = response.read()
    except OSError as error:
        raise SourceError(f"{url} cannot be downloaded ({error}); fetch it by hand into {path.parent}") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise SourceError(f"{url} has checksum {found}, expected {md5}; the file changed or the download broke off")
    with replaced_file(path) as partial:
        partial.write_bytes(content)
    return path
