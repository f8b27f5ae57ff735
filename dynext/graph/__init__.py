"""nn.Module -> stages: tracing, cut points, stages that own their tensors. Knows nothing about exits.

`dynext.split` finds the stages. Beside it:

=================== ====================================================================================
function or class   what
=================== ====================================================================================
`stages_by_hand`    a chain of modules taken as the stages, for nets that cannot be traced
`StagedNet`         what both give: the stages, chained; `Stage` is one of them
=================== ====================================================================================
"""

from dynext.graph.hand import stages_by_hand
from dynext.graph.stage import Stage, StagedNet

__all__ = ["Stage", "StagedNet", "stages_by_hand"]
