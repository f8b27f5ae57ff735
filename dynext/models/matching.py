"""Which tensor of a checkpoint is which of a net: by the ends of their names, and by shape where several fit."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from dynext.errors import ModelError
from dynext.models.unwrap import bare_name, some

PREFIXES = (
    "model.", "net.", "network.", "module.", "backbone.", "encoder.", "trunk.", "base_model.", "online_model.",
    "state_dict.",
)  # fmt: skip
"""What the field puts before a net's own names, in the order in which they are believed where several fit."""
COUNTERS = ("n_averaged", "total_ops", "total_params", "initted", "num_batches_tracked", "_extra_state")
"""Last parts of names: what averages and profilers count, and normalization layers since torch 0.4.1."""
COMPUTED = ("position_ids", "relative_position_index", "relative_coords_table", "attn_mask")
"""Buffers that a net computes itself, and that versions of one library keep or do not keep."""
_FOREIGN = re.compile(
    r"(.*_)?(criterion|crit|loss(es|_fn)?|.*loss|metrics?|acc(uracy)?|f1|auroc|confmat|optim(izer)?s?|scheduler|ema|"
    r"teacher|student|discriminator|queue|queue_ptr|mixup|aux\d*|aux_?logits|auxiliary(_head)?|data_preprocessor)",
    re.IGNORECASE,
)
"""First parts of names: children of a training script's module that are no part of the net."""


@dataclass(kw_only=True)
class Match:
    """Tensors by the net's names, and what is over on either side."""

    taken: dict[str, Tensor]
    prefixes: list[str]
    ignored: list[str]
    unexpected: list[str]
    own: Mapping[str, Tensor] = field(repr=False)

    @property
    def missing(self) -> list[str]:
        """Names of the net that have no tensor, bar those which it can do without."""
        return sorted(name for name in self.own if name not in self.taken and _last(name) not in (*COUNTERS, *COMPUTED))

    def notes(self) -> list[str]:
        """For people to read."""
        off = [f"took {' and '.join(map(repr, self.prefixes))} off the names"] if self.prefixes else []
        return off + ([f"ignored {some(self.ignored)}"] if self.ignored else [])


def match(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Match:
    """The tensors of ``state`` by the names in ``own``.

    Raises:
        ModelError: two parts of the checkpoint fit the net, and nothing tells which is meant.
    """
    bare_own, bare_state = _bare(own), _bare(state)
    cut = _common(bare_own, bare_state)
    ours = {name.removeprefix(cut): full for name, full in bare_own.items()}
    covered = _coverage(bare_state, ours)
    fits = {
        prefix: sum(state[bare_state[prefix + name]].shape == own[ours[name]].shape for name in names)
        for prefix, names in covered.items()
    }
    main = _main(covered, fits)
    prefixes = [main, *_further(main, covered, fits, ours)]
    used = {ours[name]: prefix + name for prefix in reversed(prefixes) for name in covered.get(prefix, ())}
    over = sorted(bare_state.keys() - set(used.values()))
    foreign = [name for name in over if _is_foreign(name, prefixes, ours)]
    absent = [name for name in ours if ours[name] not in used]
    return Match(
        taken={name: state[bare_state[given]] for name, given in used.items()},
        prefixes=_said(state, bare_state, prefixes),
        ignored=[bare_state[name] for name in foreign],
        unexpected=[_with_near(bare_state[name], name, absent, main) for name in over if name not in foreign],
        own=own,
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _bare(names: Collection[str]) -> dict[str, str]:
    """Full names by those without what wrappers put in; as they are where two would become one."""
    bare = {bare_name(name): name for name in names}
    return bare if len(bare) == len(names) else {name: name for name in names}


def _common(own: Collection[str], state: Collection[str]) -> str:
    """What all of the net's names begin with and none of the checkpoint's: the net is the one that is wrapped."""
    cut = ""
    while own:
        first = {name.removeprefix(cut).partition(".")[0] for name in own}
        longer = f"{cut}{next(iter(first))}."
        wrapped = len(first) == 1 and all(name.startswith(longer) for name in own)
        if not wrapped or any(f".{name}".find(f".{longer}") >= 0 for name in state):
            return cut
        cut = longer
    return cut


def _coverage(state: Collection[str], ours: Collection[str]) -> dict[str, set[str]]:
    """By each prefix, the net's names that the checkpoint has behind it."""
    covered: dict[str, set[str]] = defaultdict(set)
    for name in state:
        parts = name.split(".")
        for i in range(len(parts)):
            rest = ".".join(parts[i:])
            if rest in ours:
                covered[name.removesuffix(rest)].add(rest)
    return covered


def _main(covered: Mapping[str, set[str]], fits: Mapping[str, int]) -> str:
    """The prefix behind which most of the net stands."""
    if not covered:
        return ""
    most = max((len(names), fits[prefix]) for prefix, names in covered.items())
    best = [prefix for prefix, names in covered.items() if (len(names), fits[prefix]) == most]
    ranked = sorted(best, key=_rank)
    if len(best) > 1 and _rank(ranked[0]) == _rank(ranked[1]):
        raise ModelError(
            f"the checkpoint holds the net twice, as {ranked[0]}* and as {ranked[1]}*; save one of them alone"
        )
    return ranked[0]


def _rank(prefix: str) -> int:
    """The averaged weights first, as for keys of a checkpoint; then names without a prefix, then the usual ones."""
    if re.search(r"(^|[._])ema([._]|$)", prefix):
        return 0
    if not prefix:
        return 1
    return 2 + next((i for i, known in enumerate(PREFIXES) if prefix.startswith(known)), len(PREFIXES))


def _further(main: str, covered: Mapping[str, set[str]], fits: Mapping[str, int], ours: Mapping[str, str]) -> list[str]:
    """Another prefix, behind which stands exactly what is missing behind the first, such as a head's."""
    needed = {name for name in ours if _last(name) not in (*COUNTERS, *COMPUTED)}
    missing = needed - covered.get(main, set())
    others = [
        prefix
        for prefix, names in covered.items()
        if missing and prefix != main and names & needed == missing and fits[prefix] == len(names)
    ]
    return others if len(others) == 1 else []


def _is_foreign(name: str, prefixes: Collection[str], ours: Collection[str]) -> bool:
    """Whether a tensor that the net has no name for is somebody else's, and not a layer that the net lacks."""
    if _last(name) in (*COUNTERS, *COMPUTED):
        return True
    for prefix in prefixes:
        if not name.startswith(prefix):
            # the next place of a sequence: a part of a larger net would be taken for the whole
            place = re.fullmatch(r"(.*\.)?\d+\.", prefix)
            beside = place and re.match(rf"{re.escape(place[1] or '')}\d+\.", name)
            if beside and _last(name) in ("weight", "bias"):
                return False
            continue
        first = name.removeprefix(prefix).partition(".")[0]
        if any(known.partition(".")[0] == first for known in ours) or not _FOREIGN.fullmatch(first):
            return False
    return True


def _said(state: Mapping[str, Tensor], bare_state: Mapping[str, str], prefixes: Collection[str]) -> list[str]:
    """What came off names: of wrappers, anywhere, and before them."""
    parts = {part for bare, full in bare_state.items() if bare != full for part in full.split(".")}
    kept = {part for bare in bare_state for part in bare.split(".")}
    return [f"{part}." for part in sorted(parts - kept)] + [prefix for prefix in prefixes if prefix]


def _with_near(full: str, name: str, absent: list[str], main: str) -> str:
    near = difflib.get_close_matches(name.removeprefix(main), absent, 1, cutoff=0.75)
    return f"{full} (nearest: {near[0]})" if near else full
