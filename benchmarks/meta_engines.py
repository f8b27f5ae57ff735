"""Our inner loop, higher and learn2learn side by side: the same tasks in one process and one thread.

How far their meta-gradients are from ours, how long a meta-step takes and how much memory its tensors take at most;
then what heads alone with cached trunk features cost against a joint step, and how far their gradient is from the one
without the cache.

    python benchmarks/meta_engines.py [--quick] [--json FILE]

Memory is the most that tensors of the CPU allocator hold at once, beyond what was there, in a run of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from harness import figure, parser, table, write
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

import dynext as dx
from dynext.meta.exit_tasks import separate
from dynext.meta.loss import MetaLoss, gradients

ENGINES = ("dynext", "higher", "learn2learn")
WAY = 5


class Plain(nn.Module):
    """Four convolutions, no norm: the widely used Conv-4 without BatchNorm."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        channels = (1, 32, 32, 32, 32)
        blocks = [
            nn.Sequential(nn.Conv2d(channels[i], channels[i + 1], 3, 2, 1), norm(channels[i + 1]), nn.ReLU())
            for i in range(4)
        ]
        self.block1, self.block2, self.block3, self.block4 = blocks
        self.linear = nn.Linear(32, WAY)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.block4(self.block3(self.block2(self.block1(x)))).mean((2, 3)))


def net(kind: str) -> dx.DynamicNet:
    if kind == "residual":
        with dx.seeded(0):
            deep = dx.models.ResNet(14, num_classes=WAY, channels=1).eval()
        cut = dx.split(deep, torch.zeros(1, 1, 28, 28), after=["layer1", "layer2.0", "layer2"])
        return dx.attach(cut, dx.default_heads(WAY))
    norm = (lambda _: nn.Identity()) if kind == "plain" else nn.BatchNorm2d
    with dx.seeded(0):
        model = Plain(norm).eval()
    staged = dx.split(model, torch.zeros(1, 1, 28, 28), after=["block1", "block2", "block3"])
    if kind != "multi-exit":
        return dx.DynamicNet(staged, [])
    return dx.attach(staged, dx.heads.conv_heads(WAY, hidden=32))


def episode_tensors(dtype: torch.dtype, shot: int = 1, query: int = 15) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    tensors: list[Tensor] = []
    for each in (shot, query):
        x = torch.randn(WAY * each, 1, 28, 28, generator=draw, dtype=torch.float64).to(dtype)
        tensors += [x, torch.arange(WAY).repeat_interleave(each)]
    return tuple(tensors)


def meta_loss(kind: str, dtype: torch.dtype, inner: dx.meta.InnerLoop, **how: Any) -> MetaLoss:
    dynamic = net(kind).to(dtype)
    return MetaLoss(dynamic, separate(dynamic, dx.meta.ownership(dynamic, adapts=inner.adapts)), inner, **how)


def furthest(grads: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    if grads.keys() != wanted.keys():
        raise SystemExit(f"gradients of {sorted(grads.keys() ^ wanted.keys())} are missing on one side")
    return max(float((grads[name] - wanted[name]).abs().max()) for name in wanted)


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, and the most of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.now, self.peak = WeakIdKeyDictionary(), 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage not in self.alive:
                    self.alive[storage] = True
        self.now = sum(storage.nbytes() for storage in list(self.alive.keys()))
        self.peak = max(self.peak, self.now)
        return out


def peak_mib(step: Callable[[], object]) -> float:
    with Held() as held:
        step()
    return held.peak / 2**20


def milliseconds(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median of each, taken in turn so that what else the machine does meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if turn:
                times[name].append(1000 * (time.perf_counter() - begun))
    return {name: median(of_step) for name, of_step in times.items()}


def compare(kind: str, dtype: torch.dtype, rule: str, repeats: int) -> dict[str, Any]:
    inner = dx.meta.InnerLoop.of("maml", rule=rule, steps=3)
    given = episode_tensors(dtype)
    steps = {}
    for engine in ENGINES:
        loss = meta_loss(kind, dtype, inner, engine=engine)
        steps[engine] = lambda loss=loss: gradients(loss, *given)
    own = steps["dynext"]()
    line: dict[str, Any] = {"net": kind, "type": str(dtype).removeprefix("torch."), "rule": rule}
    line |= {f"{engine} - ours": furthest(steps[engine](), own) for engine in ENGINES[1:]}
    if dtype == torch.float32:
        line |= {f"ms {engine}": ms for engine, ms in milliseconds(steps, repeats).items()}
        line |= {f"MiB {engine}": peak_mib(step) for engine, step in steps.items()}
    return line


def heads_alone(kind: str, repeats: int) -> dict[str, float]:
    """A meta-step on heads with cached features against a joint step on the same samples, four exits, three steps.

    The ratio hangs on what heads cost beside the trunk: those of the small multi-exit net are dearer than its trunk.
    """
    inner = dx.meta.InnerLoop()
    given = episode_tensors(torch.float32)
    cached, whole = (meta_loss(kind, torch.float32, inner, cached=cached) for cached in (True, False))
    joint = net(kind).train()
    x, y = torch.cat([given[0], given[2]]), torch.cat([given[1], given[3]])

    def joint_step() -> None:
        logits = joint.all_exits(x)
        torch.stack([nn.functional.cross_entropy(z, y) for z in logits.unbind(1)]).sum().backward()

    steps = {
        "joint": joint_step,
        "cached": lambda: gradients(cached, *given),
        "uncached": lambda: gradients(whole, *given),
    }
    took = milliseconds(steps, repeats)
    exact = [meta_loss(kind, torch.float64, inner, cached=cached) for cached in (True, False)]
    doubles = episode_tensors(torch.float64)
    apart = furthest(gradients(exact[0], *doubles), gradients(exact[1], *doubles))
    return {"cached": took["cached"] / took["joint"], "uncached": took["uncached"] / took["joint"], "apart": apart}


def main() -> None:
    given = parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    repeats = 3 if given.quick else 30
    kinds = ("plain", "batch norm", "multi-exit")
    lines = [
        compare(kind, dtype, rule, repeats)
        for kind in kinds
        for dtype in (torch.float32, torch.float64)
        for rule in ("second_order", "first_order")
    ]
    heads = {kind: heads_alone(kind, repeats) for kind in ("residual", "multi-exit")}
    figures = []
    for engine in ENGINES[1:]:
        for dtype in ("float32", "float64"):
            worst = max(line[f"{engine} - ours"] for line in lines if line["type"] == dtype)
            figures.append(figure(f"largest difference to {engine}, {dtype}", worst, "", "<= 1e-6"))
    for what, target in (("ms", "<= 1.05"), ("MiB", "<= 1.0")):
        shares = [
            line[f"{what} dynext"] / min(line[f"{what} {e}"] for e in ENGINES[1:])
            for line in lines
            if f"{what} dynext" in line
        ]
        figures.append(figure(f"{what} of a meta-step over the better library's, worst net", max(shares), "x", target))
    for kind, ratios in heads.items():
        figures.append(figure(f"heads alone, cached, over a joint step, {kind}", ratios["cached"], "x", "<= 2.1"))
        figures.append(figure(f"heads alone, uncached, over a joint step, {kind}", ratios["uncached"], "x"))
        figures.append(
            figure(f"cached gradient less the uncached one, float64, {kind}", ratios["apart"], "", "<= 1e-10")
        )
    write("meta_engines", given, figures, markdown=f"\n{table(lines)}", lines=lines, heads=heads)


if __name__ == "__main__":
    main()
