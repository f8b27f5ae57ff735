"""A bank gives back what was put in, from memory as from its folder, and refuses folders that are not its own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dynext.errors import SourceError
from dynext.testing import check_source
from dynext.types import InputSpec
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.synth.synthesize import synthesize

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def make(teacher: nn.Module, n: int = 600, method: str = "leaves", folder: Path | None = None, seed: int = 0) -> Bank:
    return synthesize(teacher, shape=(3, 8, 8), n=n, seed=seed, method=method, spec=SPEC, folder=folder, progress=False)


def everything(bank: Bank) -> torch.Tensor:
    return torch.cat([batch.x for batch in bank])


def test_bank_is_a_source_of_normalized_unlabelled_rows(teacher: nn.Module) -> None:
    bank = make(teacher)
    check_source(bank, (3, 8, 8))
    assert len(bank) == 600
    assert bank.bn == "batch"
    assert [len(shard) for shard in bank.shards] == [256, 256, 88]
    assert all(batch.y is None and batch.x.dtype == torch.float32 for batch in bank)


def test_take_finds_rows_in_every_shard(teacher: nn.Module) -> None:
    bank = make(teacher)
    index = torch.tensor([599, 0, 256, 255, 512, 0])
    assert torch.equal(bank.take(index).x, everything(bank)[index])
    assert bank.take(torch.tensor([], dtype=torch.long)).x.shape == (0, 3, 8, 8)


def test_sheet_is_pixels_spread_over_the_bank(teacher: nn.Module) -> None:
    bank = make(teacher)
    sheet = bank.sheet(3)
    assert torch.equal(sheet, SPEC.pixels(everything(bank)[[0, 300, 599]]))
    assert 0 <= float(sheet.min()) < float(sheet.max()) <= 1
    assert len(bank.sheet(1000)) == 600


def test_saved_bank_comes_back_bit_for_bit(teacher: nn.Module, tmp_path: Path) -> None:
    bank = make(teacher)
    bank.save(tmp_path / "bank")
    opened = Bank.open(tmp_path / "bank")
    assert torch.equal(everything(opened), everything(bank))
    assert opened.provenance == bank.provenance
    assert torch.equal(everything(make(teacher, folder=tmp_path / "other")), everything(bank))


def test_provenance_tells_how_to_make_it_again(teacher: nn.Module) -> None:
    found = make(teacher, n=5, seed=3).provenance
    assert (found.method, found.seed, found.n, found.spec) == ("leaves", 3, 5, SPEC)
    assert str(found).startswith("5 samples of 3x8x8 by leaves, seed 3, teacher ")
    assert found.torch in str(found)


def test_save_leaves_other_files_alone(teacher: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    bank = make(teacher, n=5)
    with pytest.raises(SourceError, match="is not empty"):
        bank.save(tmp_path)
    with pytest.raises(SourceError, match="is not empty"):
        make(teacher, n=5, folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def damage_head(folder: Path, **changes: object) -> None:
    head = json.loads((folder / "bank.json").read_text())
    (folder / "bank.json").write_text(json.dumps({**head, **changes}))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "bank.json").unlink(), "holds no bank that can be read"),
        (lambda folder: (folder / "bank.json").write_text('{"version": 1,'), "holds no bank that can be read"),
        (lambda folder: (folder / "bank.json").write_text("[1]"), "holds no bank that can be read"),
        (lambda folder: damage_head(folder, version=99), "version 99, this dynext reads 'dynext bank' version 1"),
        (lambda folder: damage_head(folder, format="cake"), "format 'cake'"),
        (lambda folder: damage_head(folder, provenance={"n": 3}), "is damaged"),
        (lambda folder: damage_head(folder, rows_done=256), "holds 256 of 600 samples"),
        (lambda folder: (folder / "shard-00001.safetensors").unlink(), "shard-00001.* is missing or truncated"),
        (
            lambda folder: (folder / "shard-00001.safetensors").write_bytes(
                (folder / "shard-00001.safetensors").read_bytes()[:-7]
            ),
            "shard-00001.* is missing or truncated",
        ),
        (
            lambda folder: (folder / "shard-00002.safetensors").replace(folder / "shard-00001.safetensors"),
            r"holds torch.float16 samples of \(88, 3, 8, 8\), expected torch.float16 of \(256, 3, 8, 8\)",
        ),
    ],
)
def test_damaged_banks_are_refused(teacher: nn.Module, tmp_path: Path, damage, told: str) -> None:
    make(teacher, folder=tmp_path)
    damage(tmp_path)
    with pytest.raises(SourceError, match=told):
        Bank.open(tmp_path)


def test_bank_and_provenance_must_agree(teacher: nn.Module) -> None:
    bank = make(teacher)
    with pytest.raises(SourceError, match="a bank of 512 samples whose provenance says 600"):
        Bank(shards=bank.shards[:2], provenance=bank.provenance)


def test_no_batch_is_left_with_a_single_row(teacher: nn.Module) -> None:
    bank = replace(make(teacher), batch_size=599)  # 600 samples
    assert [len(batch.x) for batch in bank] == [300, 300]
    assert [len(batch.x) for batch in replace(bank, batch_size=200)] == [200, 200, 200]
