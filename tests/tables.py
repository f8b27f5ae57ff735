"""Small made-up exit tables: later exits are better, some rows are hard at every exit."""

from __future__ import annotations

from typing import Any

import torch

from dynext.core.table import ExitTable
from dynext.seeding import generator


def make_table(n: int = 200, e: int = 4, k: int = 5, *, seed: int = 0, noise: float = 1.0, **changes: Any) -> ExitTable:
    """The full net's logits, and at each earlier exit the same with more noise; labels drawn from its softmax."""
    draw = generator(seed)
    full_nk = torch.randn(n, k, generator=draw)
    full_nk[torch.arange(n), torch.randint(k, (n,), generator=draw)] += 10 * torch.rand(n, generator=draw)
    noise_nek = torch.randn(n, e, k, generator=draw) * noise * torch.linspace(2.0, 0.0, e)[:, None]
    return ExitTable(
        **{
            "logits_nek": full_nk[:, None] + noise_nek,
            "trunk_macs_e": tuple(1000 * (i + 1) for i in range(e)),
            "head_macs_e": (*(10 * (i + 1) for i in range(e - 1)), 0),
            "label_n": torch.multinomial(full_nk.softmax(1), 1, generator=draw)[:, 0],
            "basis": "teacher",
            "name_e": (*(f"layer{i}" for i in range(e - 1)), "output"),
            "rows": "made-up rows",
            **changes,
        }
    )
