"""Where samples come from: data sets, image files, arrays, episodes, the bundled files."""

from dynext.data.datasets import (
    FASHION_CLASSES,
    Rows,
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
from dynext.data.image_files import image

__all__ = [
    "FASHION_CLASSES",
    "Rows",
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
]
