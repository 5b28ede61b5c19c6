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


def squared_response(gradients: Tensor, changes: Tensor, per_position: bool, reach: int | None = 1) -> Tensor:
    """½ Σ (g · dy)² averaged over probes: the inner product over channels and, unless every position is an output, over
    positions before it is squared.

    Args:
        gradients: (probes, rows, …, channels). changes: (schemes, rows, …, channels).
        reach: with `per_position`, see `responses`.

    Returns:
        (schemes,) float64.
    """
    return half_square(responses(gradients, changes, per_position, reach))


def responses(gradients: Tensor, changes: Tensor, per_position: bool, reach: int | None = 1) -> Tensor:
    """Inner products g · dy, in the sums that `half_square` squares; linear in the changes.

    Where every position is an output of its own, each output's response is the sum over all positions of a layer that it
    depends on, but one backward pass gives the outputs' responses mixed, with random signs. Squaring the sum over the
    whole sequence is right on average and noisy; squaring each position by itself is steady, but leaves out that errors
    at different positions add up (values) or cancel (keys). Between them, with `reach` > 1: the part of the change that
    all positions of a row share is summed over the row, and of the rest the products of positions up to `reach` apart
    count, fading linearly with the distance (Bartlett's window: a running sum, squared, over its length).

    Args:
        gradients: (probes, rows, …, channels). changes: (parts, rows, …, channels).
        reach: with `per_position`: 1 squares each position by itself, None the sum over the whole sequence.

    Returns:
        (parts, probes, sums).
    """
    parts, probes, rows, channels = len(changes), len(gradients), gradients.shape[1], gradients.shape[-1]
    whole = not per_position or reach is None
    length = gradients[0, 0].numel() if whole else channels
    left = gradients.reshape(probes, -1, length).permute(1, 0, 2)
    right = changes.reshape(parts, -1, length).permute(1, 2, 0)
    dots = torch.bmm(left, right).permute(2, 1, 0)  # (parts, probes, rows) or (parts, probes, rows · positions)
    if whole or reach == 1:
        return dots
    assert reach is not None
    shared = changes.reshape(parts, rows, -1, channels).mean(2).permute(1, 2, 0)  # (rows, channels, parts)
    by_row = gradients.reshape(probes, rows, -1, channels).transpose(0, 1).flatten(1, 2)
    of_shared = torch.bmm(by_row, shared).view(rows, probes, -1, parts).permute(3, 1, 0, 2)
    rest = dots.view(of_shared.shape) - of_shared
    running = torch.nn.functional.pad(rest, (reach - 1, reach - 1)).unfold(-1, reach, 1).sum(-1)
    return torch.cat([of_shared.sum(-1), running.flatten(2) / reach**0.5], -1)


def half_square(dots: Tensor) -> Tensor:
    """½ Σ dots² over sums, averaged over probes: (…, probes, sums) → (…) float64."""
    return dots.double().square().sum(-1).mean(-1) / 2
