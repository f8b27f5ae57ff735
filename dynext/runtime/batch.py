"""Execution within a budget for the whole batch: at each exit the least sure samples go on, as many as can be paid
for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynext.errors import PolicyError, SourceError
from dynext.graph.stage import LiveTensors
from dynext.modules.modes import in_evaluation
from dynext.policy.batch_budget import BatchPlan, going_on, running_exits
from dynext.policy.confidence import Confidence
from dynext.runtime.protocol import Runnable
from dynext.types import Prediction


@torch.inference_mode()
def run_batch(net: Runnable, x: Tensor, plan: BatchPlan) -> Prediction:
    """Run samples ``x [b ...]`` by a plan; all of them together spend at most ``plan.macs`` a sample.

    How many samples go on is known before which ones do, so that no device is synchronized. The net runs in evaluation,
    whatever mode it is in. Answers come in the order of the input.

    Raises:
        PolicyError: the plan is for another number of exits, or for other costs than the net's.
        SourceError: samples of another shape than the model expects, or none.
    """
    policy = plan.policy
    policy.check_exits(net.num_exits)
    if not len(x) or tuple(x.shape[1:]) != net.staged.input_shape:
        raise SourceError(f"samples {tuple(x.shape)}; give one or more of shape {net.staged.input_shape}")
    with in_evaluation(net):
        return _run(net, x, plan)


def _run(net: Runnable, x: Tensor, plan: BatchPlan) -> Prediction:
    policy = plan.policy
    ends = net.exit_stages
    confidence = Confidence(policy.confidence, net.num_exits)
    sample_b = torch.arange(len(x), device=x.device)
    logits_bk = x.new_zeros(len(x), net.num_classes)
    exit_b, macs_b = torch.zeros_like(sample_b), torch.zeros_like(sample_b)
    live: LiveTensors = (x,)
    left, done, spent = plan.macs * len(x), 0, 0
    for e, next_macs in running_exits(plan):
        began = spent
        for stage in net.staged.stages[done : ends[e] + 1]:
            live = stage(*live)
            spent += stage.macs
        done = ends[e] + 1
        last = next_macs is None
        logits = live[0] if last else net.exits[e](live[net.staged.stages[ends[e]].tap])
        spent += 0 if last else net.exits[e].macs
        if spent - began != plan.segment_macs_e[e]:
            raise PolicyError(
                f"exit {e} takes {spent - began:,} MACs of a sample, the plan says {plan.segment_macs_e[e]:,}; make a "
                f"plan on a table of this net"
            )
        left -= (spent - began) * len(sample_b)
        logits_bk[sample_b], exit_b[sample_b], macs_b[sample_b] = logits, e, spent
        if next_macs is None:
            break
        sure_b = confidence.step(logits.float() / policy.temperature_e[e], sample_b, e)
        staying = going_on(sure_b, left, plan.onward_macs_e[e], next_macs)
        if not len(staying):
            break
        sample_b, live = sample_b[staying], tuple(tensor[staying] for tensor in live)
    return Prediction(logits=logits_bk, exit=exit_b, macs=macs_b, temperature_e=policy.temperature_e)
