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
from dynext.align.augmentations import Views
from dynext.align.few_and_zero_shot import few_shot, zero_shot
from dynext.align.measure import HeldOut, cka, held_out_accuracy
from dynext.align.projection_heads import Space, final_prototypes
from dynext.align.report import Rechosen, rechoose
from dynext.align.result import Alignment
from dynext.align.train import align
from dynext.data.episodes import Episode, Episodes, SameClasses, split_classes, with_rotations
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
from dynext.fitting import FitConfig, FitResult, fit
from dynext.graph import Stage, StagedNet, split, stages_by_hand
from dynext.io.artifact import Artifact, load, save
from dynext.io.export import export
from dynext.meta.adaptation import Adaptation, adapt
from dynext.meta.exit_ownership import Ownership, ownership
from dynext.meta.exit_tasks import Task, tasks
from dynext.meta.few_shot import FewShot, evaluate_episodes
from dynext.meta.inner import InnerLoop
from dynext.meta.l2w_den import weigh_rows
from dynext.meta.meta_gf import meta_fusion
from dynext.meta.new_classes import recipe_with_classes, with_classes
from dynext.meta.start import MetaStart
from dynext.meta.train import meta_train
from dynext.models.catalog import Opened, open_model
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
from dynext.modules.gates import (
    Gates,
    feedforward_gates,
    policy_gates,
    random_gates,
    recurrent_gates,
    static_gates,
)
from dynext.modules.modes import batch_statistics
from dynext.net.attach import attach, attach_gates
from dynext.net.cam import class_activation
from dynext.net.cascade import cascade
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.net.embeddings import Embeddings, embed
from dynext.net.features import Features, cache_features
from dynext.net.measure import measure
from dynext.net.prototypes import Prototypes, draw_shots, prototypes
from dynext.net.reclassify import reclassify
from dynext.net.timing import Timing, side_by_side
from dynext.policy.batch_budget import BatchPlan, plan_batch, simulate_batch
from dynext.policy.calibrate import Calibration, calibrate
from dynext.policy.choose import choose
from dynext.policy.confidence import CONFIDENCES, Learned, confidence
from dynext.policy.fronts.exact import exact_front
from dynext.policy.fronts.front import Front
from dynext.policy.fronts.genetic import genetic_front
from dynext.policy.fronts.quota import quota_front
from dynext.policy.fronts.risk_control import control_risk
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable, Outcome, oracle, simulate
from dynext.prune.apply import apply_plan
from dynext.prune.attention import distill_attention, transfer_attention
from dynext.prune.attention_maps import activation_maps, attention_map, gradient_maps
from dynext.prune.auxiliary import Auxiliary, detach, lend_attention
from dynext.prune.finetuning import distill_static, finetune
from dynext.prune.pipeline import Pruned, make_smaller
from dynext.prune.plan import Cut, Plan
from dynext.prune.quantization import quantize
from dynext.prune.ranking import rank
from dynext.recipe import recipe_cli
from dynext.reporting.page import write_page
from dynext.reporting.report import Report, report
from dynext.runtime.batch import run_batch
from dynext.runtime.cost import CostTable
from dynext.seeding import seeded
from dynext.train.controls import Ranking, at_equal_cost, random_control, rank_stages, static_control
from dynext.train.gate_loop import GateFit, GateTraining
from dynext.train.methods.be_your_own_teacher import be_your_own_teacher
from dynext.train.methods.blockdrop import blockdrop_curriculum, blockdrop_finetune
from dynext.train.methods.boostnet import boostnet
from dynext.train.methods.imta import imta
from dynext.train.methods.jei_dnn import jei_dnn
from dynext.train.methods.joint import train_jointly
from dynext.train.methods.mixed import train_mixed
from dynext.train.methods.multi_exit_distillation import multi_exit_distillation
from dynext.train.methods.scan import scan
from dynext.train.methods.shallow_deep import shallow_deep
from dynext.train.methods.skipnet import skipnet_pretrain, skipnet_reinforce
from dynext.train.methods.zero_time_waste import zero_time_waste
from dynext.types import Batch, InputSpec, Prediction, Source
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.convert import Conversion, convert
from dynext.zeroshot.distill import distill
from dynext.zeroshot.joint import JointReport, distill_jointly
from dynext.zeroshot.rounds import in_rounds
from dynext.zeroshot.shift import Shift, bn_distance_of, shift
from dynext.zeroshot.synth.quality import BankQuality, quality
from dynext.zeroshot.synth.synthesize import synthesize

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
