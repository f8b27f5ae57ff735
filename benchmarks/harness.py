"""What every benchmark shares: its options, and the JSON and Markdown it leaves behind.

``{"benchmark", "quick", "command", "machine", "versions", "figures": [{"name", "value", "unit", "target", "met"}]}``;
a target is text such as ``">= 0.90"``, or ``None`` for a figure that is only reported.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("dynext", "torch", "torchvision", "timm", "transformers", "numpy", "lightly", "higher", "onnxruntime")
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--quick", action="store_true", help="a smaller sample, within two minutes on two cores")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here")
    return options


def figure(name: str, value: float | None, unit: str, target: str | None = None) -> dict[str, Any]:
    """One figure; ``met`` is ``None`` without a target, and ``False`` where nothing could be measured."""
    return {"name": name, "value": value, "unit": unit, "target": target, "met": _met(value, target)}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": devices,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Python's version and those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(
    name: str,
    options: argparse.Namespace,
    figures: Sequence[dict[str, Any]],
    *,
    markdown: str = "",
    quiet: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Print the figures, and write them where the options say; ``more`` is added to the JSON as it is.

    ``quiet`` says not to print, for a long run that writes what it has after each step.
    """
    result = {
        "benchmark": name,
        "quick": options.quick,
        "command": _command(),
        "machine": machine(),
        "versions": versions(),
        "figures": list(figures),
        **more,
    }
    page = f"# {name}\n\n{_summary(result)}\n{table(figures)}\n{markdown}"
    if not quiet:
        print(page)
    for path, text in ((options.json, json.dumps(result, indent=1) + "\n"), (options.markdown, page)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")  # whoever is killed here still has what was written before
            part.write_text(text, encoding="utf-8")
            part.replace(path)
    return result


def earlier(path: Path | None, asked: dict[str, Any]) -> dict[str, Any]:
    """What a stopped run with the same settings has left in its JSON file, ``{}`` for none; other settings are refused.

    A benchmark that goes on hands its ``asked`` to `write`.
    """
    if path is None or not path.exists():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept.get("asked") != asked:
        raise SystemExit(f"{path} holds a run with {kept.get('asked')}; asked for is {asked}; name another file")
    return kept


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Dictionaries as a Markdown table; a cell is empty where a sample lacks the key."""
    if not rows:
        return ""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [keys, ["---"] * len(keys), *([_cell(row.get(key)) for key in keys] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _met(value: float | None, target: str | None) -> bool | None:
    if target is None:
        return None
    sign, _, limit = target.partition(" ")
    return value is not None and COMPARE[sign](value, float(limit))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _command() -> str:
    """How to run it again; files by their names, for the folders are this machine's own."""
    given = [Path(text).name if "/" in text else text for text in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *given])


def _summary(result: dict[str, Any]) -> str:
    sample = " (quick: a smaller sample)" if result["quick"] else ""
    packages = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    where = result["machine"]
    return f"`{result['command']}`{sample}\n\n{where['processor']}, {where['threads']} threads; {packages}.\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")
