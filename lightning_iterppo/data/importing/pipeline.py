"""`import_logs`: from files of one format to a file of conversations, one record at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.importing import chat, datasets_on_disk, own, persuasion, sharegpt, table
from lightning_iterppo.data.importing.context import Context, Reader
from lightning_iterppo.data.importing.mapping import Fields, Mapping
from lightning_iterppo.data.importing.outcomes import DelayedOutcomes
from lightning_iterppo.data.importing.records import BadRecord, Builder, Built, Place, as_error
from lightning_iterppo.data.importing.redaction import Redactor
from lightning_iterppo.data.importing.report import ImportReport
from lightning_iterppo.data.importing.scratch import Scratch
from lightning_iterppo.errors import ConfigError, LogDataError
from lightning_iterppo.files import write_lines_atomically
from lightning_iterppo.recipe_files import nearest

_FOR_ALL = ("outcomes", "redact", "phone_regions")


@dataclass(frozen=True)
class LogFormat:
    """A format: its reader, its names of fields, what of a mapping it takes, and whether it may be a directory."""

    read: Reader
    fields: Fields
    uses: tuple[str, ...]
    directories: bool = False


FORMATS = {
    "iterppo": LogFormat(own.read, own.FIELDS, own.USES),
    "chat": LogFormat(chat.read, chat.FIELDS, chat.USES),
    "sharegpt": LogFormat(sharegpt.read, sharegpt.FIELDS, sharegpt.USES),
    "table": LogFormat(table.read, table.FIELDS, table.USES),
    "datasets": LogFormat(datasets_on_disk.read, datasets_on_disk.FIELDS, datasets_on_disk.USES, directories=True),
    "persuasion": LogFormat(persuasion.read, persuasion.FIELDS, persuasion.USES, directories=True),
}


def import_logs(
    name: str,
    files: Sequence[Path],
    output: Path,
    *,
    mapping: Mapping | None = None,
    outcomes: Path | None = None,
    skip_bad: bool = False,
    redact: Sequence[str] = (),
    on_progress: Callable[[float, int], None] | None = None,
) -> ImportReport:
    """Writes somebody's logs as conversations, a line each; the file is whole or not there.

    The memory does not grow with the number of conversations: one at a time is held, and what must be looked up again
    (ids, outcomes, the rows of a table) lies in a temporary file.

    Args:
        name: one of `FORMATS`.
        files: where the logs are.
        output: where the conversations go.
        mapping: the logs' own names, and their owner's choices.
        outcomes: a file of ids and outcomes, CSV or JSON lines, for logs whose outcomes came later.
        skip_bad: leaves broken records out and counts them; otherwise the first one is an error.
        redact: which personal data is replaced: some of ``email``, ``phone``, ``card``.
        on_progress: called with the share of the input that is done, and the number of conversations.

    Raises:
        LogFormatError: a record is broken, with its file and line or row.
        LogDataError: no conversation is left.
        ConfigError: a format, file, package or setting that is not there, or means nothing here.
    """
    if name not in FORMATS:
        raise ConfigError(f"there is no format {name!r}: {nearest(name, FORMATS)}")
    form, mapping = FORMATS[name], mapping or Mapping()
    mapping.check_used([*form.uses, *_FOR_ALL], f"the format {name}")
    if outcomes is None:
        mapping.check_used([*form.uses, "redact", "phone_regions"], "an import without --outcomes")
    if "phone" not in redact:
        mapping.check_used([*form.uses, "redact", "outcomes"], "an import without --redact phone")
    redactor = Redactor(redact, mapping)
    for path in [*files, *([outcomes] if outcomes else [])]:
        allowed = path.is_file() or (form.directories and path.is_dir() and path != outcomes)
        if not allowed:
            raise ConfigError(f"there is no file {path}" if not path.is_dir() else f"{path} is a directory, not a file")
    report = ImportReport(name, str(output), redacted=Counter(dict.fromkeys(redactor.names, 0)) if redactor else None)
    scratch = Scratch()
    try:
        fields = mapping.fields.over(form.fields)
        builder, delayed = Builder(mapping, fields), DelayedOutcomes(scratch)
        if outcomes is not None:
            delayed.load(outcomes, mapping, builder, skip_bad)
            report.delayed = delayed

        def advance(share: float) -> None:
            if on_progress is not None:
                on_progress(share, report.conversations_written)

        context = Context(mapping, fields, builder, delayed, scratch, skip_bad, advance)
        write_lines_atomically(output, _lines(form.read, list(files), context, redactor, report))
        report.outcomes_unmatched = scratch.outcomes_not_met()
    finally:
        scratch.close()
    advance(1.0)
    return report


def _lines(
    read: Reader, files: list[Path], context: Context, redactor: Redactor, report: ImportReport
) -> Iterator[str]:
    for place, found in read(files, context):
        report.conversations_read += 1
        try:
            if isinstance(found, BadRecord):
                raise found
            yield _kept(place, found, context, redactor, report)
        except BadRecord as bad:
            if not context.skip_bad:
                raise as_error(place, bad) from bad
            report.drop(str(place), bad.reason, bad.detail)
    report.not_kept += context.not_kept
    report.rows_dropped = context.rows_dropped
    if context.rows:
        report.rows_read = context.rows
    if not report.conversations_written:
        why = f": {report.examples[0]}" if report.examples else ""
        raise LogDataError(f"no conversation of {', '.join(map(str, files))} is left to write{why}")


def _kept(place: Place, built: Built, context: Context, redactor: Redactor, report: ImportReport) -> str:
    """The line of a conversation that is good, which is counted."""
    before = context.scratch.claim(built.conversation.id, str(place))
    if before is not None:
        raise BadRecord("an id that was there before", f"{built.conversation.id!r} is that of {before}")
    report.dispositions.add(built.conversation)
    conversation = built.conversation
    if report.redacted is not None:
        conversation = redactor.conversation(conversation, report.redacted)
        report.ids_like_personal_data += redactor.suspects(conversation.id)
        report.tokens_dropped += _tokens(built.conversation) - _tokens(conversation)
    report.keep(conversation)
    report.changes += built.notes
    report.not_kept += built.not_kept
    report.outcomes_matched += context.outcomes.holds(conversation.id)
    return json.dumps(conversation.to_json(), ensure_ascii=False, allow_nan=False)


def _tokens(conversation: Conversation) -> int:
    """Suggestions with token ids."""
    return sum(turn.suggestion is not None and bool(turn.suggestion.token_ids) for turn in conversation.turns)
