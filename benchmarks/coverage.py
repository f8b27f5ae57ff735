"""How many classifiers can be split with zero named layers, and compute the same afterwards.

Every torchvision classification model and the smallest model of every timm family, with random weights: split at
automatic cuts, then the chained stages and a never-exit run are compared with the model on two samples of its default
input size (one sample above 4 GMACs), in float32, rtol 1e-4 and atol 1e-5 times the largest logit.

A second table holds what else people have: Hugging Face's classifiers (``hf:NAME``, small configurations), forwards
written by hand (``hand:NAME``) and models in the wrappers that training leaves around them (``wrapped:NAME``). There a
model is covered if, beyond that, its first exit lies below 60 % of the MACs.

    python benchmarks/coverage.py [--quick] [--others] [--json FILE] [--markdown FILE] [--models NAME ...] [--keep]

The full run takes about an hour on one core; stopped, it goes on with ``--keep`` after the last model it tried.
"""

from __future__ import annotations

import gc
import json
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import hugging_face_nets
import torch
from handwritten_nets import HANDWRITTEN, WRAPPED
from torch import Tensor, nn

import dynext as dx

FAMILIES = Path(__file__).resolve().parent / "timm_families.json"
"""The smallest model of each timm family, kept because counting the parameters of all of timm takes long."""
HEAVY_MACS = 4e9
EARLY = 0.6
"""Share of the MACs below which a model of the second table must have an exit."""
SHARE = 0.95
"""Of the models of the second table, how many must be covered."""
SECOND = ("hf", "hand", "wrapped")
QUICK = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "torchvision:densenet121",
    "torchvision:googlenet",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:squeezenet1_1",
    "torchvision:swin_t",
    "timm:convnext",
    "timm:crossvit",
    "timm:edgenext",
    "timm:ghostnet",
    "timm:levit",
    "timm:mobilevit",
    "timm:rexnet",
    "timm:vision_transformer",
    "timm:xcit",
    "hf:vit",
    "hf:swin",
    "hf:convnext",
    "hf:levit",
    "hf:distilbert",
    "hand:batch_size_first",
    "hand:vit",
    "hand:einops_vit",
    "wrapped:data_parallel",
    "wrapped:args",
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model to try: its name in the table, and what builds it with random weights."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    words: int = 0
    """How many words there are, where a sample is ids of words."""

    def samples(self) -> Tensor:
        """Two samples: noise, or ids."""
        return torch.randint(self.words, (2, *self.shape)) if self.words else torch.randn(2, *self.shape)


def main() -> None:
    options = harness.parser(__doc__ or "")
    options.add_argument("--models", nargs="+", metavar="NAME", help="only these (torchvision:NAME, hf:NAME ...)")
    options.add_argument("--others", action="store_true", help="only the second table, which takes minutes")
    options.add_argument("--choose", action="store_true", help="count parameters again, write timm_families.json, end")
    options.add_argument("--keep", action="store_true", help="keep the covered models of an earlier run in --json FILE")
    given = options.parse_args()
    if given.choose:
        choose_families()
        return
    wanted = given.models or (QUICK if given.quick else None)
    names = [name for name in all_names() if wanted is None or name in wanted]
    names = [name for name in names if not given.others or name.partition(":")[0] in SECOND]
    rows = earlier(given.json) if given.keep else {}
    for name in names:
        if name not in rows:
            rows[name] = attempt(name)
            report([rows[done] for done in names if done in rows], given, quiet=True)
    report([rows[name] for name in names], given)


def earlier(path: Path) -> dict[str, dict[str, Any]]:
    """Covered models of a run with these versions."""
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"models": [], "versions": None}
    same = result["versions"] == harness.versions()
    return {row["model"]: row for row in result["models"] if same and row["covered"]}


def report(rows: list[dict[str, Any]], options: Namespace, *, quiet: bool = False) -> None:
    figures = []
    for library, missing in (("torchvision", 0), ("timm", 2)):
        tried = [row for row in rows if str(row["model"]).startswith(f"{library}:")]
        covered = sum(row["covered"] for row in tried)
        allowed = 0 if options.quick or options.models else missing
        if not tried:
            continue
        figures.append(harness.figure(f"{library} covered", covered, f"of {len(tried)}", f">= {len(tried) - allowed}"))
    second = [row for row in rows if row["model"].partition(":")[0] in SECOND]
    if second:
        covered = sum(row["covered"] for row in second) / len(second)
        what = f"others covered, with an exit below {EARLY:.0%} of the MACs"
        figures.append(harness.figure(what, covered, f"of {len(second)}", f">= {SHARE}"))
    first = [{key: row[key] for key in row if key != "first exit"} for row in rows if row not in second]
    tables = "\n".join(harness.table(part) for part in (first, second) if part)
    harness.write("coverage", options, figures, markdown="\n" + tables, quiet=quiet, models=rows)


def attempt(name: str) -> dict[str, Any]:
    """Try one model; the reason when it fails."""
    row: dict[str, Any] = {"model": name, "built": "", "covered": False, "stages": 0, "GMACs": 0.0, "cuts": ""}
    row.update({"first exit": None, "worst difference": None, "rows": 0})
    row.update({"seconds": 0.0, "reason": ""})
    begun = time.perf_counter()
    try:
        subject = subject_of(name)
        row["built"] = subject.name
        row.update(compare(subject))
        if not row["covered"]:
            row["reason"] = "stages or run answer differently"
        elif name.partition(":")[0] in SECOND and row["first exit"] >= EARLY:
            row["covered"], row["reason"] = False, f"its first exit lies at {row['first exit']:.0%} of the MACs"
    except Exception as error:  # whatever goes wrong becomes a row of the table
        row["reason"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    row["seconds"] = round(time.perf_counter() - begun, 1)
    gc.collect()
    print(f"{name}: {'ok' if row['covered'] else row['reason']} ({row['seconds']} s)", flush=True)
    return row


@torch.no_grad()
def compare(subject: Subject) -> dict[str, Any]:
    with dx.seeded(0):
        model = subject.build().eval()
        x = subject.samples()
    staged = dx.split(model, x[:1])
    macs = sum(stage.macs for stage in staged.stages)
    x = x[:1] if macs > HEAVY_MACS else x
    answer = model(x)
    wanted = answer["logits"] if isinstance(answer, dict) else getattr(answer, "logits", answer)
    del model
    chained = staged(x)
    net = dx.attach(staged, dx.default_heads(staged.num_classes))
    facts = {"stages": len(staged.stages), "GMACs": round(macs / 1e9, 3), "cuts": ", ".join(staged.cuts)}
    facts["first exit"] = round(staged.stages[0].macs / max(macs, 1), 3)
    del staged
    ran = net.run(x, dx.Policy.never(net.num_exits))
    covered = agree(chained, wanted) and agree(ran.logits, wanted) and bool((ran.exit == net.num_exits - 1).all())
    worst = max(float((logits - wanted).abs().max()) for logits in (chained, ran.logits))
    return {**facts, "covered": covered, "worst difference": worst, "rows": len(x)}


def agree(given: Tensor, wanted: Tensor) -> bool:
    scale = float(wanted.abs().max())
    return bool(torch.isfinite(wanted).all()) and torch.allclose(given, wanted, rtol=1e-4, atol=1e-5 * max(scale, 1.0))


def all_names() -> list[str]:
    import timm
    import torchvision

    classifiers = torchvision.models.list_models(module=torchvision.models)
    libraries = [f"torchvision:{name}" for name in classifiers] + [f"timm:{family}" for family in timm.list_modules()]
    others = [f"hf:{name}" for name in (*hugging_face_nets.IMAGES, *hugging_face_nets.TEXTS)]
    others += [f"hand:{name}" for name in HANDWRITTEN] + [f"wrapped:{name}" for name in WRAPPED]
    return libraries + others


def subject_of(name: str) -> Subject:
    library, _, name = name.partition(":")
    if library == "hf":
        words = hugging_face_nets.WORDS if name in hugging_face_nets.TEXTS else 0
        build = hugging_face_nets.builder(name)
        return Subject(name=name, build=build, shape=hugging_face_nets.shape(name), words=words)
    if library in SECOND:
        return Subject(name=name, build=(HANDWRITTEN if library == "hand" else WRAPPED)[name], shape=(3, 32, 32))
    return of_library(library, name)


def of_library(library: str, name: str) -> Subject:
    import timm
    import torchvision

    if library == "torchvision":
        build = torchvision.models.get_model_builder(name)
        quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        side = 299 if name == "inception_v3" else 224
        return Subject(name=name, build=lambda: build(weights=None, **quick), shape=(3, side, side))
    model = smallest(name)
    shape = timm.get_pretrained_cfg(model).input_size
    return Subject(name=model, build=lambda: timm.create_model(model), shape=tuple(shape))


def smallest(family: str) -> str:
    """The model of a timm family with the fewest parameters, ties by name."""
    import timm

    models = timm.list_models(module=family)
    known = json.loads(FAMILIES.read_text(encoding="utf-8")) if FAMILIES.is_file() else {}
    return known[family] if known.get(family) in models else min(models, key=lambda model: (parameters(model), model))


def parameters(model: str) -> int:
    """Parameters of a timm model, counted without memory where it can be built so."""
    import timm

    try:
        with torch.device("meta"):
            built = timm.create_model(model)
    except (RuntimeError, NotImplementedError):  # it reads numbers while it is built
        built = timm.create_model(model)
    return sum(parameter.numel() for parameter in built.parameters())


def choose_families() -> None:
    import timm

    FAMILIES.unlink(missing_ok=True)
    chosen = {family: smallest(family) for family in timm.list_modules()}
    FAMILIES.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
