"""Splitting over the zoo: chained stages equal the model, and the model stays what it was."""

import copy

import pytest
import torch
from torch import Tensor, nn
from zoo import NETS, REFUSED, build, conv

from dynext.errors import SplitError
from dynext.graph.macs import count_macs
from dynext.graph.split import split

EXACT = {"rtol": 0, "atol": 0}
UNSKIPPABLE = {"plain", "unet_like", "dense_concat", "two_branches", "shared_weights", "kept_whole"}
UNSKIPPABLE |= {"reads_sizes_early", "masked", "remembering", "any_arguments"}
UNSKIPPABLE |= {"dense_norm", "inception_like", "shuffle_like", "lenet"}


@pytest.mark.parametrize("granularity", ["stage", "block"])
@pytest.mark.parametrize("name", NETS)
def test_chained_stages_equal_the_model(name, granularity):
    model, example = NETS[name]()
    staged = split(model, example, granularity=granularity)
    x = torch.randn(5, *example.shape[1:], generator=torch.Generator().manual_seed(1))
    assert len(staged.stages) >= 3
    torch.testing.assert_close(staged(x), model(x), **EXACT)


@pytest.mark.parametrize("name", NETS)
def test_samples_that_leave_change_nothing_for_the_others(name):
    model, x = NETS[name]()
    staged = split(model, x)
    live = staged.stages[0](torch.cat([x, x + 1]))
    for stage in staged.stages[1:]:
        live = stage(*(tensor[1:3] for tensor in live))
        live = tuple(torch.cat([tensor[:1], tensor, tensor[:1]]) for tensor in live)
    torch.testing.assert_close(live[0][1:3], model(torch.cat([x, x + 1]))[1:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("granularity", ["stage", "block"])
@pytest.mark.parametrize("name", NETS)
def test_cuts_build_the_same_stages_again(name, granularity):
    model, example = NETS[name]()
    staged = split(model, example, granularity=granularity)
    again = split(model, example[:1], after=staged.cuts, granularity=granularity)
    assert again.cuts == staged.cuts
    assert str(again) == str(staged)
    assert list(again.state_dict()) == list(staged.state_dict())


@pytest.mark.parametrize("name", NETS)
def test_the_model_and_the_random_state_stay_as_they_are(name):
    model, example = NETS[name]()
    list(model.modules())[-1].train()
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    inplace = [getattr(module, "inplace", None) for module in model.modules()]
    random = torch.get_rng_state()
    staged = split(model, example)
    torch.testing.assert_close(model.state_dict(), before, **EXACT)
    assert [module.training for module in model.modules()] == flags
    assert [getattr(module, "inplace", None) for module in model.modules()] == inplace
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for module in staged.modules())
    assert not {id(tensor) for tensor in staged.parameters()} & {id(tensor) for tensor in model.parameters()}


@pytest.mark.parametrize("name", NETS)
def test_a_model_in_train_mode_is_split_in_eval(name):
    model, example = NETS[name]()
    staged = split(model.train(), example)
    torch.testing.assert_close(staged(example), model.eval()(example), **EXACT)


@pytest.mark.parametrize("name", NETS)
def test_nothing_that_a_stage_is_given_changes(name):
    model, x = NETS[name]()
    live: tuple[Tensor, ...] = (x,)
    for stage in split(model, x, granularity="block").stages:
        kept = [tensor.clone() for tensor in live]
        out = stage(*live)
        torch.testing.assert_close(list(live), kept, **EXACT)
        live = out


@pytest.mark.parametrize("name", NETS)
def test_stages_own_their_tensors(name):
    """Moved after the split, every tensor moves: one left behind would raise a type mismatch."""
    model, x = NETS[name]()
    staged = split(model, x).double()
    torch.testing.assert_close(staged(x.double()), model.double()(x.double()), **EXACT)
    assert {id(tensor) for tensor in staged.parameters()} >= {id(tensor) for tensor in staged.stages.parameters()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NETS)
def test_other_precisions(name, dtype):
    model, x = NETS[name]()
    model, x = model.to(dtype), x.to(dtype)
    out = split(model, x)(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out, model(x), **EXACT)


def test_channels_last():
    model, x = NETS["residual"]()
    model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    staged = split(model, x)
    torch.testing.assert_close(staged(x), model(x), **EXACT)
    assert staged.stages[0](x)[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", NETS)
def test_macs_are_those_of_the_stages_as_they_run(name):
    model, x = NETS[name]()
    staged = split(model, x, granularity="block")
    assert staged.macs == count_macs(model, x)
    live: tuple[Tensor, ...] = (x,)
    for stage in staged.stages:
        assert stage.macs == count_macs(stage, *live)
        live = stage(*live)
        assert stage.live_shapes == tuple(tuple(tensor.shape[1:]) for tensor in live)
        assert stage.num_live_out == len(live)


@pytest.mark.parametrize("name", NETS)
def test_skippable_stages_are_residual_blocks(name):
    model, x = NETS[name]()
    skippable = [stage for stage in split(model, x, granularity="block").stages if stage.skippable]
    assert bool(skippable) == (name not in UNSKIPPABLE)
    assert all(stage.num_live_in == stage.num_live_out == 1 for stage in skippable)
    assert all(stage.macs > 0 for stage in skippable)


def test_shared_weights_stay_shared():
    model, x = NETS["shared_weights"]()
    staged = copy.deepcopy(split(model, x, ["again@0", "again@1", "again"]))
    assert sum(p.numel() for p in staged.parameters()) == sum(p.numel() for p in model.parameters())
    weights = [stage.body.get_submodule("again.0").weight for stage in staged.stages[1:3]]
    assert weights[0] is weights[1]
    torch.testing.assert_close(staged(x), model(x), **EXACT)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(name):
    refusal = REFUSED[name]
    model, example = refusal.make()
    with pytest.raises(SplitError, match=refusal.says):
        split(model, example, refusal.after)


def test_names_may_cut_where_several_tensors_are_live():
    model, x = NETS["unet_like"]()
    staged = split(model, x, ["down1", "middle"])
    first, second = staged.stages[:2]
    assert first.live_shapes == ((8, 8, 8), (8, 4, 4))
    assert (first.tap, second.tap) == (1, 2)
    assert second.num_live_in == 2
    torch.testing.assert_close(staged(x), model(x), **EXACT)


def test_names_may_be_fx_nodes():
    model, x = NETS["root_tensors"]()
    assert split(model, x, ["add_1"]).cuts == ("add_1",)


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (["layer1.7"], r"no module 'layer1.7' is called in this net; did you mean layer1\.\d"),
        (["layer1", "layer1.1"], "'layer1.1' and 'layer1' end at the same place"),
        (["fc"], "'fc' ends where the net ends"),
        ("layer1", r"after='layer1' is one name; give a list of them: after=\['layer1'\]"),
        ([], "at least one"),
        ([0.5, "layer1"], "names, or shares of MACs"),
        ([1.5], r"shares of MACs in \(0, 1\)"),
        ([index / 100 for index in range(1, 60)], "59 cuts asked for, but there are only"),
    ],
)
def test_requests_that_make_no_sense(after, says):
    model, x = NETS["residual"]()
    with pytest.raises(SplitError, match=says):
        split(model, x, after)


@pytest.mark.parametrize("example", [torch.zeros(3), torch.zeros(0, 3, 8, 8), "x"])
def test_examples_that_are_none(example):
    with pytest.raises(SplitError, match="the example is .*give a tensor"):
        split(NETS["plain"]()[0], example)


def test_an_example_that_does_not_fit():
    with pytest.raises(SplitError, match="fails"):
        split(NETS["plain"]()[0], torch.zeros(1, 4, 8, 8))


def test_an_unknown_granularity():
    with pytest.raises(SplitError, match="granularity 'layer'; give 'stage' or 'block'"):
        split(*NETS["plain"](), granularity="layer")


def test_inside_a_module_kept_whole():
    with pytest.raises(SplitError, match="inside 'undecided', which could not be traced and is kept whole"):
        split(*NETS["kept_whole"](), ["undecided.conv"])


@pytest.mark.parametrize("wanted", [[0.3], [0.2, 0.5, 0.8]])
def test_shares_of_macs(wanted):
    model, x = NETS["residual"]()
    staged = split(model, x, wanted)
    spent = 0
    for stage, share in zip(staged.stages, wanted, strict=False):
        spent += stage.macs
        assert abs(spent / staged.macs - share) < 0.15


def test_inference_mode_is_no_trouble():
    model, x = NETS["residual"]()
    with torch.inference_mode():
        staged = split(model, x + 0)
    staged(x).sum().backward()
    assert next(staged.parameters()).grad is not None


class ViewChanged(nn.Module):
    """Changes a tensor through a view, which no rewriting follows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = conv(3, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x.flatten(1).add_(1)
        return self.head(x.mean((2, 3)))


def test_in_place_work_through_a_view_is_refused_not_forgotten():
    with pytest.raises(SplitError, match="answers differently from the model"):
        split(*build(ViewChanged))


class AlwaysDrops(nn.Module):
    """Functional dropout whose training flag is forgotten: random in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 8), conv(8, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.second(self.first(x)), 0.3)
        return self.head(x.mean((2, 3)))


def test_random_nets_are_compared_on_equal_randomness():
    model, x = build(AlwaysDrops)
    staged = split(model, x)
    torch.manual_seed(3)
    wanted = model(x)
    torch.manual_seed(3)
    torch.testing.assert_close(staged(x), wanted, **EXACT)


def test_modules_may_be_called_anything() -> None:
    """What is called ``in`` can be no attribute in the code that torch.fx writes."""
    names = ("in", "global", "a(b)", "x:y", "0", "plain")
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for name in names:
                x = self.parts[name](x).relu()
            return x

    net, x = Net().eval(), torch.randn(3, 4)
    staged = split(net, x)
    assert len(staged.stages) > 1
    assert torch.equal(staged(x), net(x))
    assert torch.equal(copy.deepcopy(staged)(x), net(x))
