"""Make torchvision importable beside a CPU-only torch.

PyPI's torchvision is built for CUDA torch. Beside a CPU build its compiled operators do not load,
and its import then fails on ``operator torchvision::nms does not exist``. Declaring the two missing
schemas is enough for models, transforms, timm and lightly; nothing here ever calls them.
"""

import importlib.util
from pathlib import Path

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[torch.library.Library] = []


def declare_torchvision_operators() -> bool:
    """Declare the missing operators once; says whether there was anything to do."""
    if _kept or _compiled_operators_load():
        return False
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + SCHEMA)
    _kept.append(library)  # a Library that is collected takes its operators along
    return True


def _compiled_operators_load() -> bool:
    """Whether torchvision's own extension loads beside this torch (it then defines the operators itself)."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    for extension in sorted(Path(spec.origin).parent.glob("_C*")):
        if extension.suffix not in (".so", ".pyd", ".dylib"):
            continue
        try:
            torch.ops.load_library(str(extension))
        except OSError:
            return False
        return True
    return False
