"""nn.Module -> stages: tracing, cut points, stages that own their tensors. Knows nothing about exits.

`dynext.split` finds the stages; `stages_by_hand` takes them as given.
"""

from dynext.graph.hand import stages_by_hand
from dynext.graph.macs import count_macs, param_bytes, row_bytes
from dynext.graph.stage import Stage, StagedNet

__all__ = ["Stage", "StagedNet", "count_macs", "param_bytes", "row_bytes", "stages_by_hand"]
