"""`iterppo import`: its options, its progress and its report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_iterppo import cli_output as output
from lightning_iterppo.cli_commands import Job, need_fresh_output
from lightning_iterppo.errors import ConfigError

#: At most this often a plain line, in seconds, where there is no terminal.
PLAIN_SECONDS = 10.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "format", metavar="FORMAT", help="iterppo, chat, sharegpt, table (CSV, Parquet), datasets or persuasion"
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="the logs")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.jsonl", required=True, help="one conversation a line")
    parser.add_argument("--mapping", type=Path, metavar="FILE.yaml", help="names of fields, columns and roles")
    parser.add_argument("--outcomes", type=Path, metavar="FILE", help="outcomes that came later: CSV or JSON lines")
    parser.add_argument("--skip-bad", action="store_true", help="leave broken records out and count them")
    parser.add_argument("--redact", metavar="KINDS", default="", help="personal data to replace: email,phone,card")


def import_logs(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo import`."""
    from lightning_iterppo.data import importing

    target: Path = arguments.output
    need_fresh_output(target)
    kinds = [kind.strip() for kind in arguments.redact.split(",") if kind.strip()]
    if arguments.redact and not kinds:
        raise ConfigError("--redact says nothing: give some of email,phone,card")
    mapping = None if arguments.mapping is None else importing.load_mapping(arguments.mapping)
    with conversations_progress("importing") as moved:
        report = importing.import_logs(
            arguments.format,
            arguments.files,
            target,
            mapping=mapping,
            outcomes=arguments.outcomes,
            skip_bad=arguments.skip_bad,
            redact=kinds,
            on_progress=moved,
        )
    found = report.to_json()
    if arguments.json:
        output.say_json(found)
        return 0
    examples = found.pop("examples")
    output.figures(found, False)
    if examples:
        output.say("", f"Dropped, the first {len(examples)}:", *examples)
    output.say("", f"Next: iterppo fit-critic shop --data {output.quoted(target)} -o my_critic")
    return 0


@contextmanager
def conversations_progress(doing: str, console: Console | None = None) -> Iterator[Callable[[float, int], None]]:
    """A bar with the time left on a terminal, and a line now and then everywhere else; on standard error.

    Args:
        doing: what is done, as ``importing``.
        console: where else to show it.

    Yields:
        What is to be called with the share that is done and the number of conversations.
    """
    console = console or Console(stderr=True)
    if not (console.is_interactive and console.file.isatty()):
        yield _plain(doing, console)
        return
    columns = (
        *(TextColumn(doing), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[count]} conversations")),
        *(TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0, count=0)
        yield lambda share, count: bar.update(task, completed=share, count=count)


def _plain(doing: str, console: Console) -> Callable[[float, int], None]:
    begun = time.monotonic()
    due = begun + PLAIN_SECONDS

    def moved(share: float, count: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now < due or not 0 < share < 1:
            return
        due = now + PLAIN_SECONDS
        left = (now - begun) * (1 - share) / share
        times = f"elapsed {timedelta(seconds=round(now - begun))} · left ~{timedelta(seconds=round(left))}"
        console.print(
            f"{doing}: {share:.0%}, {count} conversations · {times}", markup=False, highlight=False, soft_wrap=True
        )

    return moved
