"""`import dynext` waits for torch and little else."""

import json
import subprocess
import sys

LATER = {
    "higher", "lightly", "lightning_fabric", "matplotlib", "onnx", "onnxruntime", "onnxscript", "pandas", "pymoo",
    "scipy", "sklearn", "timm", "torch_pruning", "torchmetrics", "torchvision",
}  # fmt: skip
"""What single functions need, and import when they are called."""


def test_importing_dynext_imports_nothing_that_only_some_need():
    code = "import dynext, json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert {"dynext", "torch"} <= set(loaded)
    assert not LATER & set(loaded)
