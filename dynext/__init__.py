"""dynext: a pretrained static classifier, made dynamic, without its training data.

    net    = dx.attach(dx.split(teacher, example), dx.default_heads(10))
    bank   = dx.synthesize(teacher, shape=(3, 32, 32), n=4096, seed=0)      # no data parameter, by design
    net    = dx.distill(net, teacher, bank, steps=2000, seed=0)
    table  = dx.collect(net, bank)
    policy = dx.choose(table, budget=0.5, temperature=dx.calibrate(table))
    print(dx.report(table, policy))
    out    = net.run(x, policy)                                             # logits [b k], exit [b], macs [b]

`dx.convert` is these lines in one call, and `dynext convert` that call from a shell.
"""

from dynext import compat

compat.declare_torchvision_operators()

from dynext import data, losses, models, testing
from dynext.align.alignment import Alignment
from dynext.align.measure import HeldOut, cka, held_out_accuracy
from dynext.align.report import Rechosen, rechoose
from dynext.align.space import Space, final_prototypes
from dynext.align.train import align
from dynext.align.use import few_shot, zero_shot
from dynext.align.views import Views
from dynext.artifact import Artifact, load, save
from dynext.core.calibrate import Calibration, calibrate
from dynext.core.cam import class_activation
from dynext.core.cascade import cascade
from dynext.core.collect import collect
from dynext.core.confidence import CONFIDENCES, Learned, confidence
from dynext.core.control import control_risk
from dynext.core.cost import CostTable, measure
from dynext.core.embeddings import Embeddings, embed
from dynext.core.exact import exact_front
from dynext.core.exits import (
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
from dynext.core.export import export
from dynext.core.features import Features, cache_features
from dynext.core.front import Front
from dynext.core.gates import (
    Gates,
    feedforward_gates,
    policy_gates,
    random_gates,
    recurrent_gates,
    static_gates,
)
from dynext.core.genetic import genetic_front
from dynext.core.modes import batch_statistics
from dynext.core.net import DynamicNet, attach, attach_gates
from dynext.core.page import write_page
from dynext.core.policy import Policy
from dynext.core.prototypes import Prototypes, draw_shots, prototypes
from dynext.core.quota import quota_front
from dynext.core.reclassify import reclassify
from dynext.core.report import Report, report
from dynext.core.run_batch import run_batch
from dynext.core.search import choose
from dynext.core.spend import BatchPlan, plan_batch, simulate_batch
from dynext.core.table import ExitTable, Outcome, oracle, simulate
from dynext.core.timing import Timing, side_by_side
from dynext.episodes import Episode, Episodes, SameClasses, split_classes, with_rotations
from dynext.errors import (
    ArtifactError,
    DynextError,
    FitError,
    ModelError,
    PlanError,
    PolicyError,
    SourceError,
    SplitError,
)
from dynext.fit import FitConfig, FitResult, fit
from dynext.graph import Stage, StagedNet, split, stages_by_hand
from dynext.meta.adapt import Adaptation, adapt
from dynext.meta.classes import recipe_with_classes, with_classes
from dynext.meta.few_shot import FewShot, evaluate_episodes
from dynext.meta.fusion import meta_fusion
from dynext.meta.inner import InnerLoop
from dynext.meta.ownership import Ownership, ownership
from dynext.meta.start import MetaStart
from dynext.meta.tasks import Task, tasks
from dynext.meta.train import meta_train
from dynext.meta.weigh import weigh_rows
from dynext.models.catalog import Opened, open_model
from dynext.prune.apply import apply_plan
from dynext.prune.attention import distill_attention, transfer_attention
from dynext.prune.auxiliary import Auxiliary, detach, lend_attention
from dynext.prune.finetune import distill_static, finetune
from dynext.prune.make import Pruned, make_smaller
from dynext.prune.maps import activation_maps, attention_map, gradient_maps
from dynext.prune.plan import Cut, Plan
from dynext.prune.quantize import quantize
from dynext.prune.rank import rank
from dynext.recipe import recipe_cli
from dynext.seeding import seeded
from dynext.train.blockdrop import blockdrop_curriculum, blockdrop_finetune
from dynext.train.boosting import boostnet
from dynext.train.controls import Ranking, at_equal_cost, random_control, rank_stages, static_control
from dynext.train.gates import GateFit, GateTraining
from dynext.train.imta import imta
from dynext.train.jei_dnn import jei_dnn
from dynext.train.joint import train_jointly
from dynext.train.mixed import train_mixed
from dynext.train.multi_exit import multi_exit_distillation
from dynext.train.own_teacher import be_your_own_teacher
from dynext.train.scan import scan
from dynext.train.shallow_deep import shallow_deep
from dynext.train.skipnet import skipnet_pretrain, skipnet_reinforce
from dynext.train.zero_time_waste import zero_time_waste
from dynext.types import Batch, InputSpec, Prediction, Source
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.convert import Conversion, convert
from dynext.zeroshot.distill import distill
from dynext.zeroshot.joint import JointReport, distill_jointly
from dynext.zeroshot.rounds import in_rounds
from dynext.zeroshot.synth.quality import BankQuality, quality
from dynext.zeroshot.synth.synthesize import synthesize
from dynext.zeroshot.trust import Shift, bn_distance_of, shift

__version__ = "0.1.0"

__all__ = [
    "CONFIDENCES", "Adaptation", "Alignment", "Artifact", "ArtifactError", "Auxiliary", "Bank", "BankQuality", "Batch",
    "BatchPlan", "Calibration", "Conversion", "CostTable", "Cut", "DynamicNet", "DynextError", "Embeddings", "Episode",
    "Episodes", "Exit", "ExitTable", "Features", "FewShot", "FitConfig", "FitError", "FitResult", "Front", "GateFit",
    "GateTraining", "Gates", "HeldOut", "InnerLoop", "InputSpec", "JointReport", "Learned", "MetaStart", "ModelError",
    "Opened", "Outcome", "Ownership", "Plan", "PlanError", "Policy", "PolicyError", "Prediction", "Prototypes",
    "Pruned", "Ranking", "Rechosen", "Report", "SameClasses", "Shift", "Source", "SourceError", "Space", "SplitError",
    "Stage", "StagedNet", "Task", "Timing", "Views", "activation_maps", "adapt", "align", "apply_plan", "at_equal_cost",
    "attach", "attach_gates", "attention_heads", "attention_map", "batch_statistics", "be_your_own_teacher",
    "blockdrop_curriculum", "blockdrop_finetune", "bn_distance_of", "boostnet", "cache_features", "calibrate",
    "cascade", "choose", "cka", "class_activation", "collect", "confidence", "control_risk", "conv_heads", "convert",
    "cosine_heads", "data", "default_heads", "detach", "distill", "distill_attention", "distill_jointly",
    "distill_static", "draw_shots", "embed", "evaluate_episodes", "exact_front", "export", "feedforward_gates",
    "few_shot", "final_prototypes", "finetune", "fit", "genetic_front", "gradient_maps", "held_out_accuracy", "imta",
    "in_rounds", "jei_dnn", "lend_attention", "load", "losses", "make_smaller", "masked_heads", "measure",
    "meta_fusion", "meta_train", "models", "multi_exit_distillation", "open_model", "oracle", "ownership", "plan_batch",
    "policy_gates", "pooled_heads", "prototypes", "quality", "quantize", "quota_front", "random_control",
    "random_gates", "rank", "rank_stages", "rechoose", "recipe_cli", "recipe_with_classes", "reclassify",
    "recurrent_gates", "report", "run_batch", "save", "scan", "seeded", "shallow_deep", "shift", "side_by_side",
    "simulate", "simulate_batch", "skipnet_pretrain", "skipnet_reinforce", "split", "split_classes", "stages_by_hand",
    "static_control", "static_gates", "strided_heads", "synthesize", "tasks", "testing", "token_heads", "train_jointly",
    "train_mixed", "transfer_attention", "weigh_rows", "with_classes", "with_rotations", "write_page", "zero_shot",
    "zero_time_waste",
]  # fmt: skip
