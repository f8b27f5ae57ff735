"""Small made-up exit tables: later exits are better, some samples are hard at every exit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from dynext.policy.skip_record import Skipped
from dynext.policy.table import ExitTable
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
            "rows": "made-up samples",
            **changes,
        }
    )


def make_skipping(
    n: int = 200, e: int = 4, *, keep: float = 0.5, rate: float = 0.6, harm: float = 1.0, **changes: Any
) -> ExitTable:
    """The same table after two gated stages of 900 MACs were skipped by chance; who skipped says it with more noise."""
    table = make_table(n, e, **changes)
    draw = generator(changes.get("seed", 0) + 1000)
    ran_ng = torch.rand(n, 2, generator=draw) < rate
    skipped_n = (~ran_ng).sum(1)
    noise_nek = torch.randn(table.logits_nek.shape, generator=draw) * harm * skipped_n[:, None, None]
    macs_ne = torch.tensor(table.trunk_macs_e).repeat(n, 1) + 20 - 900 * skipped_n[:, None]
    skipped = Skipped(keep_g=(keep, keep), ran_ng=ran_ng, macs_ne=macs_ne, full_nk=table.logits_nek[:, -1].clone())
    return replace(table, logits_nek=table.logits_nek + noise_nek, skipped=skipped)
