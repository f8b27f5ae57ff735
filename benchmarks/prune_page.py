"""What `benchmarks/prune.py` says of its lines: figures with targets, tables, the picture."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from harness import figure, table

LOST = 0.01
"""Accuracy that may be lost against the static float net."""

EXITS = ("plain", "scan", "mimicry", "detached", "detached_mask", "attached")


def figures(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the targets are about: the first two exits, and the best combination within a point."""
    targets = []
    exits = [line for line in lines if line["part"] == "exits"]
    for e in range(2):
        for against, target in (("plain", ">= 1"), ("mimicry", "> 0"), ("scan", None), ("attached", None)):
            gains = [gain(exits, seed, e, against) for seed in sorted({line["seed"] for line in exits})]
            if gains:
                targets.append(figure(f"exit {e}: detached over {against}", fmean(gains), "points", target))
    ways = [line for line in lines if line["part"] == "ways"]
    static = {line["seed"]: line["accuracy"] for line in ways if line["name"] == "static"}
    within = {
        key: fmean(line["speedup"] for line in group)
        for key, group in grouped(lines).items()
        if fmean(static[line["seed"]] - line["accuracy"] for line in group) <= LOST
    }
    if within:
        best = max(within, key=lambda key: within[key])
        way = best[0] if best[1] is None else f"{best[0]} {best[1]:g}"
        targets.append(figure(f"fastest within a point at batch 1 ({way})", within[best], "x", ">= 3"))
    return targets


def gain(exits: list[dict[str, Any]], seed: int, e: int, against: str) -> float:
    of = {line["name"]: line["exits"][e] for line in exits if line["seed"] == seed}
    return 100 * (of["detached"] - of[against])


def pages(lines: list[dict[str, Any]]) -> str:
    exits, ways = [], []
    for name in EXITS:
        of = [line for line in lines if line["part"] == "exits" and line["name"] == name]
        row: dict[str, Any] = {"exits": name}
        for e in range(len(of[0]["head_ms"]) if of else 0):
            row[f"exit {e}, %"] = spread([100 * line["exits"][e] for line in of])
            row[f"MACs {e}"] = f"{of[0]['macs'][e]:.1%}"
            row[f"head {e}, ms"] = spread([line["head_ms"][e] for line in of])
        exits += [row] if of else []
    for (name, budget), of in grouped(lines).items():
        row = {"way": name if budget is None else f"{name} {budget:g}"}
        for key, scale in (("accuracy", 100), ("macs", 100), ("ms", 1), ("speedup", 1)):
            row[key] = spread([scale * line[key] for line in of])
        ways.append(row)
    return f"\n## Exits\n\n{table(exits)}\n## Ways to spend less\n\n{table(ways)}"


def grouped(lines: list[dict[str, Any]]) -> dict[tuple[str, Any], list[dict[str, Any]]]:
    """The second part's lines, all seeds of a way together."""
    groups: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for line in lines:
        if line["part"] == "ways":
            groups.setdefault((line["name"], line.get("budget")), []).append(line)
    return groups


def spread(values: list[float]) -> str:
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def picture(lines: list[dict[str, Any]], path: Path | None) -> None:
    """Accuracy against MACs and against the static net's time, one mark a way."""
    ways = [line for line in lines if line["part"] == "ways"]
    if path is None or not ways:
        return
    import matplotlib.pyplot as plt

    plot, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for name in dict.fromkeys(line["name"] for line in ways):
        of = [line for line in ways if line["name"] == name]
        for axis, x in ((axes[0], [100 * o["macs"] for o in of]), (axes[1], [100 / o["speedup"] for o in of])):
            axis.plot(x, [100 * line["accuracy"] for line in of], "o", label=name, markersize=4)
    axes[0].set(xlabel="MACs, % of the static net", ylabel="accuracy, %")
    axes[1].set(xlabel="time at batch 1, % of the static net")
    axes[1].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    plot.savefig(path, bbox_inches="tight")
    plt.close(plot)
