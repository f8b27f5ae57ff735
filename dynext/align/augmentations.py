"""Random views of images: what may change about a sample without changing what it shows.

Shapes: b samples, c channels, h height, w width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from dynext.errors import FitError
from dynext.seeding import seeded
from dynext.types import InputSpec

BLUR_FROM = 16
"""Images with fewer pixels a side are not blurred: the smallest kernel would leave little of them."""


@dataclass(frozen=True, kw_only=True)
class Augmentations:
    """Random crops, mirror images and, where pixels are known, light, color and blur: torchvision's, sample by sample.

    The strengths are SimCLR's for small images (Chen et al., ICML 2020, arXiv:2002.05709, appendix B.9), the crops
    milder: an early exit sees less of a net than a whole one. Gray images get light and contrast alone.
    """

    count: Literal[1, 2] = 2
    """Views of a sample that are compared: one (early and last exit see the same), or two."""
    area: float = 0.4
    """Smallest crop, as a share of the image."""
    mirror: float = 0.5
    """How often an image is mirrored; 0 for digits and letters."""
    jitter: float = 0.4
    """Most that brightness and contrast (and saturation) are changed by, as a share; hue by a quarter of it."""
    blur: float = 0.2
    """How often an image is blurred."""
    copies: int = 2
    """With a frozen trunk, how many views of each sample are made beforehand and drawn from."""

    def __post_init__(self) -> None:
        if self.count not in (1, 2) or self.copies < self.count:
            raise FitError(f"count={self.count}, copies={self.copies}; compare 1 or 2 views, of as many copies or more")
        if not 0 < self.area <= 1 or not all(0 <= share <= 1 for share in (self.mirror, self.jitter, self.blur)):
            raise FitError(
                f"area={self.area}, mirror={self.mirror}, jitter={self.jitter}, blur={self.blur}; give shares in "
                f"[0, 1], an area above 0"
            )

    def __call__(self, x: Tensor, draw: Generator, spec: InputSpec | None = None) -> Tensor:
        """One view of each sample ``[b c h w]``; without ``spec``, which knows the pixels, crops and mirror images
        alone.

        Raises:
            FitError: samples that are no images.
        """
        if x.ndim != 4:
            raise FitError(
                f"samples of shape {tuple(x.shape[1:])} have no views, images [c h w] do; leave augmentations out"
            )
        colored = spec is not None and x.shape[1] in (1, 3)
        transform = self._transform(tuple(x.shape[1:]), colored)
        pixels = spec.pixels(x) if colored and spec is not None else x
        with seeded(int(torch.randint(2**62, (), generator=draw))):
            changed = torch.stack([transform(image) for image in pixels.cpu()]).to(x)
        return spec.normalize(changed) if colored and spec is not None else changed

    def _transform(self, shape: tuple[int, ...], colored: bool) -> Any:
        from torchvision.transforms import v2  # seconds to import

        side = min(shape[1:])
        steps = [
            v2.RandomResizedCrop(shape[1:], scale=(self.area, 1.0), antialias=True),
            v2.RandomHorizontalFlip(self.mirror),
        ]
        if colored and self.jitter:
            strengths = (self.jitter, self.jitter) if shape[0] == 1 else (*[self.jitter] * 3, self.jitter / 4)
            steps.append(v2.ColorJitter(*strengths))
        if colored and self.blur and side >= BLUR_FROM:
            kernel = max(side // 10, 3) // 2 * 2 + 1
            steps.append(v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], self.blur))
        return v2.Compose(steps)
