"""The conformance kit accepts what conforms and names what does not."""

import pytest
import torch
from zoo import NETS

import dynext as dx
from dynext.testing import ConformanceError, check_net, check_source
from dynext.types import Batch, InputSpec

SPEC = InputSpec(shape=(1, 4, 4), mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize("name", sorted(NETS))
def test_every_net_of_the_zoo_conforms(name: str) -> None:
    model, example = NETS[name]()
    staged = dx.split(model, example)
    net = dx.attach(staged, dx.default_heads(staged.num_classes))
    check_net(net, torch.randn(8, *example.shape[1:], generator=torch.Generator().manual_seed(0)))


def test_a_net_that_learns_while_it_runs_is_caught() -> None:
    model, example = NETS["residual"]()
    staged = dx.split(model, example)
    net = dx.attach(staged, dx.default_heads(staged.num_classes))
    net.exits[0].train()  # its BatchNorm now follows the batch
    with pytest.raises(ConformanceError, match=r"exit 0|alone|changed"):
        check_net(net, torch.randn(8, *example.shape[1:]))


def test_sources() -> None:
    check_source(dx.data.Samples(pixels=torch.zeros(5, 1, 4, 4), spec=SPEC))

    class Restless:
        shape, bn = (1, 4, 4), "running"

        def __len__(self) -> int:
            return 2

        def __iter__(self):
            yield Batch(x=torch.rand(2, 1, 4, 4))

    with pytest.raises(ConformanceError, match="a second pass gives other samples"):
        check_source(Restless())
    with pytest.raises(ConformanceError, match=r"expected \(3, 4, 4\)"):
        check_source(Restless(), (3, 4, 4))
