"""Exits as tasks: parameters from which each exit is learned, and new classes at each exit, from a few labelled
samples.

======================= ========================================================== ==========================
function                what it does, paper                                        recipe
======================= ========================================================== ==========================
`adapt`                 a net for new classes or for shifted ones; class means     `meta_adapt.py`
                        (Snell, NeurIPS 2017) or a few gradient steps
`meta_train`            a net to start from: MAML (ICML 2017), Reptile (2018),     `meta_few_shot.py`
                        ANIL (ICLR 2020), Meta-SGD (2017), prototypes
`InnerLoop`             which of these, and its settings                           `meta_held_out_exit.py`
`MetaStart`             the net that `meta_train` gives, with its inner loop        `meta_few_shot.py`
`evaluate_episodes`     accuracy of every exit over few-shot episodes              `meta_few_shot.py`
`ownership`             what each exit's task owns, shares and adapts              `meta_held_out_exit.py`
`meta_fusion`           Meta-GF, ECCV 2022: exits trained apart, then fused        benchmark `meta_fewshot.py`
`weigh_samples`         L2W-DEN, ECCV 2022: learned weights of samples             test table `methods.py`
`add_classes`           old classes kept bit for bit, new ones from a few images   test table `methods.py`
`with_classes`          the same trunk and embeddings, new classifiers             `meta_few_shot.py`
======================= ========================================================== ==========================

Which one when, with a few labelled samples:

====================================================== =================================================
there is                                               take
====================================================== =================================================
new classes in place of the old, 5 samples of each     `adapt`: class means, a policy with them
the same, and the exits were aligned                   `dynext.align.few_shot`: cosines, no gradient
new classes beside the old                             `add_classes`, with some old samples
a class that early exits never saw, no sample          `dynext.align.zero_shot`, after `align_exits`
the same classes, the images have changed              `adapt` with ``classifiers="kept"`` and steps
one sample of each class                               `adapt` with a ``policy`` of other episodes
many small tasks to come                               `meta_train` once, then `adapt` for each
====================================================== =================================================
"""

from dynext.meta.adaptation import adapt
from dynext.meta.added_classes import add_classes
from dynext.meta.exit_ownership import ownership
from dynext.meta.few_shot import evaluate_episodes
from dynext.meta.inner import InnerLoop
from dynext.meta.l2w_den import weigh_samples
from dynext.meta.meta_gf import meta_fusion
from dynext.meta.new_classes import recipe_with_classes, with_classes
from dynext.meta.start import MetaStart
from dynext.meta.train import meta_train

__all__ = [
    "InnerLoop",
    "MetaStart",
    "adapt",
    "add_classes",
    "evaluate_episodes",
    "meta_fusion",
    "meta_train",
    "ownership",
    "recipe_with_classes",
    "weigh_samples",
    "with_classes",
]
