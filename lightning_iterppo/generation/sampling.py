"""How a next token is drawn, and with what log-probability."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Tokens of the vocabulary whose probabilities are summed up as one.
_PIECE = 256


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


def sample_tokens(logits: Tensor, sampling: Sampling, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Draws one token a row.

    Args:
        logits: (batch, vocabulary), float32.
        sampling: temperature and top-p.
        numbers: where the randomness comes from: one in [0, 1) a row, (batch,), float64.

    Returns:
        Tokens (batch,) and their log-probabilities under the distribution they were drawn from (batch,).
    """
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=-1)
        return tokens, torch.zeros_like(tokens, dtype=torch.float32)
    scaled = logits if sampling.temperature == 1 else logits / sampling.temperature
    logprobs = torch.log_softmax(scaled, dim=-1)
    if sampling.top_p < 1:
        ordered, order = logprobs.sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(dim=-1) - ordered.exp()  # probability of everything more likely
        dropped = torch.zeros_like(logprobs, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        logprobs = torch.log_softmax(logprobs.masked_fill(dropped, float("-inf")), dim=-1)
    # By inverting the distribution function: one random number a row, where exponential or Gumbel noise for a whole
    # vocabulary takes longer than the model. First among pieces of the vocabulary, then within one, so that nothing as
    # large as the vocabulary is summed up in float64, which keeps rare tokens from being lost.
    pieces = F.pad(logprobs.exp(), (0, -logprobs.shape[-1] % _PIECE)).view(len(logits), -1, _PIECE)
    sums = pieces.sum(-1, dtype=torch.float64).cumsum(-1)  # (batch, pieces)
    drawn = numbers[:, None] * sums[:, -1:]
    piece = torch.searchsorted(sums, drawn, right=True).clamp(max=sums.shape[-1] - 1)  # (batch, 1)
    within = pieces.gather(1, piece[..., None].expand(-1, 1, _PIECE)).squeeze(1).cumsum(-1, dtype=torch.float64)
    rest = drawn - F.pad(sums, (1, 0)).gather(-1, piece)
    token = torch.searchsorted(within, rest, right=True)
    # A sum of sums may differ in its last digits from the sum: beyond the last token there is none.
    last = (within < within[:, -1:]).sum(-1, keepdim=True)
    tokens = piece * _PIECE + torch.minimum(token, last)
    return tokens.squeeze(-1), logprobs.gather(-1, tokens).squeeze(-1)
