"""Models that can be run in two parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import nn
from transformers import PreTrainedConfig

# Models that are an embedding, equal layers one after another, and a norm: these can be run in two parts.
PLAIN_STACKS = ("llama", "mistral", "qwen2", "qwen3")


def plain_stack(config: PreTrainedConfig) -> bool:
    """Whether a model is one, and its layers are all of one kind: they are told what kind they are by their number."""
    return config.model_type in PLAIN_STACKS and len(set(getattr(config, "layer_types", None) or ())) <= 1


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
