"""Where samples come from: data sets, image files, arrays, episodes, the bundled files."""

from dynext.data.datasets import (
    FASHION_CLASSES,
    Samples,
    array,
    augment,
    bundled_sample,
    cifar10,
    digits,
    fashion_mnist,
    images,
    omniglot,
    open_rows,
)
from dynext.data.episodes import Episode, Episodes, SameClasses, split_classes, with_rotations
from dynext.data.image_files import image
from dynext.types import Batch

__all__ = [
    "FASHION_CLASSES",
    "Batch",
    "Episode",
    "Episodes",
    "SameClasses",
    "Samples",
    "array",
    "augment",
    "bundled_sample",
    "cifar10",
    "digits",
    "fashion_mnist",
    "image",
    "images",
    "omniglot",
    "open_rows",
    "split_classes",
    "with_rotations",
]
