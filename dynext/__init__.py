"""dynext: a pretrained static classifier, made dynamic, without its training data.

    net    = dx.attach(dx.split(teacher, example), dx.default_heads(10))
    bank   = dx.synthesize(teacher, shape=(3, 32, 32), n=4096, seed=0)      # no data parameter, by design
    net    = dx.distill(net, teacher, bank, steps=2000, seed=0)
    table  = dx.collect(net, bank)
    policy = dx.choose(table, budget=0.5, temperature=dx.calibrate(table))
    print(dx.report(table, policy))
    out    = net.run(x, policy)                                             # logits [b k], exit [b], macs [b]

`dx.convert` is these lines in one call, and `dynext convert` that call from a shell. Methods live one dot further:

==================== =================================================================================
``dx.train``         early exits and skipping with labels, or with a teacher: one function a paper
``dx.zeroshot``      without data: joint distillation, rounds, what a bank is worth
``dx.meta``          meta-learning across exits; new classes from a few samples
``dx.align``         self-supervised alignment of exits; few- and zero-shot use
``dx.prune``         channels, blocks, 8 bits; attention lent by later layers
``dx.heads``         what exits are made of          ``dx.gates``     what decides about skipping
``dx.policies``      fronts, risk control, batches   ``dx.losses``    published losses and rewards
``dx.data``          samples, episodes               ``dx.models``    reference nets
``dx.graph``         stages, also by hand            ``dx.testing``   conformance checks
``dx.plugins``       parts of other packages         ``dx.errors``    what can be raised
==================== =================================================================================
"""

from dynext import compat

compat.declare_torchvision_operators()

from dynext import (
    align,
    data,
    errors,
    gates,
    graph,
    heads,
    losses,
    meta,
    models,
    plugins,
    policies,
    prune,
    testing,
    train,
    zeroshot,
)
from dynext.errors import DynextError
from dynext.fitting import FitConfig, fit
from dynext.graph.split import split
from dynext.io.artifact import load, save
from dynext.io.export import export
from dynext.models.catalog import Opened, open_model
from dynext.modules.exits import default_heads
from dynext.net.attach import attach, attach_gates
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.net.measure import measure
from dynext.net.timing import side_by_side
from dynext.policy.calibrate import calibrate
from dynext.policy.choose import choose
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable, simulate
from dynext.reporting.axes import plot
from dynext.reporting.report import Report, report
from dynext.seeding import seeded
from dynext.types import InputSpec, Source
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.convert import Conversion, convert
from dynext.zeroshot.distill import distill
from dynext.zeroshot.settings import Exits, Frozen, Joint, Run, Skip, Synthesis, Target, Unlabelled
from dynext.zeroshot.synth.synthesize import synthesize

__version__ = "0.2.0.dev0"

__all__ = [
    "Bank",
    "Conversion",
    "DynamicNet",
    "DynextError",
    "ExitTable",
    "Exits",
    "FitConfig",
    "Frozen",
    "InputSpec",
    "Joint",
    "Opened",
    "Policy",
    "Report",
    "Run",
    "Skip",
    "Source",
    "Synthesis",
    "Target",
    "Unlabelled",
    "attach",
    "attach_gates",
    "calibrate",
    "choose",
    "collect",
    "convert",
    "default_heads",
    "distill",
    "export",
    "fit",
    "load",
    "measure",
    "open_model",
    "plot",
    "report",
    "save",
    "seeded",
    "side_by_side",
    "simulate",
    "split",
    "synthesize",
]
