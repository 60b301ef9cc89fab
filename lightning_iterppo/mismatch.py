"""How far a server's log-probabilities are from those of the weights that are trained, which should be the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lightning_iterppo.behaviour import token_logprobs
from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Differences of log-probabilities, added up over tokens.

    Args:
        tokens: how many were compared.
        absolute: sum of the absolute differences, in nats.
        greatest: the greatest of them.
        kl: sum of the estimates of KL(server ‖ trainer), k3 (Schulman 2020), in nats.
        recomputed: suggestions of which the server said nothing, and that have the trainer's log-probabilities.
    """

    tokens: int = 0
    absolute: float = 0.0
    greatest: float = 0.0
    kl: float = 0.0
    recomputed: int = 0

    def __add__(self, other: Mismatch) -> Mismatch:
        return Mismatch(
            self.tokens + other.tokens,
            self.absolute + other.absolute,
            max(self.greatest, other.greatest),
            self.kl + other.kl,
            self.recomputed + other.recomputed,
        )

    def figures(self) -> dict[str, float | None]:
        """For a summary: ``difference_mean``, ``difference_max`` and ``kl`` of a token, in nats; and ``recomputed``."""
        some = self.tokens > 0
        return {
            "difference_mean": self.absolute / self.tokens if some else None,
            "difference_max": self.greatest if some else None,
            "kl": self.kl / self.tokens if some else None,
            "recomputed": self.recomputed,
        }


def compare(
    model: LanguageModel, renderer: ChatRenderer, conversations: Sequence[Conversation], variant: str, *, rows: int = 8
) -> tuple[list[Conversation], Mismatch]:
    """Conversations with the log-probabilities that were missing, and how far those that were there are off.

    Args:
        model: the trainer's weights.
        renderer: the model's chat template.
        conversations: collected by a server.
        variant: of the model, the one that the server sampled from.
        rows: conversations a forward pass.
    """
    trees = [renderer.render(conversation).tree for conversation in conversations]
    found, total = [], Mismatch()
    for conversation, own in zip(conversations, token_logprobs(model, trees, variant, rows=rows), strict=True):
        turns = []
        for turn, logprobs in zip(conversation.turns, own, strict=True):
            said, difference = _compared(turn, logprobs)
            turns.append(said)
            total += difference
        found.append(replace(conversation, turns=tuple(turns)))
    return found, total


def _compared(turn: Turn, own: Sequence[float]) -> tuple[Turn, Mismatch]:
    made = turn.suggestion
    if made is None:
        return turn, Mismatch()
    if not made.logprobs:
        return replace(turn, suggestion=replace(made, logprobs=tuple(own))), Mismatch(recomputed=1)
    differences = [mine - theirs for mine, theirs in zip(own, made.logprobs, strict=True)]
    return turn, Mismatch(
        len(differences), sum(map(abs, differences)), max(map(abs, differences), default=0.0), _kl(differences)
    )


def _kl(differences: Iterable[float]) -> float:
    return sum(math.expm1(difference) - difference for difference in differences)
