"""Training with labels, or with a teacher in their place. Each method takes a `DynamicNet` and gives a trained copy.

All are called alike: ``method(net, source, config=None, *, its own options, **fields of FitConfig)``. A config given
is taken as it is, else each method has its usual one; fields given as keywords replace those of either:
``dx.train.joint(net, samples, steps=600)``, ``dx.train.joint(net, samples, dx.FitConfig(steps=600, batch_size=64))``.

============================== ======================================================= =====================
function                       paper                                                   recipe
============================== ======================================================= =====================
`exits`                        a method of one's own: ``loss(logits_nek, y, net)``     docs/extend.md
`joint`                        BranchyNet, ICPR 2016; MSDNet, ICLR 2018                `exits_joint.py`
`mixed`                        Kubaty et al., ICML 2025                                `exits_joint.py`
`shallow_deep`                 Shallow-Deep Networks, ICML 2019                        `exits_frozen.py`
`multi_exit_distillation`      Phuong & Lampert, ICCV 2019                             `exits_joint.py`
`be_your_own_teacher`          Be Your Own Teacher, ICCV 2019                          `exits_joint.py`
`scan`                         SCAN, NeurIPS 2019                                      `exits_joint.py`
`imta`                         IMTA, ICCV 2019                                         `exits_joint.py`
`zero_time_waste`              Zero Time Waste, NeurIPS 2021                           `exits_frozen.py`
`boostnet`                     BoostNet, AAAI 2023                                     `exits_joint.py`
`jei_dnn`                      JEI-DNN, ICLR 2024                                      `exits_frozen.py`
`skipnet_pretrain`             SkipNet, ECCV 2018: gates, supervised                   `skipnet.py`
`skipnet_reinforce`            SkipNet, ECCV 2018: hybrid reinforcement                `skipnet.py`
`blockdrop_curriculum`         BlockDrop, CVPR 2018: policy network by a `Curriculum`  `blockdrop.py`
`blockdrop_finetune`           BlockDrop, CVPR 2018: both nets                         `blockdrop.py`
`rank_stages`, `at_equal_cost` controls: the best fixed set of blocks, chance          `skipnet.py`
============================== ======================================================= =====================
"""

from dynext.train.controls import at_equal_cost, rank_stages
from dynext.train.gate_loop import GateHistory
from dynext.train.methods.be_your_own_teacher import be_your_own_teacher
from dynext.train.methods.blockdrop import Curriculum, blockdrop_curriculum, blockdrop_finetune
from dynext.train.methods.boostnet import boostnet
from dynext.train.methods.imta import imta
from dynext.train.methods.jei_dnn import jei_dnn
from dynext.train.methods.joint import joint
from dynext.train.methods.mixed import mixed
from dynext.train.methods.multi_exit_distillation import multi_exit_distillation
from dynext.train.methods.own_loss import exits
from dynext.train.methods.scan import scan
from dynext.train.methods.shallow_deep import shallow_deep
from dynext.train.methods.skipnet import SkipNetReward, skipnet_pretrain, skipnet_reinforce
from dynext.train.methods.zero_time_waste import zero_time_waste

__all__ = [
    "Curriculum",
    "GateHistory",
    "SkipNetReward",
    "at_equal_cost",
    "be_your_own_teacher",
    "blockdrop_curriculum",
    "blockdrop_finetune",
    "boostnet",
    "exits",
    "imta",
    "jei_dnn",
    "joint",
    "mixed",
    "multi_exit_distillation",
    "rank_stages",
    "scan",
    "shallow_deep",
    "skipnet_pretrain",
    "skipnet_reinforce",
    "zero_time_waste",
]
