"""Without data: samples synthesized from a teacher alone, and the exits distilled on them.

`dynext.convert`, `dynext.synthesize` and `dynext.distill` are the main road. Beside them:

======================= ========================================================== ========================
function                what it does, paper                                        recipe
======================= ========================================================== ========================
`distill_jointly`       trunk and exits together, within a bound on drift; what    `zeroshot_joint.py`
                        is descended is a `JointLoss`
`in_rounds`             synthesize against the exits as they are, distil again     notebook 01
`quality`               what a bank shows: classes, entropy, BatchNorm distance    notebook 01
`estimate_shift`        how far thresholds from synthesized samples may be off     benchmark `zeroshot.py`
`bn_distance_of`        BatchNorm distance, DeepInversion, CVPR 2020               benchmark `zeroshot.py`
`cache_features`        what heads see of each sample, computed once               benchmark `zeroshot.py`
======================= ========================================================== ========================
"""

from dynext.net.features import Features, cache_features
from dynext.zeroshot.joint import JointLoss, distill_jointly
from dynext.zeroshot.rounds import in_rounds
from dynext.zeroshot.shift import bn_distance_of, estimate_shift
from dynext.zeroshot.synth.quality import quality

__all__ = [
    "Features",
    "JointLoss",
    "bn_distance_of",
    "cache_features",
    "distill_jointly",
    "estimate_shift",
    "in_rounds",
    "quality",
]
