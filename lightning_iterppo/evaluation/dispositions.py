"""What people did with suggestions: acceptance rate, shares of the dispositions, and how far edits went."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, get_args

from rapidfuzz.distance import Levenshtein

from lightning_iterppo.conversation import Conversation, Disposition
from lightning_iterppo.evaluation.rates import wilson_interval


@dataclass
class DispositionCounts:
    """Dispositions of turns, as many as there may be.

    Args:
        counts: turns by disposition.
        edit_total: the sum over the edited ones of Levenshtein's distance in units of the longer text: 0 where nothing
            changed, 1 where nothing is left.
    """

    counts: Counter[Disposition] = field(default_factory=Counter)
    edit_total: float = 0.0

    def add(self, conversation: Conversation) -> None:
        """Counts the turns of one more conversation."""
        for turn in conversation.turns:
            self.counts[turn.disposition] += 1
            if turn.disposition == "edited" and turn.suggestion is not None:
                self.edit_total += Levenshtein.normalized_distance(turn.suggestion.text, turn.message)

    @property
    def suggestions(self) -> int:
        """Turns with a suggestion."""
        return self.counts.total() - self.counts["unassisted"]

    def to_json(self) -> dict[str, Any]:
        """The metrics; those of suggestions are None where there was none.

        ``acceptance_rate`` is of suggestions, with Wilson's 95 % interval, as if turns were independent; ``shares`` are
        of all turns; ``edit_distance`` is the mean over the edited ones.
        """
        made, turns = self.suggestions, self.counts.total()
        accepted, edited = self.counts["accepted"], self.counts["edited"]
        return {
            "suggestions": made,
            "acceptance_rate": accepted / made if made else None,
            "acceptance_ci95": list(wilson_interval(accepted, made)) if made else None,
            "shares": {each: self.counts[each] / turns if turns else None for each in get_args(Disposition)},
            "edit_distance": self.edit_total / edited if edited else None,
        }
