"""Hugging Face's image classifiers ask for types and sizes everywhere; they are traced and cut at their layers."""

import pytest
import torch
from torch import Tensor, nn

from dynext.graph.private import private_copy
from dynext.graph.split import split
from dynext.graph.trace import trace

SMALL = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 10}


class Logits(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Swin"])
@torch.no_grad()
def test_nets_from_their_configs(kind, attention):
    transformers = pytest.importorskip("transformers")
    asked = {"image_size": 32, "patch_size": 8, **SMALL, "attn_implementation": attention}
    if kind == "Swin":
        asked = {
            "image_size": 32,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 2],
            "window_size": 4,
            "num_labels": 10,
        }
    config = getattr(transformers, f"{kind}Config")(**asked)
    model = Logits(getattr(transformers, f"{kind}ForImageClassification")(config)).eval()
    x = torch.randn(3, 3, 32, 32)
    assert trace(private_copy(model), x).meta["whole"] == ()
    staged = split(model, x[:1])
    assert staged.stages[0].macs < 0.6 * staged.macs
    assert staged.notes == ()
    for some in (x, x[:1]):
        torch.testing.assert_close(staged(some), model(some), rtol=1e-5, atol=1e-6)
