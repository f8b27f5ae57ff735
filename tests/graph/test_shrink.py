"""Stages made smaller: measured anew, shrunk the same way again on loading, and named where they no longer fit."""

import copy
import json

import pytest
import torch
from zoo import NETS

import dynext as dx
from dynext.errors import SplitError
from dynext.graph.macs import layer_macs
from dynext.graph.shrink import measured, record, shrink, without


def staged(name: str = "plain", **options: object) -> dx.graph.StagedNet:
    model, example = NETS[name]()
    return dx.split(model, example, **options)


@pytest.mark.parametrize("name", NETS)
def test_measuring_again_gives_what_splitting_gave(name: str) -> None:
    first = staged(name)
    again = measured(copy.deepcopy(first), None)
    for old, new in zip(first.stages, again.stages, strict=True):
        assert (old.name, old.macs, old.live_shapes, old.tap) == (new.name, new.macs, new.live_shapes, new.tap)
        assert (old.live_bytes, old.param_bytes, old.skippable) == (new.live_bytes, new.param_bytes, new.skippable)


def test_what_was_taken_away_is_taken_away_again() -> None:
    model_stages = staged(after=["features.1", "features.3"])
    small = copy.deepcopy(model_stages)
    first, second = (
        small.stages[0].body.features.get_submodule("1.0"),
        small.stages[1].body.features.get_submodule("2.0"),
    )
    norm = small.stages[0].body.features.get_submodule("1.1")
    first.weight, second.weight = (torch.nn.Parameter(w) for w in (first.weight[:5], second.weight[:, :5]))
    for name in ("weight", "bias"):
        setattr(norm, name, torch.nn.Parameter(getattr(norm, name)[:5]))
    norm.running_mean, norm.running_var = norm.running_mean[:5], norm.running_var[:5]
    kept = record(small, dropped=(), before=model_stages)
    small = measured(small, kept)
    assert small.stages[0].live_shapes == ((5, 8, 8),)
    again = shrink(model_stages, json.loads(json.dumps(kept)))
    again.load_state_dict(small.state_dict())
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(again(x), small(x), rtol=0, atol=0)
    conv = again.stages[0].body.features.get_submodule("1.0")
    assert (conv.in_channels, conv.out_channels) == (8, 5)
    assert again.stages[0].body.features.get_submodule("1.1").num_features == 5
    assert model_stages.stages[0].live_shapes == ((8, 8, 8),)


def test_stages_that_no_longer_fit_are_named() -> None:
    broken = staged(after=["features.1", "features.3"])
    conv = broken.stages[1].body.features.get_submodule("2.0")
    conv.weight = torch.nn.Parameter(conv.weight[:, :5])
    with pytest.raises(SplitError, match=r"stage 'features.3' cannot take \(8, 8, 8\)"):
        measured(broken, None)


def test_only_what_may_be_skipped_is_left_out() -> None:
    blocks = staged("residual", granularity="block")
    names = [stage.name for stage in blocks.stages]
    gone = names[blocks.skippable[0]]
    assert [stage.name for stage in without(blocks, [gone]).stages] == [name for name in names if name != gone]
    assert [stage.name for stage in blocks.stages] == names
    with pytest.raises(SplitError, match=f"'{names[-1]}' cannot be left out"):
        without(blocks, [names[-1]])


def test_macs_of_layers_are_those_of_the_net() -> None:
    net = staged("shared_weights")
    macs = layer_macs(net, net, torch.zeros(2, 3, 8, 8))
    assert sum(macs.values()) == net.macs
    again = [value for name, value in macs.items() if "again" in name]
    assert again == [3 * 8 * 8 * 9 * 64]  # one module, three calls
