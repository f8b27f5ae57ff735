"""MSDNet: the published configuration to the last parameter and MAC, and a dynamic net like any other."""

from itertools import accumulate
from pathlib import Path

import pytest
import torch
from reference import msdnet as slow

import dynext as dx
from dynext.errors import ModelError
from dynext.models.multi_scale_densenet import CONFIGURATIONS, MSDNet, MSDNetConfig, msdnet
from dynext.testing import check_net

SMALL = {"blocks": 3, "base": 1, "step": 1, "channels": 1, "width": 4, "growth": 2}


@pytest.mark.parametrize(("name", "side", "channels"), [("anytime", 32, 3), ("budgeted", 32, 3), ("budgeted", 28, 1)])
def test_macs_are_those_of_the_published_configuration(name: str, side: int, channels: int) -> None:
    net = msdnet(name, side=side, channels=channels)
    config = CONFIGURATIONS[name]
    ends = slow.layers_before(config.blocks, config.base, config.step, config.steps == "linear")
    lazy, eager = slow.exit_macs(ends, side, channels)
    assert [trunk + head for trunk, head in zip(net.trunk_macs_e, net.head_macs_e, strict=True)] == lazy
    assert lazy[-1] == eager[-1]
    assert all(less <= more for less, more in zip(lazy, eager, strict=True))
    assert lazy[0] < eager[0]


def test_shapes_are_those_of_the_published_configuration() -> None:
    net = msdnet("anytime")
    assert CONFIGURATIONS["anytime"].ends == (4, 6, 8, 10, 12, 14, 16)
    assert CONFIGURATIONS["budgeted"].ends == (1, 3, 6, 10, 15)
    taps = [stage.live_shapes[stage.tap] for stage in net.staged.stages[:-1]]
    assert taps == [(c, 8, 8) for c in (160, 208, 140, 188, 236, 152)]
    assert net.all_exits(torch.zeros(2, 3, 32, 32)).shape == (2, 7, 10)


def test_as_many_parameters_as_the_authors_net_of_ten_blocks() -> None:
    """4,839,544: what the authors' code prints for 10 blocks, base 4, step 2, on CIFAR-10."""
    model = MSDNet(MSDNetConfig(blocks=10)).eval()
    net = dx.attach(dx.split(model, torch.zeros(1, 3, 32, 32), after=model.places), dx.heads.strided_heads(10))
    assert sum(p.numel() for p in net.parameters()) == 4_839_544


def test_it_is_a_dynamic_net_like_any_other() -> None:
    net = msdnet("anytime", side=8, **SMALL)
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    check_net(net, x)
    assert [exit.after for exit in net.exits] == [0, 1]
    assert list(accumulate(stage.macs for stage in net.staged.stages)) == list(net.trunk_macs_e)


def test_a_color_net_from_the_catalog_is_saved_and_comes_back(tmp_path: Path) -> None:
    opened = dx.open_model(
        "cifar:msdnet_anytime", arguments={**SMALL, "channels": 3, "factors": [1, 2]}, shape=(3, 8, 8)
    )
    assert opened.num_classes == 10
    staged = dx.split(opened.model, torch.zeros(1, 3, 8, 8), after=opened.model.places)
    net = dx.attach(staged, dx.heads.strided_heads(10, hidden=8))
    policy = dx.Policy.always(net.num_exits)
    dx.save(net, tmp_path / "net", policy=policy, spec=opened.spec, model_recipe=opened.recipe)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    again = dx.load(tmp_path / "net").net
    torch.testing.assert_close(again.all_exits(x), net.all_exits(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"growth": 3}, "an even growth"),
        ({"blocks": 0}, "blocks 0"),
        ({"steps": "odd"}, "steps 'odd'"),
        ({"reduction": 0.0}, "reduction 0.0"),
        ({"factors": (1,)}, "two scales or more"),
    ],
)
def test_sizes_that_make_no_net_are_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        MSDNetConfig(**changes)
    with pytest.raises(ModelError, match="no MSDNet configuration 'any'"):
        msdnet("any")
