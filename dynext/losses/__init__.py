"""Published losses and rewards: pure functions of tensors, which know no net. Each cites its equation.

Of exits, `dynext.losses.exits`:

=========================== ============================================================= ===========================
function                    paper                                                         used by
=========================== ============================================================= ===========================
`weighted_cross_entropy`    BranchyNet, ICPR 2016, eq. 1; MSDNet, ICLR 2018               `train.joint`, `imta`
`shallow_deep_weights`      Shallow-Deep Networks, ICML 2019, section 4.2                 `train.shallow_deep`
`distillation`              Hinton et al. 2015, section 2                                 `dx.distill`, `dx.prune`
`soft_cross_entropy`        the same, without the teacher's own entropy                   `multi_exit_loss`
`multi_exit_loss`           Phuong & Lampert, ICCV 2019, eq. 3                            `multi_exit_distillation`
`annealed_temperature`      Phuong & Lampert, ICCV 2019, section 4.1                      `multi_exit_distillation`
`self_distillation`         Be Your Own Teacher, ICCV 2019, eq. 1 to 4; SCAN; IMTA        `be_your_own_teacher`
`hint_loss`                 Be Your Own Teacher, ICCV 2019, eq. 4; SCAN, eq. 2            `be_your_own_teacher`
`survivor_weights`          Aperstein & Apartsin, Electronics 2026                        `dx.distill`
`exit_probabilities`        JEI-DNN, ICLR 2024, section 4                                 `train.jei_dnn`
`gate_targets`              JEI-DNN, ICLR 2024, section 4                                 `train.jei_dnn`
`gated_exit_loss`           JEI-DNN, ICLR 2024, section 4                                 `train.jei_dnn`
`attention_transfer`        Zagoruyko & Komodakis, ICLR 2017, eq. 2                       `dx.prune`
`attention_mimicry`         SAD, ICCV 2019, eq. 2                                         `dx.prune`
=========================== ============================================================= ===========================

Of gates that skip stages, `dynext.losses.gates`:

=========================== ============================================================= ===========================
function                    paper                                                         used by
=========================== ============================================================= ===========================
`log_probability`           Williams 1992; with a mixture, BlockDrop, CVPR 2018, eq. 6    both below
`reinforce`                 Williams 1992                                                 both below
`skipnet_returns`           SkipNet, ECCV 2018, eq. 3 and 4                               `train.skipnet_reinforce`
`leave_one_out_mean`        Kool et al., ICLR 2019 workshop: a baseline                   `train.skipnet_reinforce`
`blockdrop_reward`          BlockDrop, CVPR 2018, eq. 3                                   `blockdrop_curriculum`
`correctness`               what `blockdrop_reward` takes for a right answer              `blockdrop_curriculum`
`unlocked_gates`            BlockDrop, CVPR 2018, section 3.3                             `blockdrop_curriculum`
`exploration_bonus`         BlockDrop's code                                              `blockdrop_curriculum`
=========================== ============================================================= ===========================
"""

from dynext.losses.exits import (
    annealed_temperature,
    attention_mimicry,
    attention_transfer,
    distillation,
    exit_probabilities,
    gate_targets,
    gated_exit_loss,
    hint_loss,
    multi_exit_loss,
    self_distillation,
    shallow_deep_weights,
    soft_cross_entropy,
    survivor_weights,
    weighted_cross_entropy,
)
from dynext.losses.gates import (
    blockdrop_reward,
    correctness,
    exploration_bonus,
    leave_one_out_mean,
    log_probability,
    reinforce,
    skipnet_returns,
    unlocked_gates,
)

__all__ = [
    "annealed_temperature",
    "attention_mimicry",
    "attention_transfer",
    "blockdrop_reward",
    "correctness",
    "distillation",
    "exit_probabilities",
    "exploration_bonus",
    "gate_targets",
    "gated_exit_loss",
    "hint_loss",
    "leave_one_out_mean",
    "log_probability",
    "multi_exit_loss",
    "reinforce",
    "self_distillation",
    "shallow_deep_weights",
    "skipnet_returns",
    "soft_cross_entropy",
    "survivor_weights",
    "unlocked_gates",
    "weighted_cross_entropy",
]
