"""What meta-training gives: a net to start from, and how its inner loop goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dynext.atomic import replaced_file
from dynext.brief import short_repr
from dynext.errors import ArtifactError, FitError
from dynext.meta.inner import InnerLoop
from dynext.net.dynamic_net import DynamicNet

FILE = "start.safetensors"
"""What `MetaStart.write` is usually called beside ``net.json``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MetaStart:
    """A meta-learned net, with the inner loop that it was learned for."""

    __repr__ = short_repr

    net: DynamicNet
    inner: InnerLoop
    step_sizes: Mapping[str, Tensor] | None = None
    """Learned ones (Meta-SGD), by parameter."""
    statistics: Mapping[str, Tensor] | None = None
    """Of BatchNorms at each inner step, by buffer, ``[steps + 1 ...]`` (``bn="per_step"``)."""

    def write(self, path: Path | str) -> Path:
        """All but the net's own tensors, which `dynext.save` keeps, into one file."""
        path = Path(path)
        tensors = {f"step_size {name}": t.contiguous() for name, t in (self.step_sizes or {}).items()}
        tensors |= {f"statistics {name}": t.contiguous() for name, t in (self.statistics or {}).items()}
        with replaced_file(path) as partial:
            save_file(tensors, partial, metadata={"inner": json.dumps(asdict(self.inner))})
        return path

    @classmethod
    def read(cls, path: Path | str, net: DynamicNet) -> MetaStart:
        """What `write` has written, for the net that it belongs to.

        Raises:
            ArtifactError: no such file, damaged, or of another net.
        """
        path = Path(path)
        try:
            with safe_open(path, "pt") as file:
                inner = InnerLoop(**json.loads(file.metadata()["inner"]))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, FitError) as error:
            raise ArtifactError(f"{path} cannot be read as a meta-learned start ({error}); train it again") from error
        kinds = {kind: _of_kind(tensors, kind) for kind in ("step_size", "statistics")}
        own = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        strange = [name for part in kinds.values() for name in part or () if name not in own]
        if strange:
            raise ArtifactError(f"{path} belongs to another net ({strange[0]} is not in this one); name its own folder")
        wanted = {name: (tuple(own[name].shape), t) for name, t in (kinds["step_size"] or {}).items()}
        wanted |= {name: ((inner.steps + 1, *own[name].shape), t) for name, t in (kinds["statistics"] or {}).items()}
        for name, (shape, tensor) in wanted.items():
            if tuple(tensor.shape) != shape:
                raise ArtifactError(
                    f"{path} belongs to another net ({name} has shape {tuple(tensor.shape)} there, {shape} is "
                    f"wanted); name its own folder"
                )
        return cls(net=net, inner=inner, step_sizes=kinds["step_size"], statistics=kinds["statistics"])


def _of_kind(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor] | None:
    of_kind = {key.partition(" ")[2]: t for key, t in tensors.items() if key.partition(" ")[0] == kind}
    return of_kind or None
