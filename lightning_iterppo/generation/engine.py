"""What an engine is: prompts in, responses with token ids and log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models.rendering import ChatRenderer


@dataclass(frozen=True, slots=True)
class Response:
    """A sampled response.

    Args:
        token_ids: the tokens, with the end token when the response ended by itself.
        logprobs: log-probability of each token under the distribution it was drawn from; empty where the engine does
            not know it.
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

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Sequence[int] | None = None
    ) -> list[Response]:
        """One response for each prompt, in the same order. The same prompt may occur several times.

        Args:
            prompts: token ids.
            sampling: how.
            seeds: one a prompt, from 0 to below 2⁶³. A response's randomness comes from its own seed alone, as far as
                the engine can do that: several processes then say what one says. None takes the engine's own.
        """


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """A policy on the disk.

    Args:
        path: its directory, absolute.
        name: of these weights: other weights have another name.
    """

    path: Path
    name: str


class PolicyServer(Protocol):
    """Something that samples from a policy with weights of its own, which it is given as files.

    It collects conversations in the place of the local engine. The rounds of an improvement change the policy at every
    step, and sample from the weights in memory.
    """

    @property
    def takes(self) -> Literal["adapter", "merged"]:
        """The files that it is given: a PEFT adapter's, or those of a whole Hugging Face model."""

    def load(self, policy: PolicyFiles, before: PolicyFiles | None) -> None:
        """Takes a policy into use; one process calls it.

        Args:
            policy: what engines sample from from now on. Its files stay until the next one is loaded.
            before: the last one, which no engine samples from any more.

        Raises:
            EngineError: the server cannot be reached, or refuses.
        """

    def engine(self, policy: PolicyFiles, seed: int, renderer: ChatRenderer) -> Engine:
        """Samples from the policy that was loaded last, with randomness of its own; every process has one."""
