"""Which message won a conversation, or lost it: what the critic expected before and after each."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.errors import ConfigError, LogFormatError
from lightning_iterppo.extras import need
from lightning_iterppo.files import write_bytes_atomically

PLOTS = ("svg", "png", "pdf")


@dataclass(frozen=True, slots=True)
class Score:
    """What `iterppo score` wrote of an agent message.

    Args:
        turn: the message's index in ``Conversation.messages``.
        q: Q(s, a), after it.
        v: V(s), before it; None where the critic had none.
    """

    turn: int
    q: float
    v: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """A message and what it did to the expected return.

    Args:
        turn: its index in ``Conversation.messages``.
        role: who said it.
        text: what was said.
        before: the expectation before it: V(s) of an agent's message, of a customer's Q of the agent's before.
        after: the expectation after it: Q(s, a) of an agent's message, of a customer's V of the state that it makes.
    """

    turn: int
    role: str
    text: str
    before: float | None
    after: float | None

    @property
    def change(self) -> float | None:
        """By how much the expectation rose; None where one side is not known."""
        return None if self.before is None or self.after is None else self.after - self.before


def attribute(conversation: Conversation, scores: Sequence[Score]) -> list[Step]:
    """Every message of a conversation.

    The changes of all messages from the first agent message on add up to what was expected at the end less what was
    expected at the beginning: nothing is counted twice. A change is a difference of two estimates and as uncertain as
    both together; among messages of one conversation their order says more than their size.

    Args:
        conversation: the conversation.
        scores: of all its agent messages, in order.

    Raises:
        ConfigError: the scores are of other messages.
    """
    places = [place for place, message in enumerate(conversation.messages) if message.role == "agent"]
    if [score.turn for score in scores] != places:
        raise ConfigError(
            f"the scores of conversation {conversation.id} are not of its agent messages: score the same file again"
        )
    known = {score.turn: score for score in scores}
    steps = []
    latest: float | None = None  # Q of the agent's message before
    for place, message in enumerate(conversation.messages):
        own, later = known.get(place), known.get(place + 1)
        before = latest
        if own is not None:
            before, latest = latest if own.v is None else own.v, own.q
            after: float | None = own.q
        else:
            after = None if later is None else later.v
        steps.append(Step(place, message.role, message.content, before, after))
    return steps


def read_scores(path: Path, wanted: str) -> list[Score]:
    """The scores of one conversation out of a file of `iterppo score`, read line by line.

    Raises:
        LogFormatError: a line is not a score.
        ConfigError: there are none of that conversation.
    """
    found = [score for name, score in _scores(path) if name == wanted]
    if not found:
        raise ConfigError(f"{path} has no scores of a conversation {wanted!r}")
    return found


def _scores(path: Path) -> Iterator[tuple[str, Score]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                value = record.get("v")
                score = Score(int(record["turn"]), float(record["q"]), None if value is None else float(value))
                yield str(record["id"]), score
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"not a score of an agent message ({error!r}); `iterppo score` writes them"
                raise LogFormatError(path, number, reason) from error


def markdown(steps: Iterable[Step]) -> str:
    """A table of the messages, with the expected return before and after each."""
    lines = ["| | who | message | before | after | change |", "| --- | --- | --- | --- | --- | --- |"]
    for step in steps:
        text = step.text.replace("|", "\\|").replace("\n", " ")
        before, after = ("–" if value is None else f"{value:.2f}" for value in (step.before, step.after))
        change = "–" if step.change is None else f"{step.change:+.2f}"
        lines.append(f"| {step.turn} | {step.role} | {text} | {before} | {after} | {change} |")
    return "\n".join(lines)


def plot_format(path: Path) -> str:
    """What a plot is written as: svg, png or pdf, by the suffix of its name.

    Raises:
        ConfigError: it is another one.
    """
    form = path.suffix.lower().removeprefix(".")
    if form not in PLOTS:
        raise ConfigError(f"{path}: a plot is written as .svg, .png or .pdf; give it a name that ends so")
    return form


def draw(steps: Sequence[Step], title: str, path: Path) -> None:
    """A plot of the expectation along the messages: a bar a message from before to after.

    Args:
        steps: of `attribute`.
        title: above it.
        path: where it goes, as what its suffix says (`plot_format`).

    Raises:
        ConfigError: matplotlib is missing, or there is no such format.
    """
    form = plot_format(path)
    matplotlib = need("matplotlib", "to draw a plot", "bench")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.32 * len(steps) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for row, step in enumerate(steps):
        if step.before is not None and step.after is not None:
            colour = "tab:green" if step.after >= step.before else "tab:red"
            hatch = None if step.role == "agent" else "//"
            axes.barh(row, step.after - step.before, left=step.before, color=colour, alpha=0.8, hatch=hatch, height=0.7)
    ends = [(row, step.after) for row, step in enumerate(steps) if step.after is not None]
    axes.plot([value for _, value in ends], [row for row, _ in ends], color="black", linewidth=1, marker=".")
    axes.set_yticks(range(len(steps)), [f"{step.role[0].upper()}  {_short(step.text)}" for step in steps], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("expected return")
    axes.set_title(title, fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    # One conversation gives one file, byte by byte: without a date, and with names that do not change.
    date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "attribution"}):
        figure.savefig(content, format=form, metadata=date)
    write_bytes_atomically(path, content.getvalue())


def _short(text: str, width: int = 70) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
