"""Smaller dynamic nets, and attention that later layers lend to exits and take back before the net is used.

======================= ========================================================== =====================
function                what it does, paper                                        recipe
======================= ========================================================== =====================
`make_smaller`          rank, cut, fine-tune and quantize in one call; what goes   `prune_small.py`
                        is said by a `Removal`
`rank`, `apply_plan`    which channels and blocks go (DepGraph, CVPR 2023), as a   `prune_small.py`
                        `PruningPlan` of `Cut`s; and a net without them
`finetune`              distillation from the net before, Hinton et al. 2015       `prune_small.py`
`quantize`              8 bits, Jacob et al., CVPR 2018                            `prune_small.py`
`distill_static`        a compact static net from a larger one                     `prune_compact.py`
`lend_attention`        modules that see later layers, beside each exit (ours)     `prune_attention.py`
`distill_attention`     their masks distilled into the exit's own                  `prune_attention.py`
`transfer_attention`    SAD, ICCV 2019: each stage mimics the next one's map       `prune_attention.py`
`detach`                takes the lent modules off again                           `prune_attention.py`
`attention_map` ...     maps of what exits attend to, ICLR 2017; CAM, CVPR 2016    notebook 06
======================= ========================================================== =====================
"""

from dynext.net.cam import class_activation
from dynext.prune.apply import apply_plan
from dynext.prune.attention import distill_attention, transfer_attention
from dynext.prune.attention_maps import activation_maps, attention_map, gradient_maps
from dynext.prune.auxiliary import detach, lend_attention
from dynext.prune.finetuning import distill_static, finetune
from dynext.prune.pipeline import make_smaller
from dynext.prune.plan import Cut, PruningPlan
from dynext.prune.quantization import quantize
from dynext.prune.ranking import Removal, rank

__all__ = [
    "Cut",
    "PruningPlan",
    "Removal",
    "activation_maps",
    "apply_plan",
    "attention_map",
    "class_activation",
    "detach",
    "distill_attention",
    "distill_static",
    "finetune",
    "gradient_maps",
    "lend_attention",
    "make_smaller",
    "quantize",
    "rank",
    "transfer_attention",
]
