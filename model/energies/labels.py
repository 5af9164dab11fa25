"""One energy for several classes: the network has an output for each, and every question is answered by one evaluation.

With the base's energy b(x) and the network's K corrections c_k(x), in nats, and p ∝ exp(−E):

    E(x, k) = b − c_k + log K            of x together with its class k
    E(x) = b − logsumexp_k c_k + log K   of x, whatever its class (the marginal)
    log p(k | x) = E(x) − E(x, k) = c_k − logsumexp_j c_j
    E_w(x | k) = E(x, k) − w log p(k | x)

The last is the energy of p(x, k) p(k | x)^w: guidance by the model's own classifier (Dhariwal & Nichol 2021; Ho &
Salimans 2022), of which chains draw exactly, since it is an energy. The constant log K makes K equal corrections the
energy of a model without classes. The density of one label is p(x) p(k | x)^(1 + w) up to a constant, in which a
composition of labels can take the place of p(k | x) (`model.composition`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.conditions import At


def chosen(correction: Tensor, at: At) -> Tensor:
    """Return what the rows' conditions take from the base's energy (B,), given the corrections (B, K) of all classes.

    A row without a label gets the marginal's. Corrections (B,) of a model without classes are returned as they are.
    """
    if correction.dim() == 1:
        return correction
    marginal = torch.logsumexp(correction, 1) - math.log(correction.shape[1])
    log_posterior = torch.log_softmax(correction, 1)
    told = torch.zeros_like(marginal)
    if at.composed is not None:
        allowed, weights = at.composed.unbind(1)
        told = torch.logsumexp(log_posterior + allowed, 1) + (weights * log_posterior).sum(1)
    if at.label is not None:
        of_label = log_posterior.gather(1, at.label.clamp(min=0)[:, None])[:, 0]
        told = torch.where(at.label < 0, told, of_label)
    return marginal + (told if at.guidance is None else (1 + at.guidance) * told)
