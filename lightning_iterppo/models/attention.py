"""Grouped queries without copies of keys and values, for generation.

Where several query heads share one head of keys and values, transformers repeats the latter before it calls torch, as
soon as there is a mask and more than one query a row; some releases do it with one query too. What was said so far is
then copied for every piece of text that is read, which takes several times as long as the attention itself. The queries
of a group can as well stand one below the other: the same products, and no copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedConfig

GROUPED = "iterppo_grouped"


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


AttentionInterface.register(GROUPED, grouped_attention)


@contextmanager
def grouped(config: PreTrainedConfig) -> Iterator[None]:
    """Within it, a model of this configuration attends with `grouped_attention` if it groups heads and uses sdpa."""
    heads = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None) or heads
    if config._attn_implementation != "sdpa" or heads == shared:
        yield
        return
    config._attn_implementation = GROUPED
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
