"""How a next token is drawn, and with what log-probability."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are sampled.

    PPO's theory is about the distribution that really sampled. At temperature 1 with ``top_p`` 1 that is the model's
    own distribution and the recorded log-probabilities are exact for it. Another temperature or a smaller ``top_p``
    samples from a sharper or truncated distribution; the recorded log-probabilities are then of *that* distribution (so
    they stay valid as a behaviour policy's, for importance weights), and they differ from the log-probabilities that
    training computes at temperature 1. Improvement therefore samples at temperature 1 and ``top_p`` 1, always.

    Args:
        temperature: divides the logits; 0 takes the most likely token (log-probability 0).
        top_p: keeps the smallest set of tokens with at least this probability.
        max_new_tokens: a response is cut here.

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"sampling.temperature must be 0 or more, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p must be in (0, 1], found {self.top_p}")
        if self.max_new_tokens < 1:
            raise ValueError(f"sampling.max_new_tokens must be at least 1, found {self.max_new_tokens}")


def sample_tokens(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws one token a row.

    Args:
        logits: (batch, vocabulary), float32.
        sampling: temperature and top-p.
        generator: where the randomness comes from.

    Returns:
        Tokens (batch,) and their log-probabilities under the distribution they were drawn from (batch,).
    """
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=-1)
        return tokens, torch.zeros_like(tokens, dtype=torch.float32)
    logprobs = torch.log_softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, order = logprobs.sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(dim=-1) - ordered.exp()  # probability of everything more likely
        dropped = torch.zeros_like(logprobs, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        logprobs = torch.log_softmax(logprobs.masked_fill(dropped, float("-inf")), dim=-1)
    # By inverting the distribution function: one random number a row, where exponential or Gumbel noise for a whole
    # vocabulary takes longer than the model. In float64, so that rare tokens are not lost in the sum.
    cumulative = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    drawn = torch.rand(total.shape, generator=generator, dtype=torch.float64, device=logits.device) * total
    tokens = torch.searchsorted(cumulative, drawn, right=True).clamp(max=logits.shape[-1] - 1)
    return tokens.squeeze(-1), logprobs.gather(-1, tokens).squeeze(-1)
