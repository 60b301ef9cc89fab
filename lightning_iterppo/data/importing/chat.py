"""The chat form: JSON objects with ``messages`` of ``role`` and ``content``, and an ``outcome``.

They stand one a line, or in one array.

A message of the assistant may have a ``suggestion`` and a ``disposition``; a message may have a ``reward``. What else
the object holds is kept as metadata, what else a message holds is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning_iterppo.data.importing import mapping
from lightning_iterppo.data.importing.context import Context, Item
from lightning_iterppo.data.importing.lines import read_lines
from lightning_iterppo.data.importing.records import NAMED, BadRecord, Built, Place, Said, text_id

FIELDS = replace(mapping.FIELDS, conversation="id", messages="messages", speaker="role", text="content")
#: The keys of a mapping file that mean something here.
USES = (*mapping.USES, "fields.messages")
_CALLS = ("tool_calls", "function_call")  # where OpenAI's messages have calls of tools, with ``content`` null


def read(files: list[Path], context: Context) -> Iterator[Item]:
    """The conversations of files in the chat form."""
    return read_lines(files, context, partial(from_record, context))


def from_record(context: Context, place: Place, record: dict[str, Any]) -> Built:
    """A conversation from an object with a list of messages.

    Raises:
        BadRecord: it is none.
    """
    fields, builder = context.fields, context.builder
    if fields.messages not in record:
        found = ", ".join(map(repr, list(record)[:8])) or "nothing"
        raise BadRecord("no messages", f"there is no {fields.messages!r}; found {found}")
    raw = record.get(str(fields.messages))
    if not isinstance(raw, list) or not raw:
        raise BadRecord("no messages", f"{fields.messages!r} must be a list with at least one message")
    not_kept: Counter[str] = Counter()
    names = (fields.speaker, fields.text, fields.suggestion, fields.disposition, fields.reward)
    said = []
    for index, message in enumerate(raw):
        if not isinstance(message, dict):
            raise BadRecord("a message that is no object", f"message {index}: found {message!r}")
        each = Said(*(message.get(str(key)) for key in names))
        if each.text is None and any(message.get(key) for key in _CALLS):
            if context.mapping.empty_messages == "error":
                raise BadRecord(
                    "a tool call without text",
                    f"message {index}: what a policy says is learned from, not what it calls; --mapping with "
                    "empty_messages: drop leaves the call out, and with roles: {tool: ignore} the tool's answer",
                )
            each = replace(each, text="")
        said.append(each)
        if len(message) > 2:
            not_kept.update(key for key, value in message.items() if key not in names and value is not None)
    given = text_id(record.get(str(fields.conversation)))
    name = given or f"{place.path.stem}-{place.number}"
    outcome = context.outcomes.of(name, builder.number(record.get(str(fields.outcome)), repr(fields.outcome)))
    taken = (fields.conversation, fields.messages, fields.outcome)
    built = builder.build(name, said, outcome, {key: each for key, each in record.items() if key not in taken})
    built.notes[NAMED] += given is None
    built.not_kept = not_kept
    return built
