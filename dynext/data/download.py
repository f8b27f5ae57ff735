"""A published file, fetched once and taken only if it is the file that was published."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from dynext.atomic import replaced_file
from dynext.errors import SourceError


def fetch(url: str, path: Path, md5: str) -> Path:
    """``url``'s content as the file ``path``, which is there completely or not at all.

    Raises:
        SourceError: it cannot be downloaded, or has another checksum.
    """
    from torchvision.datasets.utils import calculate_md5, download_url  # takes longer to import than data to read

    with TemporaryDirectory() as folder:
        try:
            download_url(url, folder, path.name)
        except (OSError, RuntimeError) as error:  # RuntimeError: too many redirects
            raise SourceError(f"{url} cannot be downloaded ({error}); fetch it by hand into {path.parent}") from error
        downloaded = Path(folder) / path.name
        checksum = calculate_md5(downloaded)
        if checksum != md5:
            raise SourceError(
                f"{url} has checksum {checksum}, expected {md5}; the file changed or the download broke off"
            )
        with replaced_file(path) as partial:
            shutil.copyfile(downloaded, partial)
    return path
