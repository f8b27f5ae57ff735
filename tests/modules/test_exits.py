"""Heads: they fit the tap, come back from JSON, and cost what they say."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from dynext.errors import PolicyError, SplitError
from dynext.graph.macs import count_macs
from dynext.modules.exit_layers import Reduce
from dynext.modules.exits import build_exit, conv_heads, default_heads, pooled_heads, token_heads

TAPS = [(8, 28, 28), (32, 7, 7), (16, 1, 1), (64, 3, 5), (4, 100, 60), (14, 14, 24), (17, 12), (40,)]


@pytest.mark.parametrize("tap", TAPS)
def test_the_default_head_fits_any_tap(tap: tuple[int, ...]) -> None:
    spec = default_heads(5)(tap)
    exit = build_exit(json.loads(json.dumps(spec)), after=0, name="here").eval()
    x = torch.randn(3, *tap)
    assert exit(x).shape == (3, 5)
    torch.testing.assert_close(exit.classifier(exit.embed(x)), exit(x))
    torch.testing.assert_close(exit.head(exit.reduce(x)), exit(x))
    assert not list(exit.reduce.parameters())
    assert exit(x[:1]).shape == (1, 5)


def test_channels_last_maps_are_seen_as_maps() -> None:
    spec = conv_heads(5)((14, 14, 24))
    assert spec["channels_last"]
    exit = build_exit(spec, after=0, name="here")
    assert exit.embedder[0].in_channels == 24


def test_pooled_mixes_mean_and_maximum() -> None:
    exit = build_exit(pooled_heads(5)((8, 6, 6)), after=0, name="here")
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(exit.embed(x), 0.5 * x.mean((2, 3)) + 0.5 * x.amax((2, 3)))


def test_large_maps_are_averaged_down_before_a_head_sees_them() -> None:
    exit = build_exit(conv_heads(5)((8, 56, 56)), after=0, name="here")
    assert exit.reduce(torch.randn(2, 8, 56, 56)).shape == (2, 8, 14, 14)
    separable = (9 * 32 + 32 * 32) * 49
    assert count_macs(exit, torch.randn(2, 8, 56, 56)) == 9 * 8 * 32 * 49 + 2 * separable + 32 * 9 * 5


def test_a_head_saved_before_there_were_separable_convolutions_is_built_without() -> None:
    old = {key: value for key, value in conv_heads(5)((8, 14, 14)).items() if key != "separable"}
    assert build_exit(old, after=0, name="here").embedder.state_dict().keys() == (
        build_exit(conv_heads(5, separable=0)((8, 14, 14)), after=0, name="here").embedder.state_dict().keys()
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        SplitError, match=r"conv head needs a tap of 3 dimensions a sample, this one has shape \(17, 12\)"
    ):
        conv_heads(5)((17, 12))
    with pytest.raises(SplitError, match="dx.default_heads"):
        token_heads(5)((8, 6, 6))
    with pytest.raises(PolicyError, match="head kind 'magic'"):
        build_exit({"kind": "magic"}, after=0, name="here")


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("size", [(6, 6), (7, 9)])
def test_reduce_averages_squares_of_pixels(factor: int, size: tuple[int, int]) -> None:
    tap = torch.randn(2, 5, *size)
    wanted = F.avg_pool2d(tap, factor)
    assert_close(Reduce(channels_last=False, factor=factor)(tap), wanted)
    assert_close(Reduce(channels_last=True, factor=factor)(tap.permute(0, 2, 3, 1)), wanted)
