"""The score: the divergence that quantizing one layer adds to the model's output, to second order.

Let z be the output of the float model and G its Fisher information (softmax: diag(p) - p pᵀ; Bernoulli: p(1-p);
embedding or regression: I, so that the divergence is half the squared distance). If quantizing a layer moves its own
output by dy, the model's output moves by J dy and KL ≈ ½ (J dy)ᵀ G (J dy) (Amari 1998, eq. 2.6). With a random u,
E[u uᵀ] = G, and g = Jᵀ u from one backward pass, ½ E[(g · dy)²] is the same number: one backward serves every scheme.

The textbook u is the score of a label sampled from the model. Here u = B ξ with B Bᵀ = G, one column of B for each
dimension that the output really has, and random signs ξ = ±1: the same expectation at a much smaller variance, because
no rare label has to be drawn to be seen. With two labels, or one output, a single u is exact.
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
        return _softmax_probe(torch.softmax(z, -1), signs)
    if kind == "bernoulli":
        p = torch.sigmoid(z)
        return signs * (p * (1 - p)).sqrt()
    return signs


def _softmax_probe(p: Tensor, signs: Tensor) -> Tensor:
    """√p ∘ x, where x is random signs on an orthonormal basis of what is orthogonal to √p.

    That basis is a reflection which takes √p to the axis of the likeliest label k, without that axis.
    """
    root = p.sqrt()
    top = p.argmax(-1, keepdim=True)
    x = signs.scatter(-1, top, 0.0)
    along = (root * x).sum(-1, keepdim=True)
    x = x - root * along / (1 + root.gather(-1, top))
    return root * x.scatter(-1, top, -along)


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
    return half_square(responses(gradients, changes, per_position))


def responses(gradients: Tensor, changes: Tensor, per_position: bool) -> Tensor:
    """The inner products g · dy that `half_square` squares; linear in the changes.

    Args:
        gradients: (probes, rows, …, channels). changes: (parts, rows, …, channels).

    Returns:
        (parts, probes, rows), or (parts, probes, rows · positions) if `per_position`.
    """
    probes = len(gradients)
    length = gradients.shape[-1] if per_position else gradients[0, 0].numel()
    left = gradients.reshape(probes, -1, length).permute(1, 0, 2)
    right = changes.reshape(changes.shape[0], -1, length).permute(1, 2, 0)
    return torch.bmm(left, right).permute(2, 1, 0)


def half_square(dots: Tensor) -> Tensor:
    """½ Σ dots² over outputs, averaged over probes: (…, probes, outputs) → (…) float64."""
    return dots.double().square().sum(-1).mean(-1) / 2
