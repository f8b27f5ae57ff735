"""One sample on its way through the exits, for a terminal."""

from __future__ import annotations

import torch
from torch import Tensor

from dynext.policy.confidence import confidences
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable, simulate

INK = " .:-=+*#%@"


def easy_and_hard(table: ExitTable, policy: Policy) -> tuple[int, int]:
    """Two samples of a labelled table, both right in the end: the surest of the first, the least sure of the last."""
    outcome = simulate(table, policy)
    conf_n = _confidence_ne(table, policy).gather(1, outcome.exit_n[:, None])[:, 0].double()
    late_n = outcome.exit_n - conf_n / 2
    wrong_n = ~outcome.right_n
    return int(late_n.masked_fill(wrong_n, torch.inf).argmin()), int(late_n.masked_fill(wrong_n, -torch.inf).argmax())


def trail(table: ExitTable, policy: Policy, row: int, pixels: Tensor, class_names: tuple[str, ...]) -> str:
    """The sample's picture ``[c h w]`` in [0, 1] in characters; beside it, exit by exit, what the net thinks of it."""
    exit = int(simulate(table, policy).exit_n[row])
    confidence_e = _confidence_ne(table, policy)[row]
    macs_e = table.macs_e(policy.enabled_e)
    lines = [f"truth: {class_names[int(table.target_n[row])]}", ""]
    for e, threshold in enumerate(policy.threshold_e[: exit + 1]):
        if threshold is None:
            continue
        answer = class_names[int(table.answer_ne[row, e])]
        last = e == policy.num_exits - 1
        verdict = "the end" if last else "leaves" if e == exit else f"below {threshold:.3f}, goes on"
        lines.append(
            f"exit {e} ({macs_e[e] / max(table.static_macs, 1):4.0%} of the MACs): "
            f"{answer:<12} {float(confidence_e[e]):.3f}  {verdict}"
        )
    picture = ascii_picture(pixels)
    height = max(len(picture), len(lines))
    lines += [""] * (height - len(lines))
    picture += [" " * len(picture[0])] * (height - len(picture))
    return "\n".join(f"  {left}   {right}".rstrip() for left, right in zip(picture, lines, strict=True))


def ascii_picture(pixels: Tensor) -> list[str]:
    """``[c h w]`` in [0, 1] as lines of characters, two pixels high and one wide each, light ones dense."""
    gray_hw = torch.nn.functional.avg_pool2d(pixels.mean(0)[None, None], (2, 1))[0, 0]
    ink_hw = (gray_hw * (len(INK) - 1)).round().long().clamp(0, len(INK) - 1)
    return ["".join(INK[i] for i in line) for line in ink_hw.tolist()]


def _confidence_ne(table: ExitTable, policy: Policy) -> Tensor:
    return confidences(table.logits_nek, policy.confidence, policy.temperature_e, policy.enabled_e)
