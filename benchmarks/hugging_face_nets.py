"""Hugging Face's classifiers for `coverage.py`, built from small configurations with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SIDE = 64
WORDS = 200
"""Vocabulary of the text classifiers."""
LENGTH = 16
"""How many ids a text has."""

VIT: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}

IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTConfig", VIT),
    "deit": ("DeiTConfig", {**VIT, "architectures": ["DeiTForImageClassification"]}),
    "beit": ("BeitConfig", {**VIT, "use_relative_position_bias": True}),
    "data2vec_vision": ("Data2VecVisionConfig", VIT),
    "dinov2": ("Dinov2Config", {**VIT, "mlp_ratio": 2}),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", {**VIT, "mlp_ratio": 2}),
    "vit_msn": ("ViTMSNConfig", VIT),
    "swin": (
        "SwinConfig",
        {
            "image_size": SIDE,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2, 2],
            "num_heads": [1, 2, 4],
            "window_size": 4,
        },
    ),
    "swinv2": (
        "Swinv2Config",
        {
            "image_size": SIDE,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2, 2],
            "num_heads": [1, 2, 4],
            "window_size": 4,
        },
    ),
    "convnext": ("ConvNextConfig", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 2, 1], "image_size": SIDE}),
    "convnextv2": ("ConvNextV2Config", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 2, 1], "image_size": SIDE}),
    "resnet": (
        "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 2, 1], "layer_type": "basic"},
    ),
    "regnet": (
        "RegNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 2, 1], "groups_width": 8},
    ),
    "bit": (
        "BitConfig",
        {"embedding_size": 16, "num_groups": 8, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 2, 2, 1]},
    ),
    "mobilevit": (
        "MobileViTConfig",
        {
            "image_size": SIDE,
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 16, 16, 24, 24, 32, 64],
            "num_attention_heads": 2,
        },
    ),
    "mobilevitv2": ("MobileViTV2Config", {"image_size": SIDE, "width_multiplier": 0.25}),
    "mobilenet_v1": ("MobileNetV1Config", {"image_size": SIDE, "depth_multiplier": 0.25}),
    "mobilenet_v2": ("MobileNetV2Config", {"image_size": SIDE, "depth_multiplier": 0.35}),
    "efficientnet": (
        "EfficientNetConfig",
        {"image_size": SIDE, "width_coefficient": 0.35, "depth_coefficient": 0.5, "hidden_dim": 448},
    ),
    "poolformer": ("PoolFormerConfig", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 2, 1]}),
    "levit": (
        "LevitConfig",
        {
            "image_size": 128,
            "architectures": ["LevitForImageClassification"],
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [2, 2, 2],
            "key_dim": [8, 8, 8],
        },
    ),
    "segformer": (
        "SegformerConfig",
        {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4]},
    ),
    "cvt": ("CvtConfig", {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}),
    "pvt_v2": (
        "PvtV2Config",
        {
            "image_size": SIDE,
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 2, 2, 1],
            "num_attention_heads": [1, 2, 3, 4],
        },
    ),
    "focalnet": ("FocalNetConfig", {"image_size": SIDE, "embed_dim": 16, "depths": [1, 2, 2, 1]}),
}
"""Image classifiers: their configuration's class, and what makes it small and still several stages deep."""

TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", TEXT),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": WORDS, "dim": 48, "n_layers": 6, "n_heads": 3, "hidden_dim": 96, "max_position_embeddings": 64},
    ),
    "roberta": ("RobertaConfig", TEXT),
    "electra": ("ElectraConfig", {**TEXT, "embedding_size": 48}),
}
"""Text classifiers, bound to the ids of words."""


class OfIds(nn.Module):
    """A text classifier that takes the ids of words alone, as a classifier of one input has to."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.net(input_ids=input_ids).logits


def builder(name: str) -> Callable[[], nn.Module]:
    """What builds the net; importing transformers waits until then."""

    def build() -> nn.Module:
        import transformers

        kind, settings = {**IMAGES, **TEXTS}[name]
        config = getattr(transformers, kind)(**settings, num_labels=10)
        if name in TEXTS:
            return OfIds(transformers.AutoModelForSequenceClassification.from_config(config))
        return transformers.AutoModelForImageClassification.from_config(config)

    return build


def shape(name: str) -> tuple[int, ...]:
    """Of one sample: an image, or ids."""
    if name in TEXTS:
        return (LENGTH,)
    side = IMAGES[name][1].get("image_size", SIDE)
    return (3, side, side)
