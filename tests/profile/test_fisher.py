"""The algebra behind the score, against its definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from autoquant.profile import output_probe
from autoquant.profile.fisher import divergence, squared_response

LOGITS = torch.tensor([[2.0, -1.0, 0.3, 0.0], [8.0, -8.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])


def information(logits: torch.Tensor, kind: str) -> torch.Tensor:
    """G of each row: (rows, dim, dim)."""
    if kind == "softmax":
        p = torch.softmax(logits, -1)
        return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    if kind == "bernoulli":
        p = torch.sigmoid(logits)
        return torch.diag_embed(p * (1 - p))
    return torch.eye(logits.shape[-1]).expand(len(logits), -1, -1)


@pytest.mark.parametrize("kind", ["softmax", "bernoulli", "embedding", "regression"])
def test_probes_have_the_fisher_information_as_their_covariance(kind: str) -> None:
    draws = 40_000
    u = output_probe(LOGITS.expand(draws, -1, -1), kind, torch.Generator().manual_seed(0)).double()
    found = torch.einsum("nri,nrj->rij", u, u) / draws
    assert torch.allclose(found, information(LOGITS, kind).double(), atol=0.02)
    assert torch.allclose(u.mean(0), torch.zeros(3, 4).double(), atol=0.02)


def test_a_softmax_probe_moves_no_mass_along_the_direction_that_changes_nothing() -> None:
    u = output_probe(LOGITS.expand(50, -1, -1), "softmax", torch.Generator().manual_seed(0))
    assert torch.allclose(u.sum(-1), torch.zeros(50, 3), atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "embedding"])
def test_probes_follow_their_seed(kind: str) -> None:
    one, two, other = (output_probe(LOGITS, kind, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergence_of_logits_is_the_kl_divergence_of_torch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    output, reference = (torch.randn(5, 3, 7, generator=generator).to(dtype) for _ in range(2))
    expected = F.kl_div(
        output.float().log_softmax(-1), reference.float().log_softmax(-1), reduction="none", log_target=True
    )
    assert torch.allclose(divergence(output, reference, "softmax"), expected.sum(-1), atol=1e-6)


def test_divergence_of_yes_and_no_is_that_of_two_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    output, reference = (4 * torch.randn(6, 3, generator=generator) for _ in range(2))

    def two(z: torch.Tensor) -> torch.Tensor:
        return torch.stack([z, torch.zeros_like(z)], -1)

    expected = divergence(two(output), two(reference), "softmax").sum(-1)
    assert torch.allclose(divergence(output, reference, "bernoulli"), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["embedding", "regression"])
def test_divergence_of_vectors_is_half_the_squared_distance(kind: str) -> None:
    assert divergence(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]), kind).tolist() == [12.5]


@pytest.mark.parametrize("kind", ["softmax", "bernoulli", "embedding"])
def test_divergence_is_zero_at_the_reference_and_half_the_fisher_form_near_it(kind: str) -> None:
    step = 1e-2 * torch.randn(LOGITS.shape, generator=torch.Generator().manual_seed(0))
    assert not divergence(LOGITS, LOGITS, kind).any()
    form = torch.einsum("ri,rij,rj->r", step, information(LOGITS, kind), step) / 2
    assert torch.allclose(divergence(LOGITS + step, LOGITS, kind), form, rtol=0.05, atol=2e-7)


def test_the_response_of_a_row_is_summed_before_it_is_squared() -> None:
    generator = torch.Generator().manual_seed(0)
    g, dy = torch.randn(2, 3, 5, 4, generator=generator), torch.randn(6, 3, 5, 4, generator=generator)
    found = squared_response(g, dy, False)
    for scheme in range(6):
        whole = [sum((g[p, r] * dy[scheme, r]).sum().item() ** 2 for r in range(3)) for p in range(2)]
        assert found[scheme].item() == pytest.approx(sum(whole) / 2 / 2, rel=1e-5)


def test_positions_that_are_outputs_are_squared_one_by_one_within_a_reach_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    g, dy = torch.randn(2, 3, 5, 4, generator=generator), torch.randn(6, 3, 5, 4, generator=generator)
    each = torch.einsum("prtc,srtc->sprt", g, dy).double()
    assert torch.allclose(squared_response(g, dy, True, 1), each.square().sum((2, 3)).mean(1) / 2, rtol=1e-4)
    assert torch.allclose(squared_response(g, dy, True, None), each.sum(3).square().sum(2).mean(1) / 2, rtol=1e-4)


def test_a_layer_without_positions_has_one_response_a_row() -> None:
    g, dy = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, -1.0]]])
    assert squared_response(g, dy, False).tolist() == [0.5] == squared_response(g, dy, True).tolist()
