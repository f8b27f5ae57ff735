"""Tracing: what is kept whole, what is refused, which nodes modules start from and end at."""

import pytest
import torch
from torch import Tensor, nn
from zoo import NETS, KeptWhole, Residual, TwoInputs

from dynext.errors import SplitError
from dynext.graph.private import private_copy
from dynext.graph.trace import trace


def test_only_the_failing_module_is_kept_whole():
    traced = trace(KeptWhole().eval())
    assert traced.meta["whole"] == ("undecided",)
    assert "first.0" in [node.target for node in traced.graph.nodes]


def test_the_innermost_failing_module_is_kept():
    outer = nn.Sequential(nn.Sequential(KeptWhole(), nn.ReLU()), nn.Linear(10, 10)).eval()
    assert trace(outer).meta["whole"] == ("0.0.undecided",)


def test_batch_norms_with_children_stay_modules():
    class WithActivation(nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(super().forward(x))

    traced = trace(nn.Sequential(WithActivation(3), nn.Flatten()).eval())
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]


def test_modules_know_where_they_start_and_end():
    traced = trace(Residual().eval())
    ends = {path: node for node in traced.graph.nodes for path in node.meta.get("ends", ())}
    assert ends["layer1.0"] is traced.meta["starts"]["layer1.1"]
    assert ends["layer1"] is ends["layer1.1"] is ends["layer1.1.relu"]


class Optional(nn.Module):
    """Arguments besides the input, all with a way out."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *rest: Tensor, scale: float = 2.0, **more: Tensor
    ) -> Tensor:
        if mask is not None or rest or more:
            x = x + 1
        return self.head(x) * scale


def test_other_arguments_get_their_defaults():
    model, x = Optional().eval(), torch.randn(3, 4)
    traced = trace(model)
    assert [node.op for node in traced.graph.nodes].count("placeholder") == 1
    torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)


def test_several_inputs_are_refused():
    with pytest.raises(SplitError, match=r"TwoInputs takes several inputs \(x, y\)"):
        trace(TwoInputs())


class RootFails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_root_that_cannot_be_traced_points_to_stages_by_hand():
    with pytest.raises(SplitError, match=r"RootFails cannot be traced.*stages_by_hand"):
        trace(RootFails())


class Unique(nn.Linear):
    """Only made with its arguments, and guarded against everything else."""

    def __new__(cls, *sizes):
        if not sizes:
            raise RuntimeError("made by the factory only")
        return super().__new__(cls)

    def __reduce_ex__(self, protocol):
        raise TypeError("not to be copied")


def test_a_model_that_cannot_be_copied_is_refused():
    with pytest.raises(SplitError, match=r"Unique cannot be copied \(RuntimeError: made by the factory only\)"):
        private_copy(Unique(2, 2))


@pytest.mark.parametrize("name", NETS)
def test_the_copy_shares_nothing(name):
    model, _ = NETS[name]()
    mine = {tensor.data_ptr() for tensor in private_copy(model).state_dict().values() if tensor.numel()}
    assert not mine & {tensor.data_ptr() for tensor in model.state_dict().values()}
