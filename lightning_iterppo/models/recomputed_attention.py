"""Attention for training whose backward pass computes the weights again, as products of matrices.

On a processor the backward pass of torch's fused attention takes three times as long as its forward pass in 16 bits,
and keeps copies of keys and values for every head that shares them. Short rows have small weights: making them once
more from queries and keys, some rows at a time so that they stay near the processor, takes less.
The forward pass is torch's, so that training starts from what was measured without gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

RECOMPUTED = "iterppo_recomputed"
# On two cores with bfloat16 instructions forward and backward take 0.5 to 0.6 of the fused kernel's time at 64 to 128
# tokens a row, 0.8 to 0.9 at 300, and as long at 400 (``benchmarks/speed/attention.py``). In 32 bits nothing is gained.
_DTYPES = (torch.bfloat16,)
_LONGEST = 320
# Weights that are made at a time, at least those of one row.
_AT_ONCE = 600_000


class _Recomputed(torch.autograd.Function):
    """softmax(s·QKᵀ + mask) V, differentiable in Q, K and V; heads of a group share keys and values."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        each = query.shape[1] // key.shape[1]
        output = F.scaled_dot_product_attention(
            query, _for_each(key, each), _for_each(value, each), mask, is_causal=mask is None, scale=scale
        )
        ctx.save_for_backward(query, key, value, mask, output)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, output = ctx.saved_tensors
        rows, heads, tokens, _ = query.shape
        if mask is None:
            mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=query.device).tril()
        hidden = ~mask.expand(rows, 1, tokens, tokens)
        count = max(1, _AT_ONCE // (heads * tokens * tokens))
        some = [slice(start, start + count) for start in range(0, rows, count)]
        parts = [
            _gradients(query[own], key[own], value[own], hidden[own], output[own], grads[0][own], ctx.scale)
            for own in some
        ]
        return *(torch.cat(each) for each in zip(*parts, strict=True)), None, None


def _gradients(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, output: Tensor, grad: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of Q (rows, heads, tokens, width), K and V (rows, groups, tokens, width), from the output's.

    ``hidden`` (rows, 1, tokens, tokens) is true where a query may not look.
    """
    rows, groups, tokens, width = key.shape
    # The queries of a group stand one below the other.
    queries, grads = (each.reshape(rows * groups, -1, width) for each in (query * scale, grad))
    keys, values = (each.reshape(rows * groups, tokens, width) for each in (key, value))
    scores = torch.bmm(queries, keys.transpose(1, 2))  # (rows·groups, heads of a group·tokens, tokens)
    scores.view(rows, -1, tokens, tokens).masked_fill_(hidden, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    along = (grad.float() * output.float()).sum(-1).to(query.dtype).reshape(rows * groups, -1, 1)
    grad_scores = torch.bmm(grads, values.transpose(1, 2)).sub_(along).mul_(weights)
    return (
        (torch.bmm(grad_scores, keys) * scale).view(query.shape),
        torch.bmm(grad_scores.transpose(1, 2), queries).view(key.shape),
        torch.bmm(weights.transpose(1, 2), grads).view(value.shape),
    )


def _for_each(shared: Tensor, each: int) -> Tensor:
    """(rows, groups, tokens, width) once for every head of a group: (rows, heads, tokens, width)."""
    return shared if each == 1 else shared[:, :, None].expand(-1, -1, each, -1, -1).flatten(1, 2)


def recomputed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls; where it does not pay it is transformers' own.

    Args:
        module: the attention layer.
        query: (rows, heads, tokens, width).
        key: (rows, groups, tokens, width).
        value: as the key.
        attention_mask: (rows, 1, tokens, tokens), true where a query may look; None where each token looks at all
            before it.
        dropout: of the weights.
        scaling: what the products are multiplied with.
        **kwargs: what else transformers gives.

    Returns:
        (rows, tokens, heads, width) and None for the weights.
    """
    if dropout != 0 or not _pays(query, key, value) or not _says_all(module, attention_mask, **kwargs):
        arguments = {"dropout": dropout, "scaling": scaling, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    output: Tensor = _Recomputed.apply(query, key, value, attention_mask, scale)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous(), None


def _says_all(
    module: nn.Module,
    mask: Tensor | None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    **others: Any,
) -> bool:
    """Whether the mask, or that every token looks at all before, is all that there is to the weights."""
    if position_bias is not None or softcap is not None:
        return False
    if mask is None:
        return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    return mask.dtype == torch.bool and mask.shape[1] == 1


def _pays(query: Tensor, key: Tensor, value: Tensor) -> bool:
    trains = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    return (
        trains
        and query.is_cpu
        and query.dtype in _DTYPES
        and query.dtype == key.dtype == value.dtype
        and 1 < query.shape[2] == key.shape[2] <= _LONGEST
        and query.shape[-1] == value.shape[-1]
    )


AttentionInterface.register(RECOMPUTED, recomputed_attention)
# What it is given in place of no mask at all is what torch's kernel would be given.
AttentionMaskInterface.register(RECOMPUTED, AttentionMaskInterface()["sdpa"])
