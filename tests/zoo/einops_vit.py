"""A ViT as the public ports write it: ``rearrange`` and ``repeat`` as functions, as layers and with a module's name."""

import einops
import torch
from einops import rearrange, repeat
from einops.layers.torch import Rearrange
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm, self.to_qkv, self.to_out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        _, n, _, h = *x.shape, self.heads
        qkv = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=h) for t in qkv)
        dots = torch.einsum("b h i d, b h j d -> b h i j", q, k) * self.scale
        dots = dots.masked_fill(torch.zeros(n, n, dtype=torch.bool, device=x.device), -torch.finfo(dots.dtype).max)
        out = einops.einsum(dots.softmax(-1), v, "b h i j, b h j d -> b h i d")
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class EinopsViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_patches = nn.Sequential(
            Rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=4, p2=4), nn.Linear(48, 16)
        )
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 5, 16))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [Attention(16, 2), nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))]
            )
            for _ in range(4)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, img: Tensor) -> Tensor:
        x = einops.rearrange(img, "b c h w -> b c w h")
        x = self.to_patches(x)
        b, n, _ = x.shape
        x = torch.cat((repeat(self.token, "1 1 d -> b 1 d", b=b), x), dim=1)
        x += self.position[:, : n + 1]
        for attend, feed in self.layers:
            x = attend(x) + x
            x = feed(x) + x
        return self.head(x[:, 0])
