"""A bank of synthesized samples, in memory or as a folder of safetensors shards, with its provenance.

Samples are kept normalized, as the model expects them, in float16: finer than 8-bit pixels, and free to leave [0, 1].
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dynext.atomic import check_writable, replaced_file
from dynext.brief import short_repr
from dynext.errors import SourceError
from dynext.types import Batch, BatchNormMode, InputSpec

BANK_VERSION = 1
HEAD = "bank.json"


def _installed_version() -> str:
    try:
        return metadata.version("dynext")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "source"


DYNEXT_VERSION = _installed_version()
"""Looked up once at import: synthesizing opens no file but the bank's own."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a bank's samples come from: enough to make them again."""

    __repr__ = short_repr

    method: str
    """Its name, or where a function was defined (``package.module:name``)."""
    seed: int
    n: int
    spec: InputSpec
    bn: BatchNormMode
    teacher: str
    """Fingerprint of the teacher's parameters and buffers."""
    options: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    """What the method found out on its way, such as the styles it chose."""
    per_shard: int = 256
    dynext: str = DYNEXT_VERSION
    torch: str = torch.__version__
    seconds: float = 0.0
    made_by: str = ""
    """Of a method that is not dynext's own: the package and its version, or a digest of the function's code."""

    def identity(self) -> dict[str, Any]:
        """What must agree between a folder and the run that goes on with it."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {k: v for k, v in plain.items() if k not in ("notes", "seconds")}

    def __str__(self) -> str:
        size = "x".join(map(str, self.spec.shape))
        by = f" ({self.made_by})" if self.made_by else ""
        return (
            f"{self.n:,} samples of {size} by {self.method}{by}, seed {self.seed}, teacher {self.teacher}, "
            f"{self.bn} statistics, {self.seconds:.1f} s (dynext {self.dynext}, torch {self.torch})"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Bank:
    """A Source of synthesized samples. A bank opened from a folder maps its shards into memory, it does not read
    them.
    """

    __repr__ = short_repr

    shards: tuple[Tensor, ...] = field(repr=False)
    """Samples ``[r c h w]``, float16, normalized; all but the last of ``provenance.per_shard`` samples."""
    provenance: Provenance
    batch_size: int = 256

    def __post_init__(self) -> None:
        rows = sum(len(shard) for shard in self.shards)
        if rows != self.provenance.n:
            raise SourceError(f"a bank of {rows} samples whose provenance says {self.provenance.n}; they must agree")

    @property
    def spec(self) -> InputSpec:
        return self.provenance.spec

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def bn(self) -> BatchNormMode:
        return self.provenance.bn

    def __len__(self) -> int:
        return self.provenance.n

    def __iter__(self) -> Iterator[Batch]:
        # Parts of one size: a last batch of a sample or two would have no statistics to normalize by.
        for index in torch.arange(len(self)).tensor_split(-(-len(self) // self.batch_size)):
            yield self.take(index)

    def take(self, index: Tensor) -> Batch:
        """The samples at ``index [b]`` (from 0), float32, unlabelled."""
        x = torch.empty(len(index), *self.shape)
        shard_b = index.div(self.provenance.per_shard, rounding_mode="floor")
        for number in shard_b.unique().tolist():
            here = shard_b == number
            x[here] = self.shards[number][index[here] - number * self.provenance.per_shard].float()
        return Batch(x=x)

    def sheet(self, count: int) -> Tensor:
        """``count`` samples spread evenly over the bank, as pixels ``[count c h w]`` in [0, 1]."""
        index = torch.linspace(0, len(self) - 1, min(count, len(self))).round().long()
        return self.spec.pixels(self.take(index).x)

    def save(self, folder: Path | str) -> None:
        """Write the bank into a new or empty ``folder``; `Bank.open` gives it back bit for bit.

        Raises:
            SourceError: the folder holds something else.
        """
        folder = new_folder(folder)
        write_head(folder, self.provenance, 0)
        done = 0
        for number, shard in enumerate(self.shards):
            write_shard(folder, number, shard)
            done += len(shard)
        write_head(folder, self.provenance, done)

    @classmethod
    def open(cls, folder: Path | str) -> Bank:
        """The bank in ``folder``.

        Raises:
            SourceError: no bank there, an unfinished one, one of a newer format, or a damaged shard.
        """
        provenance, done = read_head(Path(folder))
        if done < provenance.n:
            raise SourceError(
                f"the bank in {folder} holds {done:,} of {provenance.n:,} samples; "
                f"synthesize with the same arguments and folder to finish it"
            )
        return cls(shards=read_shards(Path(folder), provenance, done), provenance=provenance)


def new_folder(folder: Path | str) -> Path:
    """``folder``, made if need be.

    Raises:
        SourceError: it holds files already.
    """
    folder = Path(folder)
    if folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise SourceError(f"{folder} is not empty; name a new folder for the bank")
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_head(folder: Path, provenance: Provenance, done: int) -> None:
    """Keep the provenance and the number of finished samples, atomically."""
    told = asdict(provenance)
    if not provenance.made_by:
        del told["made_by"]  # so that dynext 0.1 reads banks of its methods
    head = {"format": "dynext bank", "version": BANK_VERSION, "rows_done": done, "provenance": told}
    with replaced_file(folder / HEAD) as partial:
        partial.write_text(json.dumps(head, indent=2) + "\n")


def read_head(folder: Path) -> tuple[Provenance, int]:
    """Provenance and number of finished samples.

    Raises:
        SourceError: no head, a damaged one, or one of a newer format.
    """
    path = folder / HEAD
    try:
        head = json.loads(path.read_text())
        version = head["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{folder} holds no bank that can be read ({HEAD}: {error}); synthesize one there") from error
    if head.get("format") != "dynext bank" or version != BANK_VERSION:
        raise SourceError(
            f"{path} has format {head.get('format')!r} version {version}, this dynext reads 'dynext bank' version "
            f"{BANK_VERSION}; install the dynext that wrote it, or synthesize anew"
        )
    try:
        kept = dict(head["provenance"])
        spec = InputSpec(**{k: tuple(v) for k, v in kept.pop("spec").items()})
        return Provenance(**kept, spec=spec), int(head["rows_done"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{path} is damaged ({type(error).__name__}: {error}); synthesize the bank anew") from error


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def write_shard(folder: Path, number: int, x: Tensor) -> None:
    """Keep one shard's samples, atomically."""
    with replaced_file(_shard_path(folder, number)) as partial:
        save_file({"x": x.contiguous()}, partial)


def read_shards(folder: Path, provenance: Provenance, done: int) -> tuple[Tensor, ...]:
    """The first ``done`` samples, shard by shard, mapped into memory.

    Raises:
        SourceError: a shard is missing, truncated, or of another shape.
    """
    shards = []
    for number, start in enumerate(range(0, done, provenance.per_shard)):
        path = _shard_path(folder, number)
        expected = (min(provenance.per_shard, done - start), *provenance.spec.shape)
        try:
            with safe_open(path, "pt") as opened:
                x = opened.get_tensor("x")
        except (OSError, SafetensorError) as error:
            raise SourceError(
                f"{path} is missing or truncated ({error}); delete {folder} and synthesize anew"
            ) from error
        if tuple(x.shape) != expected or x.dtype != torch.float16:
            raise SourceError(
                f"{path} holds {x.dtype} samples of {tuple(x.shape)}, expected torch.float16 of {expected}; "
                f"delete {folder} and synthesize anew"
            )
        shards.append(x)
    return tuple(shards)


def open_or_start(folder: Path | str, provenance: Provenance) -> tuple[Provenance, int]:
    """The state of the run in ``folder``: that of the unfinished or finished bank there, or a fresh one.

    Raises:
        SourceError: the folder holds another run's bank (the fields that differ are named), or other files.
    """
    folder = Path(folder)
    if not (folder / HEAD).exists():
        write_head(new_folder(folder), provenance, 0)
        return provenance, 0
    kept, done = read_head(folder)
    theirs, ours = kept.identity(), provenance.identity()
    differing = [f"{k} was {theirs[k]}, is {ours[k]}" for k in ours if theirs[k] != ours[k]]
    if differing:
        raise SourceError(
            f"{folder} holds another run's bank ({'; '.join(differing)}); delete it or name another folder"
        )
    return replace(provenance, notes=kept.notes, seconds=kept.seconds), done
