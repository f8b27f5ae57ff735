"""What decides whether a sample skips a stage: ``dx.attach_gates(net, gates)`` puts one before each such stage.

=================== ================================================================== ====================
function            gates                                                              paper
=================== ================================================================== ====================
`feedforward_gates` a small net on each stage's input (FFGate-I, FFGate-II)            SkipNet, ECCV 2018
`recurrent_gates`   one LSTM shared by all stages                                      SkipNet, ECCV 2018
`policy_gates`      one net that sees the image once and decides about all stages      BlockDrop, CVPR 2018
`static_gates`      the same stages for every sample (a control)
`random_gates`      stages by chance (a control)
=================== ================================================================== ====================

A gate of your own is any module of torch, what goes into a stage ``[b ...]`` to a logit ``[b]``:
``dx.attach_gates(net, MyGate)`` calls the class, or any function, with that shape. `dynext.testing.check_gates` says
what is wrong with it.
"""

from dynext.modules.gates import (
    feedforward_gates,
    policy_gates,
    random_gates,
    recurrent_gates,
    static_gates,
)

__all__ = [
    "feedforward_gates",
    "policy_gates",
    "random_gates",
    "recurrent_gates",
    "static_gates",
]
