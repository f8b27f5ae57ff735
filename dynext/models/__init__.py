"""Reference nets, and a catalog of nets of other libraries or of your own, which `dynext.open_model` opens.

============================== ============================================== ====================================
class or function              paper                                          reference for `dx.open_model`
============================== ============================================== ====================================
`ResNet`                       ResNet, CVPR 2016, the CIFAR nets              ``cifar:resnet20`` (32, 44, 56, 110)
`MSDNet`, `msdnet`             MSDNet, ICLR 2018; `msdnet` gives it with its  ``cifar:msdnet_anytime``,
                               early classifiers, `MSDNetConfig` its sizes    ``cifar:msdnet_budgeted``
`SqueezeNet`                   SqueezeNet, 2016, arXiv:1602.07360             ``cifar:squeezenet``
`MobileNetV2`                  MobileNetV2, CVPR 2018                         ``cifar:mobilenetv2``
a trained ResNet-20            on Fashion-MNIST, ships with dynext            ``bundled:fashion_resnet20``
torchvision's classifiers      weights are fetched only by ``@DEFAULT``       ``torchvision:resnet18@DEFAULT``
timm's classifiers             weights are fetched only by ``@pretrained``    ``timm:resnet18@pretrained``
Hugging Face's classifiers     fetched from the hub, or one saved in a folder ``hf:microsoft/resnet-18``,
                               of your own                                    ``hf:FOLDER``
your own                       a function in your file that gives the net     ``path/to/file.py:factory``
============================== ============================================== ====================================
"""

from dynext.models.compact import MobileNetV2, SqueezeNet
from dynext.models.multi_scale_densenet import MSDNet, MSDNetConfig, msdnet
from dynext.models.resnet import ResNet

__all__ = ["MSDNet", "MSDNetConfig", "MobileNetV2", "ResNet", "SqueezeNet", "msdnet"]
