"""Log-probabilities and entropies of response tokens, a few tokens' vocabulary at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_iterppo.models.tree import TreeBatch

CHUNK = 256  # tokens whose logits are held at once: 256 x 49,152 x 4 bytes = 50 MB


def _score(hidden: Tensor, tokens: Tensor, logits_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    logprobs = torch.log_softmax(logits_of(hidden), dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, tokens[:, None]).squeeze(-1), entropy


def response_logprobs(
    hidden: Tensor, batch: TreeBatch, logits_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact log-probabilities at temperature 1 of the tokens of every response.

    Logits are made for response tokens only and in chunks, recomputed in the backward pass, so that a large vocabulary
    is never held for a whole batch.

    Args:
        hidden: the trunk's last hidden states, (rows, tokens, hidden).
        batch: the rows and their responses.
        logits_of: hidden states (n, hidden) to logits (n, vocabulary).

    Returns:
        Log-probabilities and entropies, each (batch, response) with 0 where there is no token, and the hidden states
        that predict the tokens, (batch, response, hidden).
    """
    predicting = hidden[batch.action_rows[:, None], batch.predict_positions]  # (batch, response, hidden)
    chosen = predicting[batch.action_mask]  # (n, hidden)
    tokens = batch.action_tokens[batch.action_mask]
    parts = []
    for start in range(0, chosen.shape[0], CHUNK):
        piece, target = chosen[start : start + CHUNK], tokens[start : start + CHUNK]
        if torch.is_grad_enabled():
            parts.append(checkpoint(_score, piece, target, logits_of, use_reentrant=False))
        else:
            parts.append(_score(piece, target, logits_of))
    logprobs = torch.zeros(batch.action_mask.shape, dtype=torch.float32, device=hidden.device)
    entropies = torch.zeros_like(logprobs)
    if parts:
        logprobs = logprobs.masked_scatter(batch.action_mask, torch.cat([p for p, _ in parts]))
        entropies = entropies.masked_scatter(batch.action_mask, torch.cat([e for _, e in parts]))
    return logprobs, entropies, predicting
