"""What people did with suggestions: acceptance rate, shares of the dispositions, and how far edits went."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, get_args

from lightning_iterppo.conversation import Conversation, Disposition
from lightning_iterppo.evaluation.rates import wilson_interval


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's distance: the fewest characters to insert, remove or replace to make one of the other.

    Computed bit-parallel, a column of the table in one integer (Myers 1999, in the form of Hyyrö 2003).
    """
    if len(first) > len(second):
        first, second = second, first
    if not first:
        return len(second)
    places: dict[str, int] = {}
    for index, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << index
    whole = (1 << len(first)) - 1
    last = 1 << (len(first) - 1)
    up, down, distance = whole, 0, len(first)
    for character in second:
        match = places.get(character, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        right, left = down | (whole & ~(diagonal | up)), up & diagonal
        distance += bool(right & last) - bool(left & last)
        right, left = (right << 1 | 1) & whole, (left << 1) & whole
        up, down = left | (whole & ~(diagonal | right)), right & diagonal
    return distance


def normalised_edit_distance(suggestion: str, sent: str) -> float:
    """`edit_distance` in units of the longer text: 0 where nothing changed, 1 where nothing is left."""
    longer = max(len(suggestion), len(sent))
    return edit_distance(suggestion, sent) / longer if longer else 0.0


@dataclass
class DispositionCounts:
    """Dispositions of turns, as many as there may be.

    Args:
        counts: turns by disposition.
        edit_total: the sum of `normalised_edit_distance` over the edited ones.
    """

    counts: Counter[Disposition] = field(default_factory=Counter)
    edit_total: float = 0.0

    def add(self, conversation: Conversation) -> None:
        """Counts the turns of one more conversation."""
        for turn in conversation.turns:
            self.counts[turn.disposition] += 1
            if turn.disposition == "edited" and turn.suggestion is not None:
                self.edit_total += normalised_edit_distance(turn.suggestion.text, turn.message)

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
