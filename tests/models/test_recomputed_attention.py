"""Attention that computes its weights again in the backward pass: the gradients of torch's kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_iterppo.models import recomputed_attention as module
from lightning_iterppo.models.recomputed_attention import recomputed_attention


class Causal(nn.Module):
    """What transformers' attention layers say of themselves."""

    is_causal = True
    num_key_value_groups = 3


def tensors(dtype: torch.dtype = torch.float32, tokens: int = 20) -> list[Tensor]:
    """Queries, keys and values of five rows, six heads in two groups, as transformers gives them."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((5, tokens, 6, 8), (5, tokens, 2, 8), (5, tokens, 2, 8))
    return [torch.randn(s, generator=draw).to(dtype).transpose(1, 2).requires_grad_() for s in shapes]


def a_mask(tokens: int = 20) -> Tensor:
    mask = torch.rand(5, 1, tokens, tokens, generator=torch.Generator().manual_seed(1)) < 0.5
    return (mask | torch.eye(tokens, dtype=torch.bool)).tril()


def gradients(given: list[Tensor], mask: Tensor | None, **arguments: Any) -> list[Tensor]:
    output, _ = recomputed_attention(Causal(), *given, mask, **arguments)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    return [output, *torch.autograd.grad(output, given, weight)]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were computed at a time."""
    counts: list[int] = []
    plain = module._gradients

    def counted(query: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
        counts.append(len(query))
        return plain(query, *others)

    monkeypatch.setattr(module, "_gradients", counted)
    return counts


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("at_once", "counts"), [(10**6, [5]), (2 * 6 * 400, [2, 2, 1]), (1, [1] * 5)])
def test_the_gradients_are_those_of_the_fused_kernel(
    masked: bool, at_once: int, counts: list[int], used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = a_mask() if masked else None
    expected = gradients(tensors(), mask)
    assert used == []  # 32 bits
    monkeypatch.setattr(module, "_DTYPES", (torch.float32,))
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    found = gradients(tensors(), mask)
    assert used == counts
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_they_are_as_exact_as_16_bits_are(used: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    exact = gradients(tensors(), a_mask())
    found = gradients(tensors(torch.bfloat16), a_mask())
    assert used == [5]
    monkeypatch.setattr(module, "_DTYPES", ())
    fused = gradients(tensors(torch.bfloat16), a_mask())
    assert torch.equal(found[0], fused[0])  # what was sampled from is what trains
    for one, other, true in zip(found, fused, exact, strict=True):
        assert (one - true).norm() < 3 * (other - true).norm()


def test_a_row_that_looks_nowhere_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DTYPES", (torch.float32,))
    mask = a_mask()
    mask[:, :, 3] = False
    mask[:, :, :, 3] = False
    for each in gradients(tensors(), mask):
        assert each.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "tokens"), [({"dropout": 0.1}, 20), ({"position_bias": torch.zeros(5, 6, 20, 20)}, 20), ({}, 321)]
)
def test_what_it_does_not_know_or_win_is_left_to_transformers(
    arguments: dict[str, Any], tokens: int, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DTYPES", (torch.float32,))
    gradients(tensors(tokens=tokens), None, **arguments)
    with torch.no_grad():
        recomputed_attention(Causal(), *tensors(), None)
    assert used == []
