"""Class impressions: samples on which the teacher answers as its own last layer says that classes resemble each other.

Shapes: b samples, k classes, d features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dynext.errors import SourceError
from dynext.modules.modes import evaluating
from dynext.types import InputSpec
from dynext.zeroshot.synth.bn_statistics import as_input
from dynext.zeroshot.synth.fitted import Start, starts
from dynext.zeroshot.synth.inversion import balanced_targets, moved
from dynext.zeroshot.synth.last_layer import last_linear, weights
from dynext.zeroshot.synth.method import Sampler, samples_per_chunk

FLOOR = 1e-4
"""Least concentration of a class, so that each can appear."""


@dataclass(frozen=True, kw_only=True)
class Impressions:
    """How impressions are made; the paper takes 1,500 steps of .001 from noise."""

    iterations: int = 30
    lr: float = 0.05
    temperature: float = 20.0
    betas: tuple[float, ...] = (1.0, 0.1)
    """Scales of the concentrations, dealt out evenly: with a small one most targets are nearly one class."""

    def __post_init__(self) -> None:
        if self.iterations < 0 or not self.lr > 0 or not self.temperature > 0:
            raise SourceError(
                f"iterations={self.iterations}, lr={self.lr}, temperature={self.temperature}; "
                f"give 0 or more steps, a positive step size and temperature"
            )
        if not self.betas or min(self.betas) <= 0:
            raise SourceError(f"betas={self.betas}; give positive scales, such as (1.0, 0.1)")


DEFAULT = Impressions()


def impressions(
    teacher: nn.Module,
    spec: InputSpec,
    seed: int,
    *,
    start: Start = "fitted",
    styles: int = 4,
    candidates: int = 24,
    settings: Impressions = DEFAULT,
) -> Sampler:
    """Samples moved until softmax(logits / temperature) is a target drawn around their class.

    Needs no BatchNorm. Classes are evened out as in `inversion`; a class that no sample can reach (a dead one) gets its
    share of targets all the same, and its samples end wherever the descent leaves them.

    Raises:
        SourceError: the teacher's last linear layer cannot be found.

    Source: ZSKD, Nayak et al., ICML 2019, arXiv:1905.08114, section 3. Ours starts from samples that fit the teacher
    (``start="noise"`` is the paper's), keeps pixels in [0, 1], and lets beta scale the concentrations: the public code
    brings them to [0, 1] once more after multiplying, which cancels it.
    """
    concentration_kk = similarity(weights(last_linear(teacher, spec)))
    first = starts(teacher, spec, seed, start, styles=styles, candidates=candidates)

    def sample(count: int, draw: Generator) -> Tensor:
        x = as_input(teacher, first.sample(count, draw))
        with torch.no_grad(), evaluating(teacher):
            class_b = balanced_targets(teacher(x)).cpu()
        target_bk = targets(class_b, concentration_kk, settings.betas, draw).to(x)

        def loss(x: Tensor) -> Tensor:
            return F.cross_entropy(teacher(x) / settings.temperature, target_bk)

        return moved(teacher, x, spec, loss, iterations=settings.iterations, lr=settings.lr)

    return Sampler(sample=sample, per_chunk=samples_per_chunk(spec.shape), notes=first.notes)


def similarity(weight_kd: Tensor) -> Tensor:
    """How alike classes are ``[k k]``, double, each sample from 0 (least alike) to 1 (the class itself).

    Cosine between the last layer's weights, brought to [0, 1] sample by sample. A class without weights is like no
    other.
    """
    unit_kd = F.normalize(weight_kd.double().cpu(), dim=1)
    cosine_kk = unit_kd @ unit_kd.T
    low_k1 = cosine_kk.amin(1, keepdim=True)
    # Clamped: where all classes are alike, a sample has no span.
    found_kk = (cosine_kk - low_k1) / (cosine_kk.amax(1, keepdim=True) - low_k1).clamp_min(1e-12)
    return found_kk.fill_diagonal_(1.0)


def targets(class_b: Tensor, similarity_kk: Tensor, betas: tuple[float, ...], draw: Generator) -> Tensor:
    """One answer a sample ``[b k]``, double, each drawn from Dirichlet(beta S_c + 1e-4) for the sample's class c.

    The betas are dealt out in turn along the samples of each class, so that every class sees every beta.
    """
    beta_b = torch.empty(len(class_b), dtype=torch.double)
    beta_b[class_b.argsort(stable=True)] = torch.tensor(betas, dtype=torch.double).repeat(len(class_b))[: len(class_b)]
    alpha_bk = beta_b[:, None] * similarity_kk[class_b] + FLOOR
    # NumPy's generator: torch draws from a Dirichlet only by its global one.
    dice = np.random.default_rng(int(torch.randint(2**62, (), generator=draw)))
    return torch.from_numpy(np.stack([dice.dirichlet(alpha_k) for alpha_k in alpha_bk.numpy()]))
