"""What an engine is: prompts in, responses with token ids and log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lightning_iterppo.generation.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Response:
    """A sampled response.

    Args:
        token_ids: the tokens, with the end token when the response ended by itself.
        logprobs: log-probability of each token under the distribution it was drawn from.
        finished: whether it ended by itself and was not cut at the maximum length.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


class Engine(Protocol):
    """Anything that samples responses."""

    @property
    def generated_tokens(self) -> int:
        """How many tokens this engine has sampled so far."""

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Response]:
        """One response for each prompt, in the same order. The same prompt may occur several times."""
