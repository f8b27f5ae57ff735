"""Operators that ONNX lacks: taken apart to the same values, or refused by operator and layer in one plain line."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

import dynext as dx
from dynext.io.onnx_ops import _adaptive_max, reason

SPEC = dx.InputSpec(shape=(3, 8, 7), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("size", [(3, 5), (4, 7), (1, 1), (8, 7), (5, 2), (9, 10)])
def test_maxima_are_those_of_torch(size: tuple[int, int]) -> None:
    x = torch.randn(2, 4, 8, 7)
    assert_close(_adaptive_max(x, size)[0], functional.adaptive_max_pool2d(x, size))
    x = torch.randn(2, 4, 6, 8, 7)
    assert_close(_adaptive_max(x, (4, *size))[0], functional.adaptive_max_pool3d(x, (4, *size)))


class Mixed(nn.Module):
    """Every adaptive pooling that does not divide its input, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.pool, self.mean = nn.AdaptiveMaxPool2d((5, 4)), nn.AdaptiveAvgPool2d((3, 4))
        self.head = nn.Linear(28, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mean(self.pool(self.stem(x)))
        x = functional.adaptive_max_pool1d(x.flatten(2), 7)
        return self.head(functional.adaptive_max_pool3d(x.unflatten(1, (1, 4)).unsqueeze(-1), (4, 7, 1)).flatten(1))


def _exported(net: nn.Module, folder: Path) -> dx.DynamicNet:
    dynamic = dx.attach(dx.split(net.eval(), torch.zeros(1, *SPEC.shape)), dx.default_heads(5))
    dx.export(dynamic, folder, policy=dx.Policy.never(dynamic.num_exits), spec=SPEC, formats=["onnx"])
    return dynamic


def test_adaptive_pooling_of_any_size_is_exported(tmp_path: Path) -> None:
    dynamic, x = _exported(Mixed(), tmp_path / "net"), torch.randn(3, *SPEC.shape)
    live = [x.numpy()]
    for stage in range(len(dynamic.staged.stages)):
        session = onnxruntime.InferenceSession(tmp_path / "net" / f"stage_{stage:02}.onnx")
        live = session.run(None, {i.name: v for i, v in zip(session.get_inputs(), live, strict=True)})
    with torch.no_grad():
        np.testing.assert_allclose(live[0], dynamic.staged(x).numpy(), atol=1e-5)


class Singular(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.again, self.head = (
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3),
            nn.Linear(12, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.linalg.svdvals(self.again(self.relu(self.conv(x)))).flatten(1))


def test_an_unknown_operator_is_named_in_one_plain_line(tmp_path: Path) -> None:
    with pytest.raises(dx.DynextError, match=r"cannot be exported: ONNX export knows no aten\.\w*svd\w*") as caught:
        _exported(Singular(), tmp_path / "net")
    message = str(caught.value)
    assert "\x1b" not in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_other_reasons_are_whole_and_plain() -> None:
    error = RuntimeError("\x1b[96mFailed\x1b[0m to convert.\nNext steps:\n- wait")
    error.__cause__ = ValueError("sizes \x1b[31m3\x1b[0m and 4\n  differ\n\nTraceback: long")
    assert reason(error) == "ValueError: sizes 3 and 4 differ"
