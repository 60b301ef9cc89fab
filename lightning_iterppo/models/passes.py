"""Passes of a trunk over rows of trees: what can be shared or kept is computed once, and each saving has its switch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lightning_iterppo.models.adaptation import Computing
from lightning_iterppo.models.tree import TreeBatch, own_rows

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


class Passes:
    """Runs a trunk.

    Args:
        model: the transformers model, adapters injected.
        computing: how.
        frozen_layers: how many of its lowest layers no variant changes, and whose outputs are kept; 0 keeps none.
    """

    def __init__(self, model: PreTrainedModel, computing: Computing, *, frozen_layers: int) -> None:
        self.model = model
        self.trunk: nn.Module = getattr(model, model.base_model_prefix)
        self.computing = computing
        self.frozen_layers = frozen_layers
        # Whose features a tree holds. An object and not id(self), which a later model can have again.
        self._owner = object()

    def hidden(self, batch: TreeBatch) -> Tensor:
        """Last hidden states of every token of the rows, (rows, tokens, hidden)."""
        if self.computing.share_prefixes:
            return self._shared(batch)
        alone, rows, positions = own_rows(batch)
        return self._shared(alone)[rows, positions]

    def _shared(self, batch: TreeBatch) -> Tensor:
        if self.frozen_layers == 0:
            return self._run(batch, input_ids=batch.input_ids)
        known = [tree.features for tree in batch.trees]
        width = batch.input_ids.shape[1]
        if any(item is None or item[0] is not self._owner for item in known):
            with torch.no_grad(), layer_span(self.trunk, 0, self.frozen_layers):
                features = self._run(batch, input_ids=batch.input_ids)
            for row, tree in enumerate(batch.trees):
                tree.features = (self._owner, features[row, : len(tree)].clone())
        else:
            features = pad_sequence([item[1] for item in known if item is not None], batch_first=True)
            features = F.pad(features, (0, 0, 0, width - features.shape[1])).to(batch.input_ids.device)
        with layer_span(self.trunk, self.frozen_layers, None):
            return self._run(batch, inputs_embeds=features)

    def _run(self, batch: TreeBatch, **inputs: Tensor) -> Tensor:
        mask = None if batch.attention_mask is None else self.attention_mask(batch.attention_mask)
        output = self.trunk(position_ids=batch.position_ids, attention_mask=mask, use_cache=False, **inputs)
        return cast(Tensor, output.last_hidden_state)

    def attention_mask(self, mask: Tensor) -> Tensor:
        """A mask (rows, 1, queries, keys), true where a query may look, in the form the attention in use takes.

        The fused attention takes it as it is, whatever the precision; the plain one adds 0 or the least number.
        """
        if self.model.config._attn_implementation == "sdpa":
            return mask
        dtype = cast(Tensor, self.model.get_output_embeddings().weight).dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
