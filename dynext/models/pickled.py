"""What `torch.save` wrote, read as tensors: objects beside them become plain dictionaries, and no code runs."""

from __future__ import annotations

import pickle
import pickletools
import re
import shlex
import sys
import threading
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dynext.errors import ModelError

PLAIN = (
    "argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict", "datetime.", "pathlib.", "typing.",
    "decimal.Decimal", "fractions.Fraction", "uuid.UUID", "functools.partial", "logging.", "builtins.dict",
    "builtins.list", "builtins.tuple", "builtins.int", "builtins.float", "builtins.str", "builtins.bool",
    "builtins.object", "builtins.type", "copyreg._reconstructor", "builtins.set",
    "_codecs.encode", "collections.OrderedDict", "collections.Counter", "builtins.complex", "builtins.bytearray",
)  # fmt: skip
"""What training scripts keep of the standard library; anything else of it among weights is an attack or an accident."""
_LEGACY_PARTS = 4
"""Files from before torch 1.6 begin with so many pickles: a number, a version, a system, the content."""
_TENSORS = re.compile(
    r"torch\.(_utils|storage|_tensor|serialization)\.|torch\.\w+$|collections\.Ordered|builtins\.set$|_codecs"
)
"""What tensors and plain values are made of; not worth naming."""
_GUARD = threading.Lock()
"""`torch.serialization.safe_globals` changes what the whole process holds for safe, and puts that back."""


def unpickled(path: Path) -> Any:
    """The content of ``path``; where it holds objects, each is a dictionary of what it held, of no class of its own.

    Torch's own reader for weights reads it, with stand-ins for the classes that are named in the file. A stand-in does
    nothing when it is called; the classes themselves are not even imported.

    Raises:
        ModelError: no file of torch's, a damaged one, or one that names code which has no place in it.
    """
    try:
        return _weights_only(path)
    except pickle.UnpicklingError as error:
        foreign = _globals(path)
        if not foreign:
            raise ModelError(
                f"{path} is damaged or no checkpoint of torch's; fetch it again. {_advice(path)}"
            ) from error
        _check_plain(path, foreign, error)
        try:
            with _standing_in(foreign):
                return _weights_only(path)
        except Exception as again:  # stand-ins are called as the classes would be, with anything
            raise _holds_objects(path, foreign) from again
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ModelError(f"{path} cannot be read as a checkpoint{_why(path, error)}") from error


def _weights_only(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles' own versions, which are no fault of the reader
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_plain(path: Path, foreign: Collection[str], error: Exception) -> None:
    hostile = [name for name in map(_today, foreign) if _is_library(name) and not _is_plain(name)]
    if hostile:
        raise _holds_objects(path, hostile) from error


def _today(name: str) -> str:
    """Pickles of torch's protocol call the standard library what Python 2 called it."""
    module, _, attribute = name.rpartition(".")
    module = IMPORT_MAPPING.get(module, module)
    return ".".join(NAME_MAPPING.get((name.rpartition(".")[0], attribute), (module, attribute)))


def _is_library(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def _is_plain(name: str) -> bool:
    return any(name == plain or (plain.endswith(".") and name.startswith(plain)) for plain in PLAIN)


def _holds_objects(path: Path, names: Collection[str]) -> ModelError:
    listed = ", ".join(sorted(name for name in names if not _TENSORS.match(name))[:3])
    return ModelError(
        f"{path} is damaged or holds Python objects ({listed}) instead of tensors alone; dynext never runs what is in "
        f"a checkpoint. {_advice(path)}"
    )


def _advice(path: Path) -> str:
    """A command that takes the tensors out of a dictionary with a module or weights, or of a whole module."""
    source, target = str(path), str(path.with_name(f"{path.name.partition('.')[0]}_weights.pt"))
    program = (
        f"import torch; c = torch.load({source!r}, map_location='cpu', weights_only=False); "
        f"m = next((c[k] for k in ('state_dict', 'model_state_dict', 'model', 'net') if k in c), c) "
        f"if isinstance(c, dict) else c; "
        f"torch.save(m.state_dict() if hasattr(m, 'state_dict') else m, {target!r})"
    )
    return (
        f"Where you trust the file, save its model.state_dict() yourself, where its classes can be imported, and give "
        f"that file: python -c {shlex.quote(program)}"
    )


def _why(path: Path, error: Exception) -> str:
    if "TorchScript" in str(error):
        target = str(path.with_name(f"{path.stem}_weights.pt"))
        program = f"import torch; torch.save(torch.jit.load({str(path)!r}).state_dict(), {target!r})"
        return f": it is a TorchScript program; save its weights alone: python -c {shlex.quote(program)}"
    return f" ({type(error).__name__}); fetch it again, or save model.state_dict() instead of the whole model"


def _globals(path: Path) -> list[str]:
    """Classes and functions that the file names and that torch does not know for harmless."""
    try:
        if zipfile.is_zipfile(path):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
        return sorted(_named_in_legacy(path))
    except Exception:  # a damaged file, of which torch has said so already
        return []


def _named_in_legacy(path: Path) -> set[str]:
    names: set[str] = set()
    with path.open("rb") as file:
        for _ in range(_LEGACY_PARTS):
            for opcode, argument, _at in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    module, _, name = str(argument).partition(" ")
                    names.add(f"{'builtins' if module == '__builtin__' else module}.{name}")
    return names


class _Opaque:
    """In place of what is called with anything and then told its state; holds nothing."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def _stand_in(name: str) -> type:
    """In place of the class ``name``: a NumPy value becomes nothing, an object a dictionary with its state beside.

    The reader puts a dictionary's items and an object's attributes into an `OrderedDict` alone, of what is no class of
    its own, so that both arrive.
    """
    if name.startswith("numpy."):
        return type(name, (_Opaque,), {})
    return type(name, (), {"__new__": lambda cls, *_: OrderedDict()})


@contextmanager
def _standing_in(names: Collection[str]) -> Iterator[None]:
    with _GUARD, torch.serialization.safe_globals([(_stand_in(name), name) for name in names]):  # type: ignore[list-item]
        yield
