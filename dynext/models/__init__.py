"""Reference nets, and the catalog that opens anybody's."""

from dynext.models.catalog import Opened, open_model, rebuild
from dynext.models.resnet import ResNet

__all__ = ["Opened", "ResNet", "open_model", "rebuild"]
