"""What a language model's output embedding makes of hidden states: logits, and log-probabilities of tokens."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_iterppo.models.linear import is_whole
from lightning_iterppo.models.logprobs import response_logprobs, score_tokens
from lightning_iterppo.models.tree import TreeBatch


class OutputHead:
    """The output embedding, and what some models do with what it gives: Gemma 2, Cohere, Granite.

    Args:
        model: the transformers model, adapters injected.
        once: make logits once where the embedding does not train, see `logprobs`.
    """

    def __init__(self, model: PreTrainedModel, *, once: bool) -> None:
        self.model = model
        self.once = once
        text = model.config.get_text_config()
        self._cap: float | None = getattr(text, "final_logit_softcapping", None)
        self._scale = float(getattr(text, "logit_scale", None) or 1) / float(getattr(text, "logits_scaling", None) or 1)

    @property
    def module(self) -> nn.Module:
        """The embedding."""
        return cast(nn.Module, self.model.get_output_embeddings())

    @property
    def weight(self) -> Tensor:
        """Its weights, (vocabulary, hidden)."""
        return cast(Tensor, self.module.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next token in float32, (…, vocabulary)."""
        found = cast(Tensor, self.module(hidden)).float() * self._scale
        return found if self._cap is None else torch.tanh(found / self._cap) * self._cap

    def response_logprobs(
        self, hidden: Tensor, batch: TreeBatch, *, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`logprobs.response_logprobs`, the fast way when the embedding does not train."""
        frozen = self._frozen(hidden)
        return response_logprobs(hidden, batch, self.logits, frozen_head=frozen, entropy_gradient=entropy_gradient)

    def score_tokens(self, hidden: Tensor, tokens: Tensor, *, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
        """`logprobs.score_tokens`, the same way."""
        frozen = self._frozen(hidden)
        return score_tokens(hidden, tokens, self.logits, frozen_head=frozen, entropy_gradient=entropy_gradient)

    def _frozen(self, hidden: Tensor) -> Tensor | None:
        """The weights, if log-probabilities can be made with them the fast way."""
        # `type` and not `isinstance`: a quantised map is a subclass that does not compute a product with its weight.
        frozen = (
            self.once
            and self._cap is None
            and self._scale == 1
            and type(self.module) is nn.Linear
            and getattr(self.module, "bias", None) is None
            and hidden.dtype == self.weight.dtype
            and is_whole(self.weight)
            and not self.weight.requires_grad
            and not torch.is_autocast_enabled(hidden.device.type)
        )
        return self.weight if frozen else None
