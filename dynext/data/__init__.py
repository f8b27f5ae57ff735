"""Where samples come from: published data sets, your files, few-shot episodes.

============================== ================================================================= ======================
function or class              what                                                              needs a download
============================== ================================================================= ======================
`bundled_sample`               500 unlabelled and 2,000 labelled images of Fashion-MNIST         no: ships with dynext
`digits`                       scikit-learn's handwritten digits                                 no: ship with it
`fashion_mnist`                Fashion-MNIST, Xiao et al. 2017, arXiv:1708.07747; from Debian's  30 MB, by
                               package, torchvision's folder or a download; `FASHION_CLASSES`    ``download=True``
`omniglot`                     Omniglot, Lake et al., Science 350, 2015; from its zips or what   up to 10 MB, by
                               they unpack to                                                    ``download=True``
`cifar10`                      CIFAR-10, from torchvision's folder or a ``.npz`` file            yes, by torchvision
`images`, `image`              a folder of image files, perhaps one sub-folder a class; one file no
`array`, `open_rows`           a ``.npz`` or ``.npy`` file; whatever holds unlabelled samples    no
`as_source`                    tensors, arrays, data sets, loaders, folders, files as a Source
`Samples`, `Batch`             samples in memory, and some of them on their way to a net
`augment`                      random shifts and mirror images
`Episodes`, `SameClasses`      few-shot episodes (`Episode`) drawn from labelled samples
`split_classes`                samples divided by class, so that no class is on two sides
`with_rotations`               turned classes as further classes
============================== ================================================================= ======================
"""

from dynext.data.datasets import (
    FASHION_CLASSES,
    array,
    bundled_sample,
    cifar10,
    digits,
    fashion_mnist,
    omniglot,
    open_rows,
)
from dynext.data.episodes import Episode, Episodes, SameClasses, split_classes, with_rotations
from dynext.data.folders import images
from dynext.data.image_pixels import image
from dynext.data.samples import Samples, augment
from dynext.data.sources import as_source
from dynext.types import Batch

__all__ = [
    "FASHION_CLASSES",
    "Batch",
    "Episode",
    "Episodes",
    "SameClasses",
    "Samples",
    "array",
    "as_source",
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
