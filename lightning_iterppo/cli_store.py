"""`iterppo store`: its subcommands, their words, and what they print. SQLAlchemy is imported inside."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from lightning_iterppo import cli_output as output
from lightning_iterppo.cli_commands import Command, Job, need_files, need_fresh_output
from lightning_iterppo.cli_import import conversations_progress
from lightning_iterppo.conversation import Conversation, Disposition
from lightning_iterppo.errors import LogDataError, LogFormatError
from lightning_iterppo.files import flush

if TYPE_CHECKING:
    from lightning_iterppo.data.store.conversation_store import Added
    from lightning_iterppo.data.store.figures import VersionFigures

_SHOWN: Final[tuple[Disposition, ...]] = ("accepted", "edited", "rejected")
_URL = "a SQLite file, or postgresql://USER@HOST/NAME"


def add_subcommands(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `iterppo store`."""
    found = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=type(parser))

    def command(name: str, function: Command, text: str) -> argparse.ArgumentParser:
        one = found.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        one.set_defaults(command=function)
        one.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks and logs")
        one.add_argument("url", metavar="URL", help=_URL)
        one.add_argument("--json", action="store_true", help="print the figures as JSON and nothing else")
        return one

    one = command("add", add, "conversations of files into a store, which is made if it is not there")
    one.add_argument("files", type=Path, nargs="+", metavar="FILE", help="logs, ours or the chat form")

    one = command("outcomes", outcomes, "outcomes that came later, joined by the conversation's id")
    one.add_argument("file", type=Path, metavar="FILE", help="ids and outcomes: CSV or JSON lines")
    one.add_argument("--mapping", type=Path, metavar="FILE.yaml", help="names of its columns, and what its words mean")
    one.add_argument("--skip-bad", action="store_true", help="leave broken records out and count them")
    one.add_argument("--correct", action="store_true", help="let them take the place of outcomes that were wrong")

    one = command("export", export, "conversations of a store into a file, one a line")
    one.add_argument("-o", "--output", type=Path, metavar="FILE.jsonl", required=True, help="the file")
    one.add_argument("--policy-version", nargs="+", metavar="VERSION", help="only those in which these policies talked")
    one.add_argument("--run", metavar="RUN", help="only those that this run collected")
    one.add_argument("--iteration", type=int, metavar="K", help="only those of this iteration")
    one.add_argument("--known-outcomes", action="store_true", help="only those whose outcome is known")

    command("show", show, "what is in a store, by the policy that made it")
    command("upgrade", upgrade, "an older store to the form of this version")


def add(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo store add`."""
    from lightning_iterppo.data.store import ConversationStore
    from lightning_iterppo.data.store.database import Database

    need_files(arguments.files)

    def write(url: str) -> Added:
        with ConversationStore(url) as store, conversations_progress("adding") as moved:
            return store.add(_conversations(arguments.files, moved))

    database = Database(arguments.url)
    found = None if database.file is None else _made_whole(database.file, write)
    if found is None:
        found = write(arguments.url)
    output.figures({"store": str(database), **asdict(found)}, arguments.json)
    return 0


def _made_whole(file: Path, write: Callable[[str], Added]) -> Added | None:
    """Makes a SQLite store beside its place, and puts it there when all is in it: what fails leaves none behind.

    Args:
        file: the place.
        write: writes into the store of a URL, and makes it.

    Returns:
        What was written; None if a store is there, or if this one could not be put there: nothing was written then.
    """
    # The journal that another database left behind would be taken for the new one's.
    taken = any(os.path.lexists(f"{file}{end}") for end in ("", "-wal", "-journal"))
    if taken or not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
        return None
    with TemporaryDirectory(prefix=".iterppo-", dir=file.parent) as place:
        made = Path(place, "store.db")
        found = write(str(made))
        if os.listdir(place) != [made.name]:  # a part is still in its journal, for want of room
            return None
        try:
            # Unlike a rename it cannot take the place of a store that somebody else made meanwhile.
            os.link(made, file)
        except OSError:  # somebody else did, or the file system has no links
            return None
    flush(file.parent)
    return found


def _conversations(files: Sequence[Path], moved: Callable[[float, int], None]) -> Iterator[Conversation]:
    """Those of all files.

    Args:
        files: which.
        moved: is told the share that was read, and how many conversations.

    Raises:
        LogFormatError: a line is not a conversation or has no id, or a file holds none.
    """
    from lightning_iterppo.data.logs import numbered_conversations

    total, before, count = max(1, sum(file.stat().st_size for file in files)), 0, 0
    for file in files:
        empty = True
        for number, offset, conversation in numbered_conversations(file):
            if not conversation.id:
                raise LogFormatError(file, number, "no id, by which outcomes are joined; `iterppo import` gives one")
            empty = False
            yield conversation
            count += 1
            moved((before + offset) / total, count)
        if empty:
            raise LogFormatError(file, 0, "the file holds no conversation")
        before += file.stat().st_size


def outcomes(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo store outcomes`."""
    from lightning_iterppo.data.importing import Mapping, load_mapping
    from lightning_iterppo.data.importing.outcomes import DelayedOutcomes
    from lightning_iterppo.data.importing.records import Builder
    from lightning_iterppo.data.importing.scratch import Scratch
    from lightning_iterppo.data.store import ConversationStore

    need_files([arguments.file])
    mapping = Mapping() if arguments.mapping is None else load_mapping(arguments.mapping)
    mapping.check_used(("outcomes", "outcome_values", "delimiter"), "outcomes alone")
    scratch = Scratch()
    try:
        # The whole file first: what is broken in it is found before anything is written.
        delayed = DelayedOutcomes(scratch)
        delayed.load(arguments.file, mapping, Builder(mapping, mapping.fields), arguments.skip_bad)
        with ConversationStore(arguments.url, create=False) as store:
            found = store.record_outcomes(scratch.outcomes(), correct=arguments.correct)
            said = {
                "recorded": found.recorded,
                "known": found.repeated,
                "without_conversation": found.unmatched,
            }
            read = {"read": delayed.read, "repeated": delayed.repeated, "empty": delayed.empty}
            output.figures({"store": str(store), **read, "dropped": dict(delayed.dropped), **said}, arguments.json)
    finally:
        scratch.close()
    return 0


def export(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo store export`."""
    from lightning_iterppo.data.logs import write_conversations
    from lightning_iterppo.data.store import ConversationStore

    need_fresh_output(arguments.output)
    count = 0

    def counted(conversations: Iterable[Conversation]) -> Iterator[Conversation]:
        nonlocal count
        for count, conversation in enumerate(conversations, start=1):  # noqa: B007 - it is what is asked for
            yield conversation
        if not count:
            raise LogDataError(f"{store} has no such conversation; `iterppo store show` says what there is")

    with ConversationStore(arguments.url, create=False) as store:
        found = store.conversations(
            policy_versions=arguments.policy_version,
            run=arguments.run,
            iteration=arguments.iteration,
            known_outcomes=arguments.known_outcomes,
        )
        write_conversations(arguments.output, counted(found))
        output.figures({"store": str(store), "file": str(arguments.output), "conversations": count}, arguments.json)
    return 0


def show(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo store show`."""
    from lightning_iterppo.data.store import ConversationStore, store_figures

    with ConversationStore(arguments.url, create=False) as store:
        found = store_figures(store)
    if arguments.json:
        output.say_json(found.to_json())
    else:
        whole = {key: value for key, value in found.to_json().items() if key != "policy_versions"}
        output.figures(whole, False)
        if found.versions:
            output.say("", *map(_line, found.versions))
    return 0


def _line(version: VersionFigures) -> str:
    """What came of one policy."""
    name = "no policy" if version.policy_version is None else version.policy_version
    ended, rate = version.outcome, "no outcome known"
    if ended is not None:
        low, high = (100 * each for each in ended.ci95)
        share = f"{100 * ended.outcome_rate:.1f} % ({low:.1f} to {high:.1f})"
        rate = f"outcome rate {share} of {ended.conversations} known"
    made, counts = version.dispositions.suggestions, version.dispositions.counts
    shares = ", ".join(f"{each} {100 * counts[each] / made:.1f} %" for each in _SHOWN) if made else ""
    suggested = f"{made} suggestions: {shares}" if made else "no suggestions"
    return f"{name}: {version.conversations} conversations; {rate}; {suggested}"


def upgrade(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo store upgrade`."""
    from lightning_iterppo.data.store import upgrade_store

    output.figures(asdict(upgrade_store(arguments.url)), arguments.json)
    return 0
