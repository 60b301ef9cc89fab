"""What an import read, changed, dropped and wrote, in figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.importing.outcomes import DelayedOutcomes
from lightning_iterppo.evaluation.dispositions import DispositionCounts

_EXAMPLES = 10


@dataclass
class ImportReport:
    """The figures of one import.

    Args:
        format: which.
        output: the file that was written.
        conversations_read: records that were looked at, the dropped ones too.
        conversations_written: those that became conversations.
        turns: agent messages that were written.
        outcomes_known: conversations written with an outcome.
        outcomes_positive: those with one above 0.
        outcome_total: the sum of the outcomes.
        dropped: records that became none, by reason.
        examples: the first of them, each with its place.
        changes: what was done to make conversations of the log, e.g. messages that were joined.
        not_kept: fields of the log that are not kept, with the number of times they were met.
        rows_read: rows of tables; None for other formats.
        rows_dropped: rows that belong to no conversation, by reason.
        redacted: what was replaced, by kind; None where nothing was looked for.
        ids_like_personal_data: ids, which are kept as they are, in which such data is found.
        tokens_dropped: suggestions that lost their token ids with the personal data in them.
        delayed: the file of delayed outcomes.
        outcomes_matched: conversations written that it has an outcome of.
        outcomes_unmatched: its outcomes that no conversation was read for.
        dispositions: of the turns that were written.
    """

    format: str
    output: str
    conversations_read: int = 0
    conversations_written: int = 0
    turns: int = 0
    outcomes_known: int = 0
    outcomes_positive: int = 0
    outcome_total: float = 0.0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    not_kept: Counter[str] = field(default_factory=Counter)
    rows_read: int | None = None
    rows_dropped: Counter[str] = field(default_factory=Counter)
    redacted: Counter[str] | None = None
    ids_like_personal_data: int = 0
    tokens_dropped: int = 0
    delayed: DelayedOutcomes | None = None
    outcomes_matched: int = 0
    outcomes_unmatched: int = 0
    dispositions: DispositionCounts = field(default_factory=DispositionCounts)

    def drop(self, place: str, reason: str, detail: str) -> None:
        """Counts a record that became no conversation."""
        self.dropped[reason] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{place}: {reason}: {detail}")

    def keep(self, conversation: Conversation) -> None:
        """Counts a conversation that is written."""
        self.conversations_written += 1
        self.turns += len(conversation.turns)
        if conversation.outcome is not None:
            self.outcomes_known += 1
            self.outcomes_positive += conversation.outcome > 0
            self.outcome_total += conversation.outcome

    def to_json(self) -> dict[str, Any]:
        """The figures; one that has no meaning for this import is left out, one that is not known is None."""
        known = self.outcomes_known
        found: dict[str, Any] = {"conversations": self.output, "format": self.format}
        if self.rows_read is not None:
            found["rows"] = {"read": self.rows_read, "dropped": dict(self.rows_dropped)}
        found["read"] = self.conversations_read
        found["dropped"] = {"total": self.dropped.total(), **self.dropped}
        found["written"] = self.conversations_written
        found["turns"] = self.turns
        found["changes"] = dict(self.changes)
        found["fields_not_kept"] = dict(self.not_kept)
        found["outcomes"] = {
            "known": known,
            "unknown": self.conversations_written - known,
            "share_above_0": self.outcomes_positive / known if known else None,
            "mean": self.outcome_total / known if known else None,
        }
        if self.delayed is not None:
            found["delayed_outcomes"] = {
                "read": self.delayed.read,
                "repeated": self.delayed.repeated,
                "empty": self.delayed.empty,
                "dropped": dict(self.delayed.dropped),
                "matched": self.outcomes_matched,
                "conversations_without": self.conversations_written - known,
                "outcomes_without_conversation": self.outcomes_unmatched,
            }
        if self.redacted is not None:
            found["redacted"] = {
                **self.redacted,
                "ids_like_personal_data": self.ids_like_personal_data,
                "suggestions_without_their_tokens": self.tokens_dropped,
            }
        found["dispositions"] = self.dispositions.to_json()
        found["examples"] = list(self.examples)
        return found
