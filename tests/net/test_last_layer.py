"""Which layer the logits come from: the layer whose output they are, and the layer that decides them."""

import pytest
import torch
from torch import nn
from zoo import build

from dynext.errors import FitError
from dynext.modules.layer_outputs import logits_layer
from dynext.net.last_layer import deciding_layer


class Cooled(nn.Module):
    """A bottleneck as wide as there are classes, a last layer, and perhaps a temperature behind it."""

    def __init__(self, temperature: float | None) -> None:
        super().__init__()
        self.squeeze, self.last, self.temperature = nn.Linear(192, 4), nn.Linear(4, 4), temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.last(self.squeeze(x.flatten(1)).relu())
        return logits if self.temperature is None else logits / self.temperature


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_something_behind_it_hides_the_logits_layer_and_not_the_deciding_one(temperature: float | None) -> None:
    model, x = build(lambda: Cooled(temperature))
    model.train()
    layer = logits_layer(model, x, [model.squeeze, model.last])
    assert layer is (model.last if temperature is None else None)
    assert deciding_layer(model, x) is model.last
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_what_does_not_decide_is_not_taken_for_it() -> None:
    model, x = build(lambda: Cooled(None))
    assert logits_layer(model, x, [model.squeeze]) is None
    model.forward = lambda x: model.squeeze(x.flatten(1)).relu() @ torch.zeros(4, 4)
    with pytest.raises(FitError, match="Cooled has no last linear layer .* whose 4 outputs decide its answer"):
        deciding_layer(model, x)
