"""What a prompt shows of public objects: a screen at most, never their logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tables import make_skipping, make_table
from zoo import NETS

import dynext as dx
from dynext.brief import brief, cut
from dynext.data.samples import Samples
from dynext.policy.policy import Policy
from dynext.types import Batch, InputSpec, Prediction

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


def samples() -> Samples:
    pixels = torch.randint(256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return Samples(pixels=pixels, spec=SPEC, y=torch.arange(40) % 10)


def shown() -> dict[str, object]:
    """One of each public object that holds tensors, nets or long records."""
    model, rows = NETS["residual"]()[0], samples()
    quick = {"steps": 1, "batch_size": 4, "progress": False}
    conversion = dx.convert(
        model, rows.spec, calibrate=rows, synthesis=dx.Synthesis(method="leaves", n=32), training=dx.Frozen(steps=1),
        target=dx.Target(budget=0.9), run=dx.Run(progress=False),
    )  # fmt: skip
    net, table = conversion.net, make_table(300, 6, 100)
    embedded = dx.align.embed(net, rows)
    adapted = dx.meta.adapt(net, rows)
    temperature = dx.calibrate(table)
    policy = dx.choose(table, max_drop=1e-5, temperature=temperature)
    plan = dx.prune.rank(net, budget=0.8)
    return {
        "net": net,
        "staged": net.staged,
        "stage": net.staged.stages[1],
        "exit": net.exits[0],
        "table": table,
        "skipping table": make_skipping(300),
        "learned table": replace(table, learned_n=torch.ones(300, dtype=torch.bool)),
        "policy": policy,
        "report": dx.report(table, policy),
        "outcome": dx.simulate(table, policy),
        "calibration": temperature,
        "conversion": conversion,
        "bank": conversion.samples,
        "samples": rows,
        "batch": rows.take(torch.arange(9)),
        "prediction": net.run(rows.take(torch.arange(9)).x, Policy.always(net.num_exits)),
        "unlabelled": dx.Unlabelled(rows),
        "opened": dx.open_model("cifar:resnet8"),
        "features": dx.zeroshot.cache_features(net, None, rows, progress=False),
        "embeddings": embedded,
        "prototypes": dx.align.prototypes(embedded.embedding_e, embedded.label_n),
        "adaptation": adapted,
        "alignment": dx.align.align_exits(net, rows, **quick),
        "plan": plan,
        "cost": net.cost,
        "seen": net.seen,
    }


def test_no_public_object_fills_the_screen() -> None:
    objects = shown()
    assert len(objects) >= 25
    for name, one in objects.items():
        text = repr(one)
        assert len(text) <= 2000, f"{name}: {len(text)} characters\n{text[:400]}"
        assert text.count("\n") <= 25, f"{name}: {text.count(chr(10))} lines"
        assert "tensor(" not in text, f"{name}: {text[:400]}"
        assert text.split("(")[0] == type(one).__name__, text


def test_a_dynamic_net_shows_a_line_an_exit_and_few_of_many() -> None:
    staged = dx.split(NETS["residual"]()[0], torch.zeros(1, 3, 8, 8))
    net = dx.attach(staged, dx.default_heads(10))
    text = repr(net)
    assert f"{net.num_exits} exits" in text
    assert all(f"exit {e} after {name}" in text for e, name in enumerate(net.exit_names))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.zeros(2, 3), "[2, 3] float32"),
        (1.23456789, "1.235"),
        (None, "None"),
        ((1, 2), "(1, 2)"),
        ([0.0] * 20, "[0, 0, ... 20 in all]"),
        ({"a": 1, "b": 2}, "{a, b}"),
        (torch.nn.Linear(2, 2), "Linear"),
    ],
)
def test_a_value_in_few_words(value: object, told: str) -> None:
    assert brief(value) == told


def test_long_texts_lose_their_middle() -> None:
    assert cut("a" * 50 + "b" * 50, 40) == "a" * 26 + " ... " + "b" * 10
    assert cut("short", 40) == "short"


def test_a_prediction_says_where_samples_left() -> None:
    given = Prediction(logits=torch.zeros(3, 5), exit=torch.tensor([0, 2, 0]), macs=torch.full((3,), 2_000_000))
    assert repr(given) == "Prediction(3 samples of 5 classes: 2 at exit 0, 1 at exit 2; 2.00 M MACs each)"
    assert "0 samples" in repr(
        Prediction(logits=torch.zeros(0, 5), exit=torch.empty(0).long(), macs=torch.empty(0).long())
    )
    assert repr(Batch(x=torch.zeros(4, 3))) == "Batch(x=[4, 3] float32, y=None)"
