"""Log-probabilities and entropies of response tokens, a few tokens' vocabulary at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_iterppo.models.tree import TreeBatch

CHUNK = 256  # tokens whose logits are held at once: 256 x 49,152 x 4 bytes = 50 MB
# With a head that does not train: so many tokens by so many words, 1,024 x 4,096 x 4 bytes = 17 MB.
FROZEN_CHUNK, VOCABULARY_CHUNK = 1024, 4096


def _score(hidden: Tensor, tokens: Tensor, logits_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    logprobs = torch.log_softmax(logits_of(hidden), dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, tokens[:, None]).squeeze(-1), entropy


class _FrozenScore(torch.autograd.Function):
    """What `_score` gives with a head that does not train, differentiable in the hidden states.

    The gradient with respect to them does not depend on what comes later but for a factor, so that it is made while the
    logits are there, and they are made once: ∇ log p(y) = W_y - Σ_v p_v W_v and ∇ H = -Σ_v p_v (log p_v + H) W_v. The
    sums go over the vocabulary piece by piece, scaled anew when a larger logit comes, as in Milakov and Gimelshein
    (2018, arXiv 1805.02867), so that what is made of a piece is still in the processor's cache when it is used.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, tokens: Tensor, head: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:
        largest = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
        total = torch.zeros_like(largest)  # Σ exp(l - largest)
        mean = torch.zeros_like(largest)  # Σ exp(l - largest) (l - largest)
        of_total = of_mean = torch.zeros((), device=hidden.device)  # their gradients, (n, hidden)
        chosen = torch.zeros_like(largest)
        for start in range(0, len(head), VOCABULARY_CHUNK):
            weights = head[start : start + VOCABULARY_CHUNK]
            table = (hidden @ weights.T).float()  # (n, chunk)
            place = tokens - start
            here = (place >= 0) & (place < len(weights))
            found = table.gather(-1, place.clamp(0, len(weights) - 1)[:, None]).squeeze(-1)
            chosen = torch.where(here, found, chosen)
            before, largest = largest, torch.maximum(largest, table.amax(-1))
            table -= largest[:, None]
            factor = (before - largest).exp()  # 0 at first
            shift = torch.where(before.isfinite(), before - largest, 0.0)
            chances = table.exp()
            if ctx.needs_input_grad[0]:
                if with_entropy:
                    weighted = (chances * table).to(head.dtype) @ weights
                    of_mean = factor[:, None] * (of_mean + shift[:, None] * of_total) + weighted
                of_total = factor[:, None] * of_total + chances.to(head.dtype) @ weights
            mean = factor * (mean + shift * total) + torch.linalg.vecdot(chances, table)
            total = factor * total + chances.sum(-1)
        entropy = total.log() - mean / total
        if ctx.needs_input_grad[0]:
            expected = of_total / total[:, None]
            of_entropy = None
            if with_entropy:
                of_entropy = (mean / total)[:, None] * expected - of_mean / total[:, None]
            ctx.save_for_backward((head[tokens] - expected).to(hidden.dtype), of_entropy)
        if not with_entropy:
            ctx.mark_non_differentiable(entropy)
        return chosen - largest - total.log(), entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        of_logprob, of_entropy = ctx.saved_tensors
        found = of_logprob * grads[0][:, None].to(of_logprob.dtype)
        if of_entropy is not None:
            found += (of_entropy * grads[1][:, None]).to(found.dtype)
        return found, None, None, None


def score_tokens(
    hidden: Tensor,
    tokens: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    *,
    frozen_head: Tensor | None = None,
    entropy_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of some tokens, each (n,): see `response_logprobs`, which this is the inside of.

    Args:
        hidden: the hidden states that predict the tokens, (n, hidden), at least one.
        tokens: the tokens, (n,).
        logits_of: hidden states (n, hidden) to logits (n, vocabulary).
        frozen_head: the weights (vocabulary, hidden) of ``logits_of`` if it is their product and they do not train.
        entropy_gradient: False saves the entropies' gradient, which only a frozen head has to pay for.
    """
    parts = []
    size = CHUNK if frozen_head is None else FROZEN_CHUNK
    for start in range(0, hidden.shape[0], size):
        piece, target = hidden[start : start + size], tokens[start : start + size]
        if frozen_head is not None:
            parts.append(_FrozenScore.apply(piece, target, frozen_head, entropy_gradient))  # type: ignore[no-untyped-call]
        elif torch.is_grad_enabled():
            parts.append(checkpoint(_score, piece, target, logits_of, use_reentrant=False))
        else:
            parts.append(_score(piece, target, logits_of))
    return torch.cat([p for p, _ in parts]), torch.cat([e for _, e in parts])


def response_logprobs(
    hidden: Tensor,
    batch: TreeBatch,
    logits_of: Callable[[Tensor], Tensor],
    *,
    frozen_head: Tensor | None = None,
    entropy_gradient: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact log-probabilities at temperature 1 of the tokens of every response.

    Logits are made for response tokens only and in chunks, so that a large vocabulary is never held for a whole batch:
    recomputed in the backward pass if the head trains, else made once, see `_FrozenScore`.

    Args:
        hidden: the trunk's last hidden states, (rows, tokens, hidden).
        batch: the rows and their responses.
        logits_of: hidden states (n, hidden) to logits (n, vocabulary).
        frozen_head: the weights (vocabulary, hidden) of ``logits_of`` if it is their product and they do not train.
        entropy_gradient: False saves the entropies' gradient, which only a frozen head has to pay for.

    Returns:
        Log-probabilities and entropies, each (batch, response) with 0 where there is no token, and the hidden states
        that predict the tokens, (batch, response, hidden).
    """
    predicting = hidden[batch.action_rows[:, None], batch.predict_positions]  # (batch, response, hidden)
    chosen = predicting[batch.action_mask]  # (n, hidden)
    tokens = batch.action_tokens[batch.action_mask]
    logprobs = torch.zeros(batch.action_mask.shape, dtype=torch.float32, device=hidden.device)
    entropies = torch.zeros_like(logprobs)
    if len(chosen):
        found, spread = score_tokens(
            chosen, tokens, logits_of, frozen_head=frozen_head, entropy_gradient=entropy_gradient
        )
        logprobs = logprobs.masked_scatter(batch.action_mask, found)
        entropies = entropies.masked_scatter(batch.action_mask, spread)
    return logprobs, entropies, predicting
