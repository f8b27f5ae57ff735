"""What an exit is made of: ``dx.attach(staged, head)`` puts one after each stage.

=================== ================================================================== =================================
function            head                                                               paper
=================== ================================================================== =================================
`default_heads`     what suits the tap: `conv_heads` on maps, `token_heads` on tokens
`conv_heads`        strided 3x3 and separable convolutions, 3x3 pooling, linear        MobileNet (separable), 2017
`strided_heads`     two strided convolutions, linear                                   MSDNet, ICLR 2018
`pooled_heads`      learned mix of maximum and average, linear                         Shallow-Deep Networks, ICML 2019
`attention_heads`   an attention module in front of `conv_heads`                       SCAN, NeurIPS 2019
`token_heads`       class token and mean of the tokens, one hidden layer
`masked_heads`      any head behind a mask of its own                                  `dynext.prune.lend_attention`
`cosine_heads`      any head with a cosine classifier                                  Gidaris & Komodakis, CVPR 2018
`Exit`              what all of them become: tap to embedding to logits
=================== ================================================================== =================================

A head of your own is any module of torch, tap ``[b ...]`` to logits ``[b k]``: ``dx.attach(staged, MyHead)`` calls the
class, or any function, with the tap's shape. `dynext.testing.check_head` says what is wrong with it.
"""

from dynext.modules.exits import (
    Exit,
    attention_heads,
    conv_heads,
    cosine_heads,
    default_heads,
    masked_heads,
    pooled_heads,
    strided_heads,
    token_heads,
)

__all__ = [
    "Exit",
    "attention_heads",
    "conv_heads",
    "cosine_heads",
    "default_heads",
    "masked_heads",
    "pooled_heads",
    "strided_heads",
    "token_heads",
]
