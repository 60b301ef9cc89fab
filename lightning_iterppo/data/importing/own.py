"""Our own form, as `iterppo collect` writes it: checked, joined with outcomes, and cleaned of personal data."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lightning_iterppo.conversation import Conversation, ConversationError, Suggestion, Turn
from lightning_iterppo.data.importing.context import Context, Item
from lightning_iterppo.data.importing.lines import read_lines
from lightning_iterppo.data.importing.mapping import Fields
from lightning_iterppo.data.importing.records import NAMED, BadRecord, Built, Place, contradiction, settle_outcome

FIELDS = Fields()
#: The keys of a mapping file that mean something here.
USES: tuple[str, ...] = ()
_KEPT, _KEPT_OF_TURN, _KEPT_OF_SUGGESTION = (
    {each.name for each in dataclasses.fields(part)} for part in (Conversation, Turn, Suggestion)
)
#: How far above 0 a log-probability may be: a server's rounding, which no ratio of probabilities notices.
_ROUNDING = 1e-3


def read(files: list[Path], context: Context) -> Iterator[Item]:
    """The conversations of files in our own form."""
    return read_lines(files, context, partial(_from_record, context))


def _from_record(context: Context, place: Place, record: dict[str, Any]) -> Built:
    if "turns" not in record:
        hint = ": `iterppo import chat` reads the chat form" if "messages" in record else ""
        raise BadRecord("no turns", f'there is no "turns"{hint}')
    try:
        found = Conversation.from_json(record)
    except ConversationError as error:
        raise BadRecord("not a conversation", str(error)) from error
    for index, turn in enumerate(found.turns):
        suggestion = None if turn.suggestion is None else turn.suggestion.text
        # An edit of nothing but a phone number is no longer to be seen where phone numbers were replaced.
        wrong = contradiction(turn.disposition, suggestion, turn.message, edits=False)
        if wrong:
            raise BadRecord("a disposition that cannot be", f"turn {index}: {wrong}")
        # A policy that ended at once said nothing, and a person may send nothing for what it said: both are actions.
        if turn.suggestion is None and not turn.message.strip():
            raise BadRecord("an empty message", f"turn {index}: nothing was suggested, and nothing was sent")
        above = max(turn.suggestion.logprobs, default=0.0) if turn.suggestion else 0.0
        if above > _ROUNDING:
            raise BadRecord(
                "a log-probability above 0", f"turn {index}: found {above:g}; leave them out where they are not known"
            )
    named = not found.id.strip()
    name = f"{place.path.stem}-{place.number}" if named else found.id
    outcome = context.outcomes.of(name, found.outcome)
    turns = found.turns
    if outcome is not None:
        rewards = settle_outcome([turn.reward for turn in turns], outcome)
        turns = tuple(dataclasses.replace(turn, reward=each) for turn, each in zip(turns, rewards, strict=True))
    built = Built(dataclasses.replace(found, id=name, outcome=outcome, turns=turns))
    built.notes[NAMED] += named
    built.not_kept = _not_kept(record)
    return built


def _not_kept(record: dict[str, Any]) -> Counter[str]:
    """The fields of a record that a conversation, its turns and their suggestions do not have."""
    found = Counter(key for key in record if key not in _KEPT)
    for turn in record["turns"]:
        found.update(f"turns.{key}" for key in turn if key not in _KEPT_OF_TURN)
        made = turn.get("suggestion") or {}
        found.update(f"turns.suggestion.{key}" for key in made if key not in _KEPT_OF_SUGGESTION)
    return found
