"""nn.Module -> stages: tracing, cut points, stages that own their tensors. Knows nothing about exits."""

from dynext.graph.hand import stages_by_hand
from dynext.graph.macs import count_macs, param_bytes, row_bytes
from dynext.graph.split import split
from dynext.graph.stage import Stage, StagedNet

__all__ = ["Stage", "StagedNet", "count_macs", "param_bytes", "row_bytes", "split", "stages_by_hand"]
