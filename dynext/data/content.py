"""Samples recognized by what they show, in any order and subset: a small set of digests instead of the samples.

Shapes: b samples of a batch, n samples.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dynext.errors import SourceError
from dynext.types import Source

BYTES = 6
"""Of a digest: among ten thousand samples two that differ share one less often than once in a million."""

MOST = 16_384
"""Of more samples those with the smallest digests are kept, so that the same ones are kept of every subset."""

GRID = 64
"""Inputs are compared in steps of a 64th: what a file, an array or another type of number gives is the same sample."""


@dataclass(frozen=True)
class Content:
    """Which samples were seen. Joined by ``|``; empty for a net that has learned from none, or from synthesized ones.

    >>> seen = Content.of_batch(torch.eye(3))
    >>> seen.known(torch.eye(3).flip(0)[:2]).tolist(), seen.known(torch.zeros(1, 3)).tolist()
    ([True, True], [False])
    """

    digests: frozenset[int] = frozenset()

    @classmethod
    def of_batch(cls, x: Tensor) -> Content:
        """The samples ``x [b ...]``, as a net is given them."""
        return cls._of(_digests(x))

    @classmethod
    def of(cls, source: Source) -> Content:
        """All samples of ``source``. None of synthesized ones, which no choice of thresholds takes for real, and none
        of more than `MOST` that are not in memory, which it would take an epoch to read."""
        if source.bn == "batch" or (len(source) > MOST and not hasattr(source, "pixels")):
            return cls()
        return cls._of(digest for batch in source for digest in _digests(batch.x))

    @classmethod
    def _of(cls, digests: Iterable[int]) -> Content:
        distinct = set(digests)
        return cls(frozenset(distinct if len(distinct) <= MOST else sorted(distinct)[:MOST]))

    @classmethod
    def union(cls, parts: Iterable[Content]) -> Content:
        """All that is in any of them."""
        return cls._of(digest for part in parts for digest in part.digests)

    def __or__(self, other: Content) -> Content:
        if not self.digests or not other.digests:
            return self if self.digests else other
        return self._of(self.digests | other.digests)

    def __bool__(self) -> bool:
        return bool(self.digests)

    def __len__(self) -> int:
        return len(self.digests)

    def __deepcopy__(self, memo: object) -> Content:
        return self

    def __repr__(self) -> str:
        return f"Content({len(self):,} samples)"

    def known(self, x: Tensor) -> Tensor:
        """Which of the samples ``x [b ...]`` are among them ``[b]``, bool."""
        if not self.digests:
            return torch.zeros(len(x), dtype=torch.bool)
        return torch.tensor([digest in self.digests for digest in _digests(x)], dtype=torch.bool)

    def known_of(self, source: Source) -> Tensor:
        """Which samples of ``source`` are among them ``[n]``, bool; of synthesized ones none."""
        if not self.digests or source.bn == "batch":
            return torch.zeros(len(source), dtype=torch.bool)
        return torch.cat([self.known(batch.x) for batch in source])

    def to_text(self) -> str:
        """For a file; eight characters a sample."""
        raw = b"".join(digest.to_bytes(BYTES, "big") for digest in sorted(self.digests))
        return base64.b64encode(raw).decode()

    @classmethod
    def from_text(cls, text: str) -> Content:
        """What `to_text` wrote.

        Raises:
            SourceError: something else.
        """
        try:
            raw = base64.b64decode(text, validate=True)
        except (TypeError, ValueError) as error:
            raise SourceError(f"no record of samples: {error}; convert the net again") from error
        if len(raw) % BYTES:
            raise SourceError(f"no record of samples: {len(raw)} bytes, not a multiple of {BYTES}; convert it again")
        return cls(frozenset(int.from_bytes(raw[i : i + BYTES], "big") for i in range(0, len(raw), BYTES)))


def _digests(x: Tensor) -> list[int]:
    coarse = (x.detach().float().nan_to_num(0.0) * GRID).round().clamp(-(2**15), 2**15 - 1).short().cpu()
    return [
        int.from_bytes(hashlib.blake2b(row.numpy().tobytes(), digest_size=BYTES).digest(), "big")
        for row in coarse.contiguous()
    ]
