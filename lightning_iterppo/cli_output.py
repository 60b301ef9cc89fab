"""What the commands print: figures, the end of a run, and the two conversations side by side."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.processes import is_first

if TYPE_CHECKING:
    from lightning_iterppo.summary import Rate, Summary

_COLOURS = {"customer": "cyan", "agent": "green"}


def say(*parts: RenderableType) -> None:
    """Prints on standard output, in the first process only. A string is printed as it is, without markup."""
    if is_first():
        console = Console(highlight=False)
        for part in parts:
            if isinstance(part, str):
                # Not through the console's wrapping: a path or a command that is broken over lines cannot be copied.
                console.print(part, markup=False, soft_wrap=True)
            else:
                console.print(part)


def say_json(content: Any) -> None:
    """Prints JSON, in the first process only."""
    if is_first():
        print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def quoted(path: Path | None) -> str:
    """A path as it can be pasted into a shell."""
    return shlex.quote(str(path))


def figures(content: Mapping[str, Any], as_json: bool) -> None:
    """A command's figures, as JSON or as a list with one figure a line."""
    if as_json:
        say_json(content)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _flat(content, ""):
        table.add_row(name, value)
    say(table)


def run_end(summary: Summary, run: Path) -> None:
    """The end of `iterppo train`: outcome rates, a conversation before and after, where the run lies, what is next."""
    rates = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 3, 0, 0))
    for column in ("outcome rate", "before", "after"):
        rates.add_column(column)
    pairs = (
        ("with new customers", summary.before, summary.after),
        ("with new kinds of customer", summary.before_held_out, summary.after_held_out),
    )
    for name, before, after in pairs:
        if before or after:
            rows = zip(("", "  95 % interval", "  conversations"), _rate(before), _rate(after), strict=True)
            for label, left, right in rows:
                rates.add_row(label or name, left, right)
    if rates.row_count:
        say("", rates)
    if summary.estimate is not None:
        say("", _estimate(summary.estimate))
    before_example, after_example = summary.examples
    if before_example or after_example:
        say("", _side_by_side(before_example, after_example))
    for name, failed in summary.failed.items():
        say("", f"{name}: {failed.conversations} conversations failed and count nowhere; the first: {failed.first}")
    if summary.usage:
        names = {name for each in summary.usage.values() for name in each}
        total = {name: sum(each.get(name, 0) for each in summary.usage.values()) for name in sorted(names)}
        said = ", ".join(f"{value:,.10g} {name.replace('_', ' ')}" for name, value in total.items())
        say("", f"what the customers cost: {said}")
    if summary.stop_reason:
        say("", f"stopped early: {summary.stop_reason}")
    say("", f"The run is in {run}", f"Next: {_next_command(summary, run)}")


def _next_command(summary: Summary, run: Path) -> str:
    if summary.recipe == "probe":
        return "iterppo train shop"
    return f"iterppo export {quoted(run)} -o {quoted(run / 'model')}"


def _estimate(found: dict[str, Any]) -> str:
    if found["reasons"]:
        return f"what the policy would earn the logs cannot tell: {'; '.join(found['reasons'])}"
    robust, logs = found["doubly_robust"], found["logs"]
    low, high = robust["ci95"]
    return (
        f"what the policy would earn: {robust['value']:.3f} (95 % interval {low:.3f} to {high:.3f}), by "
        f"{logs['conversations']} conversations of the logs that nothing was trained on and that earned "
        f"{logs['return_mean']:.3f}"
    )


def _rate(rate: Rate | None) -> tuple[str, str, str]:
    if rate is None:
        return "not measured", "", ""
    low, high = (100 * each for each in rate.ci95)
    return f"{100 * rate.outcome_rate:.1f} %", f"{low:.1f} to {high:.1f} %", str(rate.conversations)


def _side_by_side(before: Conversation | None, after: Conversation | None) -> RenderableType:
    table = Table(expand=True, show_lines=False)
    table.add_column("a conversation before", ratio=1)
    table.add_column("a conversation after", ratio=1)
    left, right = _exchanges(before), _exchanges(after)
    for index in range(max(len(left), len(right))):
        empty: RenderableType = Text()
        table.add_row(left[index] if index < len(left) else empty, right[index] if index < len(right) else empty)
    return table


def _exchanges(conversation: Conversation | None) -> list[RenderableType]:
    """One block a turn, so that the two columns keep step, and how it ended."""
    if conversation is None:
        return []
    found: list[RenderableType] = [_exchange(turn) for turn in conversation.turns]
    ending = Text()
    if conversation.closing:
        ending = _message("customer", conversation.closing) + Text("\n")
    outcome = conversation.outcome
    won = outcome is not None and outcome > 0
    ending += Text("outcome: " + ("unknown" if outcome is None else f"{outcome:g}"), style="bold" if won else "dim")
    return [*found, ending]


def _exchange(turn: Turn) -> RenderableType:
    said = [_message("customer", turn.customer)] if turn.customer else []
    return Group(*said, _message("agent", turn.message))


def _message(role: str, content: str) -> Text:
    return Text(f"{role}: ", style=f"bold {_COLOURS[role]}") + Text(content, style="not bold default")


def _flat(content: Mapping[str, Any], above: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        name = f"{above}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += _flat(value, f"{above}{key}.")
        else:
            rows.append((name, _value(value)))
    return rows


def _value(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " to ".join(_value(each) for each in value) if len(value) == 2 else ", ".join(map(_value, value))
    return str(value)
