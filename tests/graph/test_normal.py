"""Python values at cuts: sizes are written out, types and devices asked again, the rest is refused."""

import pytest
import torch
from torch import Tensor, nn
from zoo import build, conv

from dynext.errors import SplitError
from dynext.graph.split import split


class Between(nn.Module):
    """Computes something before a cut and uses it after."""

    def __init__(self, before, after) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = conv(3, 8), conv(8, 8), conv(8, 8), nn.Linear(8, 10)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        kept = self.before(x)
        x = self.after(self.second(x), kept)
        return self.head(self.third(x).mean((2, 3)))


ALLOWED = {
    "sizes": (lambda x: x.shape[-2:], lambda x, size: nn.functional.interpolate(x[:, :, ::2], size=size)),
    "arithmetic of sizes": (lambda x: x.size(2) * x.size(3), lambda x, n: x * (n / 64)),
    "all of the shape, part of it used": (lambda x: x.shape, lambda x, shape: x / shape[1]),
    "dtype": (lambda x: x.dtype, lambda x, dtype: x + torch.arange(8).to(dtype)),
    "device": (lambda x: x.device, lambda x, device: x + torch.arange(8, device=device)),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_constants_cross_a_cut(name):
    model, x = build(lambda: Between(*ALLOWED[name]))
    staged = split(model, x, ["second"])
    assert staged.stages[1].num_live_in == 1
    torch.testing.assert_close(staged(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(staged.double()(x.double()), model.double()(x.double()), rtol=0, atol=0)


def test_tuples_of_tensors_are_taken_apart():
    model, x = build(lambda: Between(lambda x: x.chunk(2, 1), lambda x, parts: x[:, :4] * parts[0] + parts[1]))
    model.third = conv(4, 8).eval()
    staged = split(model, x, ["second"])
    assert staged.stages[1].num_live_in == 3
    torch.testing.assert_close(staged(x), model(x), rtol=0, atol=0)


BATCH = {
    "its size": (lambda x: x.shape[0], lambda x, b: x.reshape(b, 8, 8, 8)),
    "size()": (lambda x: x.size(0), lambda x, b: x.flatten(1).view(b, 8, 8, -1)),
    "len": (lambda x: len(x), lambda x, b: x.reshape(b, 8, 8, 8)),
    "a multiple": (lambda x: x.shape[0] * 2, lambda x, n: x.reshape(n, 4, 8, 8).flip(1).reshape(n // 2, 8, 8, 8)),
    "of a merged tensor": (
        lambda x: x.flatten(0, 1).shape[0],
        lambda x, n: x.view(n, -1).cumsum(1).view(n // 8, 8, 8, 8),
    ),
    "the whole shape": (lambda x: x.shape, lambda x, shape: x.flatten(1).view(shape)),
    "a piece of the shape": (lambda x: x.shape[:2], lambda x, shape: x.flatten(2).view(*shape, 8, 8)),
    "numel": (lambda x: x.numel(), lambda x, n: x.view(n).view(n // 512, 8, 8, 8)),
    "a tensor made of it": (lambda x: torch.zeros(x.shape[0], 8, 1, 1), lambda x, zeros: x + zeros),
    "divided": (lambda x: x.shape[0] // 4, lambda x, n: x.view(-1, 8, 8, 8)[:, :, : 8 + 0 * n]),
}


@pytest.mark.parametrize("name", BATCH)
def test_the_number_of_samples_is_read_anew_behind_a_cut(name):
    model, x = build(lambda: Between(*BATCH[name]))
    staged = split(model, x, ["second"])
    assert staged.stages[1].num_live_in == 1
    x = torch.cat([x, x + 1, x - 1])
    torch.testing.assert_close(staged(x), model(x), rtol=0, atol=0)
    (live,) = staged.stages[0](x)
    for few in (slice(2, 5), slice(3, 4)):
        given = (
            staged.stages[2](*staged.stages[1](live[few])) if len(staged.stages) > 2 else staged.stages[1](live[few])
        )
        torch.testing.assert_close(given[0], model(x)[few], rtol=1e-5, atol=1e-6)


def test_a_squeeze_leaves_a_sample_that_is_alone_its_batch():
    model, x = build(
        lambda: Between(lambda x: x.mean((2, 3), keepdim=True).squeeze(), lambda x, m: x + m[..., None, None])
    )
    assert split(model, x)(x[:1]).shape == (1, 10)


REFUSED = {
    "content": (lambda x: x[:, 0, 0, 0].bool().all().item(), lambda x, top: x / (1 + 0 * top), "node 'item'"),
    "samples not first": (
        lambda x: x.transpose(0, 1),
        lambda x, t: x + t.transpose(0, 1),
        "samples are not the batch's",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_the_samples_does_not(name):
    before, after, says = REFUSED[name]
    model, x = build(lambda: Between(before, after))
    with pytest.raises(SplitError, match=f"cannot cut after 'second': .*{says}"):
        split(model, x, ["second"])


@pytest.mark.parametrize("name", REFUSED)
def test_automatic_cuts_go_around(name):
    before, after, _ = REFUSED[name]
    model, x = build(lambda: Between(before, after))
    staged = split(model, x)
    assert "second" not in staged.cuts
    torch.testing.assert_close(staged(x), model(x), rtol=0, atol=0)
