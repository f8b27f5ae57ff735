"""Classifiers as people write them, for `coverage.py`, with no thought of tracing.

Each takes images ``[b 3 32 32]`` and answers ten classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU(True)
    )


class LeNet(nn.Module):
    """`num_flat_features`, as in torch's first tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, self.num_flat_features(x))
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))

    def num_flat_features(self, x: Tensor) -> int:
        features = 1
        for size in x.size()[1:]:
            features *= size
        return features


class VGG(nn.Module):
    """Layers from a list of numbers and letters; `out.view(out.size(0), -1)`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for entry in (16, "M", 32, "M", 48, 48, "M", 64, "M", 64, "M"):
            if entry == "M":
                layers += [nn.MaxPool2d(2, 2)]
            else:
                layers += [
                    nn.Conv2d(width, int(entry), 3, padding=1),
                    nn.BatchNorm2d(int(entry)),
                    nn.ReLU(inplace=True),
                ]
                width = int(entry)
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.features(x)
        out = out.view(out.size(0), -1)
        return self.classifier(out)


class BasicBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    """The usual port, with its fixed pooling."""

    def __init__(self, block: Callable[[int, int, int], nn.Module] = BasicBlock) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(block(16, 16, 1), block(16, 16, 1))
        self.layer2 = nn.Sequential(block(16, 32, 2), block(32, 32, 1))
        self.layer3 = nn.Sequential(block(32, 64, 2), block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        out = out.view(out.size(0), -1)
        return self.linear(out)


class SqueezeBlock(nn.Module):
    """Squeeze and excitation by `b, c, _, _ = x.size()`."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv, self.pool = conv_bn(channels_in, channels, stride), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(channels, 8), nn.ReLU(inplace=True), nn.Linear(8, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        b, c, _, _ = x.size()
        y = self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1)
        return x * y.expand_as(x)


class PreActBlock(nn.Module):
    """The shortcut hangs on an attribute that only some blocks have."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels_in), nn.Conv2d(channels_in, channels, 3, stride, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, 1, 1)
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


class BatchSizeFirst(nn.Module):
    """`bs = x.size(0)` at the top, used at the bottom: a published EfficientNet-Lite does so."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 2)
        self.blocks = nn.ModuleList([conv_bn(16, 24), conv_bn(24, 32, 2), conv_bn(32, 48), conv_bn(48, 64, 2)])
        self.pool, self.dropout, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Dropout(0.2), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        bs = x.size(0)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.pool(x).view(bs, -1)
        return self.fc(self.dropout(x))


class DenseLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, 12, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(F.relu(self.bn(x))), x], 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.dense1 = nn.Sequential(*(DenseLayer(24 + 12 * index) for index in range(3)))
        self.trans1 = nn.Sequential(nn.BatchNorm2d(60), nn.ReLU(), nn.Conv2d(60, 30, 1))
        self.dense2 = nn.Sequential(*(DenseLayer(30 + 12 * index) for index in range(3)))
        self.bn, self.linear = nn.BatchNorm2d(66), nn.Linear(66, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.dense1(self.conv1(x))
        out = self.dense2(F.avg_pool2d(self.trans1(out), 2))
        out = F.avg_pool2d(F.relu(self.bn(out)), out.shape[-1])
        return self.linear(out.view(out.size(0), -1))


class ShuffleUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv_bn(width // 2, width // 2), nn.Conv2d(width // 2, width // 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        x = torch.cat((first, self.branch(second)), dim=1)
        batchsize, num_channels, height, width = x.data.size()
        x = x.view(batchsize, 2, num_channels // 2, height, width)
        x = torch.transpose(x, 1, 2).contiguous()
        return x.view(batchsize, -1, height, width)


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.fc = conv_bn(3, 32), conv_bn(32, 64, 2), nn.Linear(64, 10)
        self.units = nn.Sequential(*(ShuffleUnit(32) for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.tail(self.units(self.stem(x))).mean([2, 3]))


class CheckedEmbedding(nn.Module):
    """Asks what is the same for all samples, as Hugging Face's patch embeddings do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels, self.side = 3, 32
        self.proj = nn.Conv2d(3, width, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4, f"expected four dimensions, got {x.dim()}"  # noqa: S101
        _, channels, height, width = x.shape
        if channels != self.channels:
            raise ValueError("Make sure that the channels match with the ones set in the configuration.")
        if height != self.side or width != self.side:
            raise ValueError(f"Input image size ({height}*{width}) doesn't match model ({self.side}).")
        if x.dtype != self.proj.weight.dtype:
            x = x.to(self.proj.weight.dtype)
        if x.device != self.proj.weight.device:
            x = x.to(self.proj.weight.device)
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Attention with a scale and a softmax written out, and a mask that nobody gives."""

    def __init__(self, width: int, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = q @ k.transpose(-2, -1) / math.sqrt(C // self.heads)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, float("-inf"))
        x = x + self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, C))
        return x + self.mlp(x)


class HandwrittenViT(nn.Module):
    """Class token by `expand(B, -1, -1)`, positions cut to length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = CheckedEmbedding(48)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, 48)), nn.Parameter(torch.randn(1, 100, 48))
        self.layers = nn.ModuleList(Attention(48) for _ in range(6))
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        B = x.shape[0]
        x = self.embed(x)
        x = torch.cat((self.cls.expand(B, -1, -1), x), dim=1)
        x = x + self.pos[:, : x.size(1)]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class SequencePool(nn.Module):
    """A compact transformer: positions by `torch.arange`, pooling by learned weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = CheckedEmbedding(48), nn.Embedding(64, 48)
        self.layers, self.pool, self.fc = (
            nn.Sequential(*(Attention(48) for _ in range(5))),
            nn.Linear(48, 1),
            nn.Linear(48, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.positions(torch.arange(x.shape[1], device=x.device)).unsqueeze(0)
        x = self.layers(x)
        return self.fc(torch.matmul(F.softmax(self.pool(x), dim=1).transpose(-1, -2), x).squeeze(-2))


class EinopsAttention(nn.Module):
    def __init__(self, dim: int, heads: int = 4, dim_head: int = 12) -> None:
        super().__init__()
        self.heads, self.scale, self.norm = heads, dim_head**-0.5, nn.LayerNorm(dim)
        self.attend, self.to_qkv = nn.Softmax(dim=-1), nn.Linear(dim, heads * dim_head * 3, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        from einops import rearrange

        qkv = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in qkv)
        out = torch.matmul(self.attend(torch.matmul(q, k.transpose(-1, -2)) * self.scale), v)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class EinopsViT(nn.Module):
    """The usual public port: `Rearrange` as a layer, `repeat` of the class token."""

    def __init__(self) -> None:
        super().__init__()
        from einops.layers.torch import Rearrange

        self.to_patch_embedding = nn.Sequential(
            Rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=4, p2=4),
            nn.LayerNorm(48),
            nn.Linear(48, 48),
            nn.LayerNorm(48),
        )
        self.pos_embedding = nn.Parameter(torch.randn(1, 65, 48))
        self.cls_token, self.dropout = nn.Parameter(torch.randn(1, 1, 48)), nn.Dropout(0.0)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [EinopsAttention(48), nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))]
            )
            for _ in range(5)
        )
        self.pool, self.to_latent, self.mlp_head = "cls", nn.Identity(), nn.Linear(48, 10)

    def forward(self, img: Tensor) -> Tensor:
        from einops import repeat

        x = self.to_patch_embedding(img)
        b, n, _ = x.shape
        x = torch.cat((repeat(self.cls_token, "1 1 d -> b 1 d", b=b), x), dim=1)
        x += self.pos_embedding[:, : (n + 1)]
        x = self.dropout(x)
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        x = x.mean(dim=1) if self.pool == "mean" else x[:, 0]
        return self.mlp_head(self.to_latent(x))


class EinopsMixer(nn.Module):
    """`reduce` in place of a pooling."""

    def __init__(self) -> None:
        super().__init__()
        from einops.layers.torch import Rearrange, Reduce

        def mixing(width: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

        self.stem = nn.Sequential(nn.Conv2d(3, 48, 4, 4), Rearrange("b c h w -> b (h w) c"))
        self.tokens, self.features = (
            nn.ModuleList(mixing(64) for _ in range(4)),
            nn.ModuleList(mixing(48) for _ in range(4)),
        )
        self.norms, self.pool, self.fc = (
            nn.ModuleList(nn.LayerNorm(48) for _ in range(4)),
            Reduce("b n c -> b c", "mean"),
            nn.Linear(48, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, tokens, features in zip(self.norms, self.tokens, self.features, strict=False):
            x = x + tokens(norm(x).transpose(1, 2)).transpose(1, 2)
            x = x + features(x)
        return self.fc(self.pool(x))


class Inception(nn.Module):
    """Auxiliary answers in training, one in evaluation; branches in a list."""

    class Mixed(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.branches = nn.ModuleList(
                [nn.Conv2d(width, 16, 1), conv_bn(width, 24), nn.Sequential(nn.Conv2d(width, 8, 1), conv_bn(8, 24))]
            )

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([branch(x) for branch in self.branches], dim=1)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mixed1, self.mixed2 = conv_bn(3, 32), self.Mixed(32), self.Mixed(64)
        self.mixed3, self.aux, self.fc = self.Mixed(64), nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Any:
        x = F.max_pool2d(self.mixed1(self.stem(x)), 3, stride=2, padding=1)
        aux = self.aux(x.mean((2, 3))) if self.training else None
        x = torch.flatten(F.adaptive_avg_pool2d(self.mixed3(self.mixed2(x)), 1), 1)
        x = F.dropout(x, p=0.4, training=self.training)
        return (self.fc(x), aux) if self.training else self.fc(x)


class Recomputed(nn.Module):
    """Activations are computed again in the backward pass, to save memory in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = conv_bn(3, 16), nn.ModuleList(BasicBlock(16, 16, 1) for _ in range(4))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.training and x.requires_grad else block(x)
        return self.fc(x.mean((-1, -2)))


class DropPath(nn.Module):
    """Blocks dropped at random in training, with a mask of the batch's size; positions interpolated on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = conv_bn(3, 24), nn.ModuleList(conv_bn(24, 24) for _ in range(4))
        self.pos, self.fc = nn.Parameter(torch.randn(1, 24, 16, 16)), nn.Linear(24, 10)

    def drop(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.empty((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device).bernoulli_(0.8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.pos.shape[-2:] != x.shape[-2:]:
            x = x + F.interpolate(self.pos, size=x.shape[-2:], mode="bilinear", align_corners=False)
        for block in self.blocks:
            x = x + self.drop(block(x))
        return self.fc(x.mean(dim=(2, 3)))


class ArgsWrapper(nn.Module):
    """`forward(*args)`, as generic wrappers have it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


class DictWrapper(nn.Module):
    """Answers with a dict, as training code of several losses likes it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(x)}


def normed(kind: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A VGG whose convolutions have computed weights."""
    model = VGG()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            kind(module)
    return model


def masked() -> nn.Module:
    """A VGG with a pruning mask on its convolutions, as torch's own pruning leaves it."""
    from torch.nn.utils import prune

    return normed(lambda layer: prune.l1_unstructured(layer, "weight", 0.3))


HANDWRITTEN: dict[str, Callable[[], nn.Module]] = {
    "lenet": LeNet,
    "vgg": VGG,
    "cifar_resnet": CifarResNet,
    "senet": lambda: CifarResNet(SqueezeBlock),
    "preact_resnet": lambda: CifarResNet(PreActBlock),
    "batch_size_first": BatchSizeFirst,
    "densenet": DenseNet,
    "shufflenet": ShuffleNet,
    "vit": HandwrittenViT,
    "sequence_pool": SequencePool,
    "einops_vit": EinopsViT,
    "einops_mixer": EinopsMixer,
    "inception": Inception,
    "recomputed": Recomputed,
    "drop_path": DropPath,
}
"""Nets by name."""

WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "data_parallel": lambda: nn.DataParallel(CifarResNet()),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(CifarResNet()),
    "compiled": lambda: torch.compile(CifarResNet(), backend="eager"),
    "compiled_parallel": lambda: torch.compile(nn.DataParallel(VGG()), backend="eager"),
    "args": lambda: ArgsWrapper(CifarResNet()),
    "args_twice": lambda: ArgsWrapper(ArgsWrapper(VGG())),
    "dict": lambda: DictWrapper(CifarResNet()),
    "weight_norm": lambda: normed(nn.utils.parametrizations.weight_norm),
    "weight_norm_hook": lambda: normed(nn.utils.weight_norm),
    "spectral_norm": lambda: normed(nn.utils.parametrizations.spectral_norm),
    "mask": masked,
}
"""Forms that training leaves models in."""
