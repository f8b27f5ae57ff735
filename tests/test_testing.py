"""The conformance kit accepts what conforms and names what does not."""

import pytest
import torch
from pixels import COLOR
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


class Broken:
    """A source of six samples, correct but for what is changed."""

    shape, bn = COLOR.shape, "running"

    def __init__(self, x=lambda x, i: x, y=lambda y, i: y, says: int = 6) -> None:
        self.x, self.y, self.says, self.passes = x, y, says, 0

    def __len__(self) -> int:
        return self.says

    def __iter__(self):
        pixels = torch.linspace(0, 1, 6 * 90).reshape(6, 3, 6, 5)
        self.passes += 1
        for i, (x, y) in enumerate(zip(COLOR.normalize(pixels).split(3), torch.arange(6).split(3), strict=True)):
            yield Batch(x=self.x(x, i), y=self.y(y, i))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"says": 7}, "it says 7 samples and gives 6"),
        ({"x": lambda x, i: COLOR.normalize(x)}, "normalized twice, by other figures"),
        ({"x": lambda x, i: COLOR.pixels(x)}, "pixels that nobody normalized"),
        ({"x": lambda x, i: COLOR.pixels(x) * 255}, r"or are pixels in \[0, 255\]"),
        ({"x": lambda x, i: x.byte()}, "samples are torch.uint8, expected normalized floats"),
        ({"x": lambda x, i: x / 0}, "NaN or infinity"),
        ({"x": lambda x, i: x.permute(0, 2, 3, 1)}, r"a batch of samples \(6, 5, 3\), expected \(3, 6, 5\)"),
        ({"x": lambda x, i: x + 0.01 * torch.rand(())}, "a second pass gives other samples"),
        ({"x": lambda x, i: x[torch.randperm(3)]}, "a second pass gives other samples"),
        ({"y": lambda y, i: y[:2]}, "not one label per sample"),
        ({"y": lambda y, i: y.float()}, "labels are torch.float32, expected int64"),
        ({"y": lambda y, i: y - 1}, "labels from -1 to 1, expected class numbers from 0 to 5"),
        ({"y": lambda y, i: y + 1}, "labels from 4 to 6, expected class numbers from 0 to 5"),
        ({"y": lambda y, i: y if i else None}, "some batches have labels, others have not"),
    ],
)
def test_each_promise_of_a_source(changed: dict, told: str) -> None:
    check_source(Broken(), COLOR, num_classes=6)
    torch.manual_seed(0)
    with pytest.raises(ConformanceError, match=told):
        check_source(Broken(**changed), COLOR, num_classes=6)


def test_what_is_no_source_is_told() -> None:
    with pytest.raises(ConformanceError, match=r"a list is no source, it lacks shape, bn"):
        check_source([1])
    check_source((torch.rand(8, *COLOR.shape), torch.arange(8)), COLOR)

    class Forgetful(Broken):
        def take(self, index: torch.Tensor) -> Batch:
            return Batch(x=torch.zeros(len(index), *COLOR.shape))

    with pytest.raises(ConformanceError, match=r"take\(index\) gives other samples"):
        check_source(Forgetful(), COLOR)
