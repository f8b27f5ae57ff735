"""Class activation of exits: where on an image an exit's evidence lies, beside the image's edges, as numbers and as
pictures. Part of `exits.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dynext as dx


def edge_correlations(net: dx.DynamicNet, samples: dx.data.Samples) -> dict[str, Any]:
    """Mean correlation of each exit's class activation maps with the edges of the images (Sobel)."""
    x = samples.take(torch.arange(256)).x
    edges = sobel(x.mean(1, keepdim=True))
    correlation_e = []
    for e in range(net.num_exits):
        maps = F.interpolate(dx.prune.class_activation(net, x, e)[:, None], size=x.shape[-2:], mode="bilinear")
        a, b = (part.flatten(1) - part.flatten(1).mean(1, keepdim=True) for part in (maps, edges))
        cosine = F.cosine_similarity(a, b)
        correlation_e.append(float(cosine[maps.flatten(1).std(1) > 0].mean()))
    return {"edges": correlation_e}


def sobel(x: Tensor) -> Tensor:
    """Strength of the edges of gray images ``[n 1 h w]``."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    both = F.conv2d(x, torch.stack([kernel, kernel.T])[:, None], padding=1)
    return both.square().sum(1, keepdim=True).sqrt()


def pictures(net: dx.DynamicNet, samples: dx.data.Samples, folder: Path | None, seed: int) -> None:
    """Ten images, and below each the class activation map of every exit."""
    if folder is None:
        return
    import matplotlib.pyplot as plt

    x = samples.take(torch.arange(10)).x
    size = (10, net.num_exits + 1)
    drawn, axes = plt.subplots(size[1], size[0], figsize=(size[0], size[1]), squeeze=False)
    for n, image in enumerate(samples.spec.pixels(x)):
        axes[0][n].imshow(image[0], cmap="gray")
    for e in range(net.num_exits):
        for n, activation in enumerate(dx.prune.class_activation(net, x, e)):
            axes[e + 1][n].imshow(activation, cmap="magma")
    for axis in axes.flat:
        axis.axis("off")
    folder.mkdir(parents=True, exist_ok=True)
    drawn.savefig(folder / f"exit_activation_{seed}.png", dpi=100)
    plt.close(drawn)
