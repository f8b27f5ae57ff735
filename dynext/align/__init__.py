"""Self-supervised exit alignment: early exits that see a sample as the last exit does, and what few labels then give.

======================= ========================================================== =====================
function                what it does, paper                                        recipe
======================= ========================================================== =====================
`align_exits`           pulls each exit's embedding to the last one's: SimSiam,    `align_exits.py`
                        NT-Xent, Barlow Twins, VICReg, SelfCon, l2, cosine
`rechoose`              thresholds anew, with a report of before and after         `align_exits.py`
`few_shot`              cosine classifiers for new classes at every exit           `align_few_shot.py`
`zero_shot`             the last classifier's class vectors at every exit          `align_few_shot.py`
`embed`, `prototypes`   embeddings of every exit; class means among them           `align_few_shot.py`
`cka`                   similarity of exits, Kornblith et al., ICML 2019           `align_exits.py`
`held_out_accuracy`     accuracy on classes that an exit has not seen              `align_few_shot.py`
======================= ========================================================== =====================
"""

from dynext.align.augmentations import Augmentations
from dynext.align.few_and_zero_shot import few_shot, zero_shot
from dynext.align.measure import cka, held_out_accuracy
from dynext.align.projection_heads import final_prototypes
from dynext.align.report import rechoose
from dynext.align.result import Alignment
from dynext.align.settings import AlignmentTerm, FromTeacher, JointTrunk
from dynext.align.train import align_exits
from dynext.net.embeddings import Embeddings, embed
from dynext.net.prototypes import Prototypes, draw_shots, prototypes

__all__ = [
    "Alignment",
    "AlignmentTerm",
    "Augmentations",
    "Embeddings",
    "FromTeacher",
    "JointTrunk",
    "Prototypes",
    "align_exits",
    "cka",
    "draw_shots",
    "embed",
    "few_shot",
    "final_prototypes",
    "held_out_accuracy",
    "prototypes",
    "rechoose",
    "zero_shot",
]
