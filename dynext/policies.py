"""More ways to a policy than `dynext.choose`: rules of its own, fronts, risk control, budgets for a whole batch.

======================= ============================================================== ============================
function                what it does                                                   paper
======================= ============================================================== ============================
`SafeRule`, `PlainRule` `choose(rule=...)` with settings: how often it may be wrong,
                        how many samples it asks for, what a lost one weighs
`exact_front`           Pareto front over a grid of thresholds, exhaustive
`genetic_front`         the same by NSGA-II                                            SCAN, NeurIPS 2019
`quota_front`           thresholds from quotas of samples per exit                     MSDNet, ICLR 2018
`control_risk`          the cheapest policy whose risk is bounded                      Jazbec et al., NeurIPS 2024
`plan_batch`            a budget spread over a whole batch; `run_batch` executes it    MSDNet (budgeted batch)
`simulate_batch`        what such a plan does to a table
`reliability`           how often answers of one confidence are right, per exit        Guo et al., ICML 2017
`confidence`            the measures of confidence: `CONFIDENCES`
======================= ============================================================== ============================
"""

from dynext.policy.batch_budget import plan_batch, simulate_batch
from dynext.policy.calibrate import reliability
from dynext.policy.confidence import CONFIDENCES, confidence
from dynext.policy.fronts.exact import exact_front
from dynext.policy.fronts.genetic import genetic_front
from dynext.policy.fronts.quota import quota_front
from dynext.policy.fronts.risk_control import control_risk
from dynext.policy.rule import PlainRule, SafeRule
from dynext.runtime.batch import run_batch

__all__ = [
    "CONFIDENCES",
    "PlainRule",
    "SafeRule",
    "confidence",
    "control_risk",
    "exact_front",
    "genetic_front",
    "plan_batch",
    "quota_front",
    "reliability",
    "run_batch",
    "simulate_batch",
]
