"""Grouped queries without copies of keys and values, for generation.

Where several query heads share one head of keys and values, transformers repeats the latter before it calls torch, as
soon as there is a mask and more than one query a row; some releases do it with one query too. What was said so far is
then copied for every piece of text that is read, which takes several times as long as the attention itself. The queries
of a group can as well stand one below the other: the same products, and no copy.

In 16 bits on a processor torch's fused kernel reads keys and values at a fraction of the speed of memory when there are
few queries, as in decoding. Two plain products with the softmax between them take about two thirds of its time, if keys
and values are in one piece (``benchmarks/speed/attention.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedConfig

GROUPED = "iterppo_grouped"
# New tokens a row up to which plain products are taken. With more the fused kernel is as fast, and keeps no weights.
FEW_QUERIES = 16


def products_pay(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether few queries are faster in plain products than in the fused kernel."""
    return device.type == "cpu" and dtype == torch.bfloat16


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls, for a mask that all heads share.

    Args:
        module: the attention layer.
        query: (rows, heads, queries, width).
        key: (rows, groups, slots, width).
        value: as the key.
        attention_mask: (rows, 1, queries, slots), true where a query may look.
        scaling: what the products are multiplied with.
        dropout: of the weights.
        **kwargs: what else transformers gives: nothing that a mask leaves open.

    Returns:
        (rows, queries, heads, width) and None for the weights.
    """
    rows, heads, queries, width = query.shape
    groups = key.shape[1]
    each = heads // groups
    if _plain(query, key, value) and dropout == 0:
        output = _in_products(query, key, value, attention_mask, width**-0.5 if scaling is None else scaling)
        return output.transpose(1, 2).contiguous(), None
    if queries > 1:
        attention_mask = attention_mask.repeat(1, 1, each, 1)
    output = F.scaled_dot_product_attention(
        query.reshape(rows, groups, each * queries, width),
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return output.reshape(rows, heads, queries, -1).transpose(1, 2).contiguous(), None


def _plain(query: Tensor, key: Tensor, value: Tensor) -> bool:
    few = query.shape[2] <= FEW_QUERIES and query.dtype == key.dtype == value.dtype
    return few and products_pay(query.dtype, query.device) and key.is_contiguous() and value.is_contiguous()


def _in_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """What the fused kernel gives, (rows, heads, queries, width)."""
    rows, heads, queries, width = query.shape
    groups, slots = key.shape[1:3]
    scores = torch.bmm((query * scale).reshape(rows * groups, -1, width), key.view(rows * groups, slots, width).mT)
    # Looking nowhere is nobody's: what comes of it must only be a number.
    scores.view(rows, heads, queries, slots).masked_fill_(~mask, torch.finfo(scores.dtype).min)
    return torch.bmm(scores.softmax(-1), value.view(rows * groups, slots, -1)).view(rows, heads, queries, -1)


AttentionInterface.register(GROUPED, grouped_attention)


@contextmanager
def attending(config: PreTrainedConfig, name: str) -> Iterator[None]:
    """Within it, a model of this configuration that uses torch's kernel attends with a registered function instead."""
    if config._attn_implementation != "sdpa":
        yield
        return
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def grouped(config: PreTrainedConfig) -> AbstractContextManager[None]:
    """Within it, a model of this configuration attends with `grouped_attention` if it groups heads and uses sdpa."""
    heads = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None) or heads
    return nullcontext() if heads == shared else attending(config, GROUPED)
