"""From what a log says to a `Conversation`: roles, neighbours, dispositions and rewards, the same for every format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from lightning_iterppo.conversation import Conversation, Disposition, Suggestion, Turn
from lightning_iterppo.data.importing.mapping import Fields, MappedRole, Mapping
from lightning_iterppo.errors import LogFormatError
from lightning_iterppo.recipe_files import nearest

#: What speakers are called by default, in small letters.
ROLES: dict[str, MappedRole] = {
    "customer": "customer",
    "user": "customer",
    "human": "customer",
    "agent": "agent",
    "assistant": "agent",
    "gpt": "agent",
    "bot": "agent",
    "system": "system",
}
#: What must be told of a conversation that was built: counted under these names.
JOINED = "messages joined with the one before"
SYSTEM_JOINED = "system messages joined with the one before"
SYSTEM_MOVED = "system messages moved to the beginning"
IGNORED = "messages of ignored roles left out"
EMPTY = "empty messages left out"
SORTED = "conversations put into the order of their times"
NAMED = "conversations named after file and line"


class BadRecord(Exception):
    """A record that is no conversation.

    Args:
        reason: what kind of defect; the same words for the same kind, as they are counted.
        detail: this one: what was found, what was expected, what to do.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        #: Which of the messages it is about, from 0, where it is about one.
        self.message: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record begins: a file, and its line (JSON, CSV) or row (Parquet, datasets), the first being 1.

    A record of a JSON array has its number in the array, and besides the ``line`` that it begins on.
    """

    path: Path
    number: int
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.number}" if self.line is None else f"{self.path}:{self.line}: record {self.number}"

    def error(self, reason: str) -> LogFormatError:
        """What is wrong there, as an error."""
        if self.line is None:
            return LogFormatError(self.path, self.number, reason)
        return LogFormatError(self.path, self.line, f"record {self.number}: {reason}")


def as_error(place: Place, bad: BadRecord) -> LogFormatError:
    """A bad record that is not to be skipped."""
    return place.error(f"{bad}; --skip-bad leaves such records out and counts them")


@dataclass(frozen=True, slots=True)
class Said:
    """One message as the log has it, nothing checked yet."""

    speaker: Any
    text: Any
    suggestion: Any = None
    disposition: Any = None
    reward: Any = None


@dataclass(slots=True)
class Built:
    """A conversation, what was done to make it, and the fields of the log that it does not keep, with their numbers."""

    conversation: Conversation
    notes: Counter[str] = field(default_factory=Counter)
    not_kept: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Step:
    role: MappedRole
    text: str
    suggestion: str | None = None
    disposition: Disposition = "unassisted"
    reward: float | None = None


class Builder:
    """Makes conversations.

    As in the chat form elsewhere, neighbours of one role are joined by a newline, and so are system messages.

    Args:
        mapping: names of roles and dispositions, and the owner's choices.
        fields: the names of the fields, for messages to the user.
    """

    def __init__(self, mapping: Mapping, fields: Fields) -> None:
        self.mapping = mapping
        self.fields = fields

    def build(
        self, name: str, said: Sequence[Said], outcome: float | None, metadata: dict[str, Any] | None = None
    ) -> Built:
        """A conversation from its messages.

        Args:
            name: its id.
            said: the messages in order.
            outcome: the total reward, None where it is not known.
            metadata: what else is kept.

        Raises:
            BadRecord: it is none.
        """
        notes: Counter[str] = Counter()
        system: list[str] = []
        steps: list[_Step] = []
        for index, each in enumerate(said):
            try:
                self._add(index, each, steps, system, notes)
            except BadRecord as bad:
                bad.message = index
                raise
        agent = [step for step in steps if step.role == "agent"]
        if not agent:
            raise BadRecord("no agent message", "there is nothing to learn from")
        outcome, rewards = _rewards([step.reward for step in agent], outcome)
        turns: list[Turn] = []
        customer = ""
        for step in steps:
            if step.role == "customer":
                customer = step.text
                continue
            suggestion = None if step.suggestion is None else Suggestion(step.suggestion)
            turns.append(Turn(customer, step.text, suggestion, step.disposition, rewards[len(turns)]))
            customer = ""
        conversation = Conversation(
            id=name,
            turns=tuple(turns),
            system="\n".join(system) or None,
            closing=customer,
            outcome=outcome,
            metadata=metadata or {},
        )
        return Built(conversation, +notes)

    def _add(self, index: int, said: Said, steps: list[_Step], system: list[str], notes: Counter[str]) -> None:
        """One more message, joined with the one before if that is of the same role."""
        step = self._step(index, said, notes)
        if step is None:
            return
        if step.role == "system":
            notes[SYSTEM_JOINED] += bool(system)
            notes[SYSTEM_MOVED] += bool(steps)
            system.append(step.text)
            return
        if step.role == "customer" and step.reward is not None:
            # What the customer's answer earned, the agent's message before it earned.
            _give(steps, step.reward, index)
            step.reward = None
        if steps and steps[-1].role == step.role:
            notes[JOINED] += 1
            steps[-1] = _joined(steps[-1], step, index)
        else:
            steps.append(step)

    def _step(self, index: int, said: Said, notes: Counter[str]) -> _Step | None:
        """One message, checked; None when it is left out."""
        role = self.role(said.speaker, index)
        if role == "ignore":
            notes[IGNORED] += 1
            return None
        if isinstance(said.text, list):
            said = replace(said, text=_parts(said.text, index))
        if not isinstance(said.text, str):
            kind = "is missing" if said.text is None else f"must be text, found {said.text!r}"
            raise BadRecord("a message without text", f"message {index}: {self.fields.text!r} {kind}")
        disposition = None if role != "agent" and said.disposition == "unassisted" else said.disposition
        if role != "agent" and not (_blank(said.suggestion) and _blank(disposition)):
            raise BadRecord("a suggestion that is not the agent's", f"message {index} is the {role}'s")
        reward = self.number(said.reward, f"message {index}: {self.fields.reward!r}")
        if not said.text.strip():
            if self.mapping.empty_messages == "error" or reward is not None or not _blank(said.suggestion):
                raise BadRecord(
                    "an empty message",
                    f"message {index} has no text; --mapping with empty_messages: drop leaves it out",
                )
            notes[EMPTY] += 1
            return None
        if role == "system" and reward is not None:
            raise BadRecord("a reward of a system message", f"message {index}: only what is said can earn something")
        step = _Step(role, said.text, reward=reward)
        if role == "agent":
            step.suggestion, step.disposition = self._disposed(index, said)
        return step

    def role(self, speaker: Any, index: int) -> MappedRole:
        """Whose message it is.

        Raises:
            BadRecord: nothing says whose.
        """
        name = str(speaker)
        found = self.mapping.roles.get(name) or ROLES.get(name.strip().lower())
        if speaker is None or found is None:
            what = "is missing" if speaker is None else f"is {speaker!r}"
            near = nearest(name.lower(), [*self.mapping.roles, *ROLES])
            raise BadRecord(
                "unknown role",
                f"message {index}: {self.fields.speaker!r} {what}; {near} --mapping with "
                f"roles: {{{name}: customer}} (or agent, system, ignore) says whose it is",
            )
        return found

    def number(self, value: Any, what: str) -> float | None:
        """A reward or an outcome; None where there is none.

        Raises:
            BadRecord: it is no finite number, and no word that the mapping knows.
        """
        if _blank(value):
            return None
        words = self.mapping.outcome_values
        if str(value) in words:
            return words[str(value)]
        if isinstance(value, bool):
            return float(value)
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):
            return float(value.strip().lower() == "true")
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            hint = f"--mapping with outcome_values: {{{value}: 1}} says what a word stands for"
            raise BadRecord("not a number", f"{what} is {value!r}; {hint}") from error
        if not abs(number) < float("inf"):
            raise BadRecord("not a number", f"{what} is {value!r}; leave it empty where it is not known")
        return number

    def _disposed(self, index: int, said: Said) -> tuple[str | None, Disposition]:
        """The suggestion and what became of it, which must agree with each other and with what was sent."""
        word = None if _blank(said.disposition) else str(said.disposition)
        disposition: Disposition | None = None
        if word is not None:
            plain: dict[str, Disposition] = {each: each for each in get_args(Disposition)}
            disposition = self.mapping.dispositions.get(word) or plain.get(word.strip().lower())
            if disposition is None:
                raise BadRecord(
                    "unknown disposition",
                    f"message {index}: {self.fields.disposition!r} is {word!r}; {nearest(word, plain)} "
                    f"--mapping with dispositions: {{{word}: accepted}} says what it means",
                )
        if _blank(said.suggestion):
            if disposition in (None, "unassisted"):
                return None, "unassisted"
            raise BadRecord("a disposition without a suggestion", f"message {index}: {disposition}, but of what?")
        if not isinstance(said.suggestion, str):
            raise BadRecord("a suggestion that is no text", f"message {index}: found {said.suggestion!r}")
        same = said.suggestion == said.text
        if disposition is None:
            if not same and self.mapping.without_disposition == "error":
                raise BadRecord(
                    "a suggestion without a disposition",
                    f"message {index}: another text was sent than was suggested, and nothing says whether the "
                    "suggestion was edited or rejected; if one of them is always so, say without_disposition: edited "
                    "(or rejected) in --mapping",
                )
            return said.suggestion, "accepted" if same else _word(self.mapping.without_disposition)
        wrong = contradiction(disposition, said.suggestion, said.text)
        if wrong:
            raise BadRecord("a disposition that cannot be", f"message {index}: {wrong}")
        return said.suggestion, disposition


def contradiction(disposition: Disposition, suggestion: str | None, sent: str, *, edits: bool = True) -> str | None:
    """What is wrong with a disposition, or None.

    Args:
        disposition: what is said to have become of the suggestion.
        suggestion: the text that was suggested, None where there was none.
        sent: the text that was sent.
        edits: whether one that was edited or rejected must differ from what was sent.
    """
    if suggestion is None:
        return None if disposition == "unassisted" else f"{disposition}, but nothing was suggested"
    if disposition == "unassisted":
        return "unassisted, but there is a suggestion"
    if disposition == "accepted" and suggestion != sent:
        return "accepted, but another text was sent than was suggested"
    if edits and disposition in ("edited", "rejected") and suggestion == sent:
        return f"{disposition}, but the suggestion was sent as it is, so it was accepted"
    return None


def settle_outcome(rewards: Sequence[float], outcome: float) -> list[float]:
    """Rewards of the turns under a known outcome: theirs when they add up to it, all on the last turn when all are 0.

    Raises:
        BadRecord: they say something else.
    """
    if not any(rewards):
        return [0.0] * (len(rewards) - 1) + [outcome]
    total = sum(rewards)
    if abs(total - outcome) > 1e-6 * max(1.0, abs(outcome)):
        raise BadRecord("rewards that are not the outcome", f"they add up to {total:g}, and the outcome is {outcome:g}")
    return list(rewards)


def _parts(parts: list[Any], index: int) -> str:
    """The text of a message in parts, as OpenAI writes it: theirs, joined by newlines."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = repr(part.get("type")) if isinstance(part, dict) else f"{part!r:.80}"
            raise BadRecord(
                "a message with other parts than text",
                f"message {index}: a part is {kind}; take such parts out of the log, or the whole conversation",
            )
    return "\n".join(part["text"] for part in parts)


def text_id(value: Any) -> str | None:
    """A conversation's id as text, None where there is none.

    Raises:
        BadRecord: it is neither text nor a whole number.
    """
    if _blank(value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRecord("an id that is no name", f"found {value!r}; text or a whole number was expected")
    return str(value)


def _rewards(given: Sequence[float | None], outcome: float | None) -> tuple[float | None, list[float]]:
    """The outcome, and what each turn earned. What is not said is known only when the rest is the whole."""
    told = [reward for reward in given if reward is not None]
    if outcome is not None:
        if told and not any(told) and outcome:
            raise BadRecord("rewards that are not the outcome", f"they add up to 0, and the outcome is {outcome:g}")
        return outcome, settle_outcome([reward or 0.0 for reward in given], outcome)
    if told and len(told) < len(given):
        raise BadRecord(
            "rewards of some turns only",
            f"{len(told)} of {len(given)} turns have one and no outcome says that it is all; give the outcome, or "
            "every agent message a reward (0 where it earned nothing)",
        )
    return (sum(told) if told else None), [reward or 0.0 for reward in given]


def _give(steps: list[_Step], reward: float, index: int) -> None:
    earner = next((step for step in reversed(steps) if step.role == "agent"), None)
    if earner is None:
        raise BadRecord("a reward before the first agent message", f"message {index}: nobody has earned it")
    earner.reward = reward + (earner.reward or 0.0)


def _joined(first: _Step, second: _Step, index: int) -> _Step:
    """Neighbours of one role as one message."""
    dispositions = {first.disposition, second.disposition}
    disposition: Disposition = second.disposition
    if len(dispositions) > 1:
        if dispositions != {"accepted", "edited"}:
            raise BadRecord(
                "neighbours that cannot be joined",
                f"message {index}: two agent messages in a row, one {first.disposition} and one {second.disposition}: "
                "together they are neither",
            )
        disposition = "edited"
    suggestion = None
    if first.suggestion is not None and second.suggestion is not None:
        suggestion = f"{first.suggestion}\n{second.suggestion}"
    told = [reward for reward in (first.reward, second.reward) if reward is not None]
    return _Step(first.role, f"{first.text}\n{second.text}", suggestion, disposition, sum(told) if told else None)


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _word(choice: str) -> Disposition:
    return "rejected" if choice == "rejected" else "edited"
