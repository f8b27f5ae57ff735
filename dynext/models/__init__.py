"""Reference nets, and the catalog that opens anybody's."""

from dynext.models.catalog import Opened, open_model, rebuild
from dynext.models.compact import MobileNetV2, SqueezeNet
from dynext.models.multi_scale_densenet import MSDNet, msdnet
from dynext.models.resnet import ResNet

__all__ = ["MSDNet", "MobileNetV2", "Opened", "ResNet", "SqueezeNet", "msdnet", "open_model", "rebuild"]
