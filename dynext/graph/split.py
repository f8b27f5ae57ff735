"""``split``: a model and an example in, a chain of stages out. The model is not changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from dynext.errors import SplitError, line
from dynext.graph import cuts, ends, names
from dynext.graph.answers import logits_of
from dynext.graph.batch import mark_batch_reads
from dynext.graph.blocks import carries, inside, residual_blocks
from dynext.graph.build import build_body
from dynext.graph.cuts import Flow
from dynext.graph.hooks import has_hooks, refuse_hooks, watching_hooks
from dynext.graph.independence import batch_dims, check_independence
from dynext.graph.inplace import remove_inplace
from dynext.graph.normal import normalize
from dynext.graph.notes import notes_on, why_whole
from dynext.graph.private import private_copy
from dynext.graph.probe import BATCHES, ProbeError, probe, take_samples
from dynext.graph.stage import OUTPUT, Stage, StagedNet
from dynext.graph.trace import BY_HAND, trace
from dynext.seeding import seeded_if_drawn
from dynext.usual_modes import in_usual_modes

FAKE_FROM = 32_768
"""Numbers in a sample from which probing without content is the cheaper way."""

Granularity = Literal["stage", "block"]


@in_usual_modes
def split(
    model: nn.Module,
    example: Tensor,
    after: Sequence[str] | Sequence[float] | None = None,
    *,
    granularity: Granularity = "stage",
) -> StagedNet:
    """Cut a classifier into stages that, chained, compute what it computes; traced and given in eval mode.

    Args:
        model: any ``nn.Module`` with one input tensor whose output is ``[b k]``; stays as it is, flags included.
        example: ``[b ...]``, any number of samples of what the model expects, on its device and of its type.
        after: where to cut. ``None``: up to five cuts where one tensor alone is live (in a net of branches: as few as
            can be), near 12, 24, 36, 55, 75 % of the MACs, at ends of blocks if possible. Numbers: wanted shares of
            the MACs, in (0, 1). Names: module paths (the end of their last call; ``"path@0"`` for the first of
            several) or names of fx nodes.
        granularity: ``"block"`` also cuts around each residual block, which makes it a stage that a sample may skip.

    Raises:
        SplitError: several inputs, an output without one tensor of logits ``[b k]``, an unknown name, no place to cut,
            samples whose answer depends on their batch, autocast in ``forward``, or a model that cannot be traced.

    Wrappers (``DataParallel``, averaged and compiled models) are taken off, ``logits`` is taken out of an answer that
    is an object; masks and norms of weights are worked into them. Hooks that only watch are dropped, others refused.
    Modules that cannot be traced are kept whole; what that costs is in ``notes`` of the result. Where ``forward``
    itself asks for ``self.training`` in a module with children, the stages keep the answer of eval mode.
    """
    _check_request(example, after, granularity)
    with _undisturbed():
        flow = _flow(model, example.detach().clone(), fake=example[0].numel() > FAKE_FROM)
        macs = sum(record.macs for record in flow.two.values()) // BATCHES[0]
        check_independence(flow.traced, example, macs, batch_dims(flow.two, flow.three))
        return _assemble(flow, _choose(flow, after, granularity), example, granularity)


def split_again(model: nn.Module, example: Tensor, after: Sequence[str], *, granularity: Granularity) -> StagedNet:
    """`split` of a net that was split before: that its samples do not depend on each other is known."""
    with _undisturbed():
        flow = _flow(model, example, fake=example[0].numel() > FAKE_FROM)
        return _assemble(flow, _choose(flow, after, granularity), example, granularity)


def _check_request(example: Tensor, after: object, granularity: str) -> None:
    if not isinstance(example, Tensor) or example.ndim < 2 or len(example) == 0:
        given = f"shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise SplitError(f"the example is {given}; give a tensor [b ...] with at least one sample")
    if granularity not in ("stage", "block"):
        raise SplitError(f"granularity {granularity!r}; give 'stage' or 'block'")
    if isinstance(after, str):
        raise SplitError(f"after={after!r} is one name; give a list of them: after=[{after!r}]")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Nothing is recorded for gradients, the caller's random state is kept, versions of tensors can be read, and no
    autocast of the caller is in the way.
    """
    with ExitStack() as modes:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.no_grad())
        modes.enter_context(seeded_if_drawn(0))
        yield


def _flow(model: nn.Module, example: Tensor, *, fake: bool) -> Flow:
    """Trace, probe with 2 and with 3 samples, make in-place work functional, compare with the model, normalize."""
    private = private_copy(model)
    few = take_samples(example, min(len(example), BATCHES[0]))
    if has_hooks(private):
        with watching_hooks(private):
            _run(private, few)
        refuse_hooks(private)
    traced = trace(private, example)
    try:
        two, _ = probe(traced, take_samples(example, BATCHES[0]), count=True, fake=fake)
        few, wanted = _run(private, few)  # before the modules' in-place switches are turned off
        remove_inplace(traced, {node: record.changed for node, record in two.items()})
        three, given = probe(traced, take_samples(example, BATCHES[1]), fake=fake)
    except ProbeError as error:
        if not fake:
            raise SplitError(str(error)) from error
        return _flow(model, example, fake=False)  # something looks into its tensors: give it real ones
    _check_logits(private, wanted, given)
    with seeded_if_drawn(0):
        _check_same(traced(few), wanted)
    two.update({node: two[node.meta["copy_of"]] for node in three if "copy_of" in node.meta})
    normalize(traced, two, three)
    mark_batch_reads(traced.graph, two, three)
    return Flow(model=private, traced=traced, two=two, three=three)


def _run(private: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
    """What the model gives, and for which samples: for two if it fails on one alone."""
    try:
        with seeded_if_drawn(0):
            return x, logits_of(private(x), type(private).__name__)
    except SplitError:
        raise
    except Exception as error:
        if len(x) < BATCHES[0]:
            return _run(private, take_samples(x, BATCHES[0]))
        raise SplitError(f"{type(private).__name__} fails on {tuple(x.shape)}: {line(error)}") from error


def _check_logits(private: nn.Module, wanted: Any, out: Any) -> None:
    kind = type(private).__name__
    if not isinstance(wanted, Tensor) or not isinstance(out, Tensor):
        raise SplitError(f"{kind} gives a {type(wanted).__name__}; expected one tensor of logits [b k]")
    if out.ndim != 2 or len(out) != BATCHES[1]:
        raise SplitError(f"{kind} gives shape {tuple(out.shape)} for {BATCHES[1]} samples; expected logits [b k]")


def _check_same(given: Tensor, wanted: Tensor) -> None:
    """The rewritten graph must answer as the model does; what is left of in-place work on views shows here."""
    difference = (given - wanted).abs().nan_to_num(0.0).max()
    scale = wanted.abs().nan_to_num(0.0).max().clamp(min=1.0)
    if difference > scale * torch.finfo(wanted.dtype).eps ** 0.5 or not torch.equal(given.isnan(), wanted.isnan()):
        raise SplitError(
            f"the traced net answers differently from the model (by up to {float(difference):.3g}); a tensor is "
            f"changed in place through a view, or forward() keeps state: rewrite that, or give the stages by hand"
        )


def _choose(flow: Flow, after: Sequence[str] | Sequence[float] | None, granularity: str) -> dict[fx.Node, str]:
    """The nodes to cut after, in order, with their names."""
    named = names.places(flow)
    spans = residual_blocks(flow) if granularity == "block" else []
    asked: dict[fx.Node, str] = {}
    if after is not None and len(after) and all(isinstance(item, str) for item in after):
        asked = _named(flow, [str(item) for item in after], named)
        nodes = list(asked)
    else:
        allowed, crowded = (
            [node for node in nodes if not inside(flow, node, spans)] for nodes in (flow.candidates, flow.crowded)
        )
        nodes = _placed(flow, after, allowed, crowded)
    around = [node for span in spans for node in span if node is not flow.input]
    nodes = [node for node in nodes if node in asked or flow.share(node) not in map(flow.share, around)] + around
    best = names.best_names(flow, named)
    return {node: asked.get(node, best[node]) for node in sorted(set(nodes), key=flow.order.__getitem__)}


def _named(flow: Flow, after: Sequence[str], named: dict[str, fx.Node]) -> dict[fx.Node, str]:
    chosen: dict[fx.Node, str] = {}
    for name in after:
        node = names.find(flow, name, named)
        if node in chosen:
            raise SplitError(f"{name!r} and {chosen[node]!r} end at the same place; give one of them")
        position = flow.order[node]
        if node is flow.output or flow.output not in flow.nodes[position:]:
            raise SplitError(f"{name!r} ends where the net ends: nothing comes after it; cut before it")
        reason = cuts.obstacle(flow, position)
        if reason is not None:
            raise SplitError(f"cannot cut after {name!r}: {reason}")
        if node not in flow.live[position]:
            raise SplitError(f"nothing uses the output of {name!r} later, so no exit can tap it; cut elsewhere")
        chosen[node] = name
    return chosen


def _placed(
    flow: Flow, after: Sequence[str] | Sequence[float] | None, allowed: Sequence[fx.Node], crowded: Sequence[fx.Node]
) -> list[fx.Node]:
    if not allowed and not crowded and (whole := why_whole(flow)) is not None:
        raise SplitError(f"no cut at all: {whole}; {BY_HAND}")
    tiers = ends.tiers(flow)
    if after is None:
        return cuts.place_default(flow, allowed, crowded, tiers)
    shares = [item for item in after if isinstance(item, int | float) and 0 < item < 1]
    if len(shares) != len(after) or not shares:
        raise SplitError(f"after={list(after)!r}; give names, or shares of MACs in (0, 1), at least one and not both")
    nodes = cuts.place(flow, shares, allowed or crowded, tiers)
    if len(nodes) < len(shares):
        raise SplitError(f"{len(shares)} cuts asked for, but there are only {len(nodes)} places of different cost")
    return nodes


def _assemble(flow: Flow, chosen: dict[fx.Node, str], example: Tensor, granularity: str) -> StagedNet:
    stages: list[Stage] = []
    start = flow.input
    live_in: tuple[fx.Node, ...] = (flow.input,)
    for end, name in [*chosen.items(), (flow.output, OUTPUT)]:
        live_out = (end,) if name == OUTPUT else flow.live[flow.order[end]]
        stages.append(_stage(flow, (start, end), live_in, live_out, name))
        start, live_in = end, live_out
    num_classes = (flow.three[flow.output].shape or ())[-1]
    staged = StagedNet(
        stages, input_shape=tuple(example.shape[1:]), num_classes=num_classes, granularity=granularity
    ).eval()
    staged.notes = notes_on(flow, list(chosen))
    return staged


def _stage(
    flow: Flow,
    span: tuple[fx.Node, fx.Node],
    live_in: Sequence[fx.Node],
    live_out: Sequence[fx.Node],
    name: str,
) -> Stage:
    start, end = span
    body, nodes = build_body(flow, flow.nodes[flow.order[start] + 1 : flow.order[end] + 1], live_in, live_out)
    records = [flow.three[node] for node in live_out]
    return Stage(
        body,
        name=name,
        num_live_in=len(live_in),
        live=[(live.shape[1:], live.dtype) for live in records if live.shape is not None and live.dtype is not None],
        tap=list(live_out).index(end),
        skippable=len(live_in) == len(live_out) == 1 and carries(flow, live_in[0], end),
        macs=flow.macs(nodes),
    )
