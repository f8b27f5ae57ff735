"""Pure tensor functions, one for each published loss or reward."""

from dynext.losses.exits import distillation

__all__ = ["distillation"]
