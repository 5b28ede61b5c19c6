"""The score: the divergence that quantizing one layer adds to the model's output, to second order.

Let z be the output of the float model and G its Fisher information (softmax: diag(p) - p pᵀ; Bernoulli: p(1-p);
embedding or regression: I, so that the divergence is half the squared distance). If quantizing a layer moves its own
output by dy, the model's output moves by J dy and KL ≈ ½ (J dy)ᵀ G (J dy) (Amari 1998, eq. 2.6). With a random u,
E[u uᵀ] = G, and g = Jᵀ u from one backward pass, ½ E[(g · dy)²] is the same number: one backward serves every scheme.

The textbook u is the score of a label sampled from the model. Here u mixes all labels with random signs,
u = Σ_c √p_c ξ_c (e_c - p), ξ_c = ±1: the same expectation at a much smaller variance, because no rare label has to be
drawn to be seen.
"""

from __future__ import annotations

import torch
from torch import Tensor


def output_probe(output: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """A random u with E[u uᵀ] = G, for each output of `output` (..., dim) by itself.

    Args:
        kind: `softmax`, `bernoulli`, `embedding` or `regression`.
    """
    signs = torch.randint(0, 2, output.shape, generator=generator, dtype=torch.int8).to(output.device).float() * 2 - 1
    z = output.detach().float()
    if kind == "softmax":
        p = torch.softmax(z, -1)
        mixed = p.sqrt() * signs
        return mixed - p * mixed.sum(-1, keepdim=True)
    if kind == "bernoulli":
        p = torch.sigmoid(z)
        return signs * (p * (1 - p)).sqrt()
    return signs


def divergence(output: Tensor, reference: Tensor, kind: str) -> Tensor:
    """The exact divergence of each output (...): KL(reference ‖ output) in nats, or half the squared distance.

    Args:
        output, reference: (..., dim).
    """
    output, reference = output.float(), reference.float()
    if kind == "softmax":
        p = torch.log_softmax(reference, -1)
        return (p.exp() * (p - torch.log_softmax(output, -1))).sum(-1)
    if kind == "bernoulli":
        p = torch.sigmoid(reference)
        on = torch.nn.functional.logsigmoid(reference) - torch.nn.functional.logsigmoid(output)
        off = torch.nn.functional.logsigmoid(-reference) - torch.nn.functional.logsigmoid(-output)
        return (p * on + (1 - p) * off).sum(-1)
    return (output - reference).square().sum(-1) / 2


def squared_response(gradients: Tensor, changes: Tensor, per_position: bool) -> Tensor:
    """½ Σ (g · dy)² averaged over probes: the inner product over channels and, unless every position is an output, over
    positions before it is squared.

    Args:
        gradients: (probes, rows, …, channels). changes: (schemes, rows, …, channels).

    Returns:
        (schemes,) float64.
    """
    probes, rows, channels = gradients.shape[0], gradients.shape[1], gradients.shape[-1]
    left = gradients.reshape(probes, -1, channels).permute(1, 0, 2)
    right = changes.reshape(changes.shape[0], -1, channels).permute(1, 2, 0)
    dots = torch.bmm(left, right)  # (rows · positions, probes, schemes): each tensor is read once
    if not per_position:
        dots = dots.view(rows, -1, *dots.shape[1:]).sum(1)
    return dots.double().square().sum(0).mean(0) / 2
