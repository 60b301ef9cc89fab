"""Models that can be run in two parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import nn

# Models that are an embedding, equal layers one after another, and a norm: these can be run in two parts.
PLAIN_STACKS = ("llama", "mistral", "qwen2", "qwen3")


@contextmanager
def layer_span(trunk: nn.Module, start: int, stop: int | None) -> Iterator[None]:
    """The trunk with some of its layers only; without its final norm when it stops before the end."""
    layers, norm = trunk.layers, trunk.norm
    trunk.layers = cast(nn.ModuleList, layers)[start:stop]
    if stop is not None:
        trunk.norm = nn.Identity()
    try:
        yield
    finally:
        trunk.layers, trunk.norm = layers, norm
