"""A confidence of one's own: taken wherever a name is, checked, saved by its registered name and by nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tables import make_table
from torch import Tensor
from zoo import NETS

import dynext as dx
from dynext import plugins
from dynext.errors import PolicyError
from dynext.policies import confidence
from dynext.policy.confidence import confidences

GROUP = "dynext.confidences"


def gini(logits_nk: Tensor) -> Tensor:
    """Sum of squared probabilities."""
    return logits_nk.softmax(-1).square().sum(-1)


@pytest.fixture
def table() -> dx.ExitTable:
    return make_table(e=3)


@pytest.fixture
def net_and_x() -> tuple[dx.DynamicNet, Tensor]:
    model, example = NETS["residual"]()
    net = dx.attach(dx.split(model, example, after=[0.3, 0.6]), dx.default_heads(10, hidden=8))
    return net, torch.randn(8, *example.shape[1:], generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(plugins, "_registered", {group: {} for group in plugins.GROUPS})
        yield


def policy(measure: object) -> dx.Policy:
    return dx.Policy(confidence=measure, threshold_e=(0.5, 0.6, 0.0), temperature_e=(2.0, 1.0, 1.0))


def test_a_function_is_a_measure(table: dx.ExitTable) -> None:
    conf_ne = confidences(table.logits_nek, gini, (2.0, 1.0, 1.0))
    torch.testing.assert_close(conf_ne[:, 0], gini(table.logits_nek[:, 0] / 2))
    chosen = dx.choose(table, budget=0.7, confidence=gini)
    assert chosen.confidence is gini
    assert "gini" in str(dx.report(table, chosen))
    assert any(threshold is not None for threshold in chosen.threshold_e[:-1])


def test_a_run_leaves_where_the_table_says(net_and_x: tuple[dx.DynamicNet, Tensor]) -> None:
    net, x = net_and_x
    with torch.no_grad():
        sure_be = torch.stack([gini(logits) for logits in net.all_exits(x).unbind(1)], dim=1)
    threshold = float(sure_be[:, 0].median()) + 1e-4
    rule = dx.Policy(confidence=gini, threshold_e=(threshold, None, 0.0), temperature_e=(1.0,) * 3)
    leaves = sure_be[:, 0] >= threshold
    out = net.run(x, rule)
    assert out.exit.tolist() == [0 if leave else 2 for leave in leaves]
    assert net.run(x[:1], rule).exit.tolist() == out.exit[:1].tolist()


def test_a_row_that_makes_no_sense_never_leaves_early() -> None:
    logits = torch.tensor([[0.0, torch.nan], [torch.inf, 0.0], [9.0, 0.0]])
    value = confidence(logits, lambda z: torch.full((len(z),), 0.9))
    assert value.isnan().tolist() == [True, True, False]
    assert confidence(torch.zeros(0, 3), gini).shape == (0,)


def test_it_is_saved_by_its_registered_name_and_by_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"is the function .*:gini, which JSON cannot hold; .*dx.plugins.register"):
        policy(gini).to_dict()
    plugins.register(GROUP, "gini", gini)
    assert policy(gini).to_dict()["confidence"] == "gini"
    again = dx.Policy.from_json(policy(gini).to_json())
    assert again.confidence == "gini"
    assert dx.Policy.from_json(policy("gini").to_json()) == again
    logits = torch.randn(5, 4)
    assert torch.equal(confidence(logits, "gini"), confidence(logits, gini))


def test_a_saved_name_that_nobody_knows_says_what_to_do() -> None:
    plugins.register(GROUP, "gini", gini)
    saved = policy(gini).to_json()
    plugins._registered[GROUP].clear()
    with pytest.raises(PolicyError, match="unknown confidence 'gini'; .* where its package is installed, or after"):
        dx.Policy.from_json(saved)
    with pytest.raises(PolicyError, match=r"did you mean margin\?"):
        policy("margn")
    plugins.register(GROUP, "gini", gini)
    with pytest.raises(PolicyError, match=r"did you mean gini\?"):
        policy("ginni")


def test_an_artifact_keeps_it(net_and_x: tuple[dx.DynamicNet, Tensor], tmp_path: Path) -> None:
    net, x = net_and_x
    spec = dx.InputSpec(shape=tuple(x.shape[1:]), mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.raises(PolicyError, match="which JSON cannot hold"):
        dx.save(net, tmp_path / "net", policy=policy(gini), spec=spec)
    plugins.register(GROUP, "gini", gini)
    dx.save(net, tmp_path / "net", policy=policy(gini), spec=spec)
    loaded = dx.load(tmp_path / "net", model=net.staged)
    assert loaded.policy.confidence == "gini"
    assert torch.equal(loaded.net.run(x, loaded.policy).exit, net.run(x, policy(gini)).exit)


def test_an_export_says_that_it_cannot(net_and_x: tuple[dx.DynamicNet, Tensor], tmp_path: Path) -> None:
    plugins.register(GROUP, "gini", gini)
    net, x = net_and_x
    spec = dx.InputSpec(shape=tuple(x.shape[1:]), mean=(0.5,) * 3, std=(0.25,) * 3)
    for measure in (gini, "gini"):
        with pytest.raises(PolicyError, match="an exported net decides by max_probability, .*, not by .*gini; choose"):
            dx.export(net, tmp_path / "out", policy=policy(measure), spec=spec)


WRONG: dict[str, Callable[[Tensor], object]] = {
    r"gave torch.float32 \(6, 4\)": lambda z: z.softmax(-1),
    r"gave torch.float32 \(\)": lambda z: z.softmax(-1).amax(),
    r"gave torch.int64 \(6,\)": lambda z: z.argmax(-1),
    "gave list": lambda z: z.amax(-1).tolist(),
    r"gave values from .*; give numbers in \[0, 1\]": lambda z: 100 * z.softmax(-1).amax(-1),
    "gave values from -": lambda z: z.log_softmax(-1).amax(-1),
    "gave values from nan": lambda z: z.amax(-1) * torch.nan,
    r"failed \(RuntimeError": lambda z: z @ torch.ones(99),
    "compute it of each sample alone": lambda z: z.amax(-1).softmax(0),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_a_measure_may_not_give_is_refused_with_the_reason(said: str) -> None:
    logits_nek = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(PolicyError, match=said):
        confidences(logits_nek, WRONG[said])


def test_a_calibrator_of_ones_own(table: dx.ExitTable) -> None:
    seen = []

    def by_deviation(logits_nk: Tensor, right_n: Tensor) -> Tensor:
        seen.append((tuple(logits_nk.shape), right_n.dtype))
        return logits_nk.std()

    made = dx.calibrate(table, method=by_deviation)
    assert seen == [((len(table), table.num_classes), torch.int64)] * 2, "the full net always agrees with itself"
    assert made.temperature_e == (*(float(table.logits_nek[:, e].double().std()) for e in range(2)), 1.0)
    assert made.ece_after_e != made.ece_before_e
    assert dx.choose(table, budget=0.7, temperature=made).temperature_e == made.temperature_e
    assert dx.calibrate(table, method="temperature") == dx.calibrate(table)
    for wrong in (lambda z, y: 0.0, lambda z, y: None, lambda z, y: float("nan"), lambda z, y: torch.ones(3)):
        with pytest.raises(PolicyError, match="gave .* for exit 0; give one positive number"):
            dx.calibrate(table, method=wrong)
    with pytest.raises(PolicyError, match="method='platt'; give 'temperature', or a function"):
        dx.calibrate(table, method="platt")  # type: ignore[arg-type]
