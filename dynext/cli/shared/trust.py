"""Which files of the user's own may be run again to build a net: told once with ``--trust``, kept in his configuration.

A saved net names the file that its static net came from, and with which arguments it was called. Whoever sends such a
folder must not make anybody run code; so a file is run only if it is the one that the user trusted, to the byte, with
the local modules that it imports, and called as he has called it himself. Nothing of this lies in the net's folder.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dynext.atomic import replaced_file
from dynext.errors import ModelError

APP, NAME = "dynext", "trusted_files.json"


@dataclass(frozen=True, kw_only=True)
class Call:
    """A function of a file, and what it is called with."""

    file: Path
    factory: str
    arguments: dict[str, Any]

    @classmethod
    def of(cls, reference: str, arguments: Mapping[str, Any]) -> Call:
        """``path/to/file.py:factory``."""
        path, _, factory = reference.rpartition(":")
        return cls(file=Path(path).expanduser().resolve(), factory=factory, arguments=dict(arguments))

    @property
    def reference(self) -> str:
        return f"{self.file}:{self.factory}"

    @property
    def key(self) -> str:
        return json.dumps([self.factory, self.arguments], sort_keys=True)


def trust_file() -> Path:
    """Where trusted files are listed; a relative place would be anybody's."""
    folder = Path(click.get_app_dir(APP))
    return (folder if folder.is_absolute() else Path.home() / ".config" / APP) / NAME


def remember(call: Call, folder: Path | None = None) -> None:
    """Trust this file, as it is now, to be called so, perhaps for the net in ``folder``.

    Where that cannot be kept, it is said, and the work goes on.
    """
    held = _held()
    digest = digest_of(call.file)
    before = held["files"].get(str(call.file), {})
    calls = before.get("calls", []) if before.get("sha256") == digest else []
    held["files"][str(call.file)] = {"sha256": digest, "calls": sorted({*calls, call.key})}
    if folder is not None:
        held["nets"][str(folder.resolve())] = [call.reference, call.arguments]
    try:
        with replaced_file(trust_file()) as partial:
            partial.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        click.echo(f"Note: that {call.file} is trusted cannot be kept in {trust_file()} ({error.strerror}).", err=True)


def own_call(folder: Path, recipe: Mapping[str, Any] | None) -> Call | None:
    """What builds the static net of ``folder``, as the user said last, else as the folder says; ``None`` where it is of
    the catalog.
    """
    if recipe is not None and recipe.get("kind") != "file":
        return None
    said = _held()["nets"].get(str(folder.resolve()))
    if said is not None:
        return Call.of(*said)
    if recipe is None:
        raise ModelError(
            f"the static net of {folder} was a module of your own; give a file that builds it, --model "
            f"path/to/file.py:factory, and --trust to have it found again"
        )
    return Call.of(str(recipe.get("name")), recipe["arguments"])


def is_trusted(file: Path) -> bool:
    """Whether the file is the very one that was trusted."""
    entry = _held()["files"].get(str(file))
    return entry is not None and file.is_file() and entry["sha256"] == digest_of(file)


def check_trusted(call: Call, folder: Path) -> None:
    """Refuse to run what was not trusted for the net in ``folder``.

    Raises:
        ModelError: it says what to do.
    """
    if not call.file.is_file():
        raise ModelError(
            f"the static net of {folder} comes from {call.reference}, and there is no such file here; say where it is "
            f"with --model path/to/file.py:{call.factory}"
        )
    entry = _held()["files"].get(str(call.file))
    again = f"add --trust to run it now and from now on, or --model {call.reference} for this time"
    if entry is None:
        raise ModelError(
            f"the static net of {folder} comes from {call.reference}, a file whose code would be run; if you trust it, "
            f"{again}"
        )
    if entry["sha256"] != digest_of(call.file):
        raise ModelError(
            f"{call.file}, which the static net of {folder} comes from, or a module that it imports from its folder, "
            f"was changed since you trusted it; read it, then {again}"
        )
    if call.key not in entry["calls"]:
        raise ModelError(
            f"{folder} would call {call.factory} of {call.file}, which you trust, in a way that you have not: with "
            f"{call.arguments or 'no arguments'}; if that is right, {again}"
        )


def digest_of(file: Path) -> str:
    """Of the file and of all modules beside it that it imports, directly or not."""
    digest = hashlib.sha256()
    for path in sorted(_local(file)):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(file.parent).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _local(file: Path) -> set[Path]:
    seen: set[Path] = set()
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += [other for name in _imports(path) for other in _modules(file.parent, path.parent, name)]
    return seen


def _imports(path: Path) -> Iterator[str]:
    """Dotted names; a file that is no Python has none, and will fail by itself."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}{'' if module.endswith('.') else '.'}{alias.name}" for alias in node.names)


def _modules(root: Path, here: Path, name: str) -> Iterator[Path]:
    """The files that importing ``name`` would run, of those in ``root``: the packages on the way, too."""
    dots = len(name) - len(name.lstrip("."))
    place = root if not dots else here
    for _ in range(dots - 1):
        place = place.parent
    for part in name.lstrip(".").split("."):
        place = place / part
        candidates = (place / "__init__.py", place.with_name(f"{part}.py"))
        yield from (path for path in candidates if path.is_file() and path.is_relative_to(root))


def _held() -> dict[str, Any]:
    """Files with their digest and calls, and nets with the call that builds them."""
    path = trust_file()
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        files = all(isinstance(e["sha256"], str) and isinstance(e["calls"], list) for e in held["files"].values())
        nets = all(isinstance(name, str) and isinstance(given, dict) for name, given in held["nets"].values())
    except (FileNotFoundError, NotADirectoryError):
        return {"files": {}, "nets": {}}
    except OSError as error:
        raise ModelError(f"{path}, which lists the files you trust, cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        files = nets = False
    if not files or not nets:
        raise ModelError(f"{path}, which lists the files you trust, is damaged; delete it, and trust them anew")
    return held
