"""Conversations as plain data: messages, turns, and their JSON form. No torch, no tokenizer.

A `Conversation` is a list of `Turn`s. Turn t holds the customer's message c_t, the suggestion a_t that the policy made
(if it made one), the message m_t that was really sent, what happened to the suggestion, and the reward the turn earned.
The action of the method is the suggestion a_t, not the sent message.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

Role = Literal["customer", "agent"]
Disposition = Literal["accepted", "edited", "rejected", "unassisted"]

_CHAT_ROLES: dict[str, Role | Literal["system"]] = {
    "user": "customer",
    "customer": "customer",
    "assistant": "agent",
    "agent": "agent",
    "system": "system",
}


class ConversationError(ValueError):
    """A record is not a conversation. The message says which field is wrong and what was expected."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: who said it and what."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What a policy suggested: the action a_t.

    Args:
        text: the decoded response.
        token_ids: the sampled tokens, the end token included when the response ended by itself; empty when unknown.
        logprobs: log-probability of each token under the behaviour policy, same length as ``token_ids`` or empty.
        policy_version: which policy made it, e.g. ``"iteration-002"``.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    policy_version: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange.

    Args:
        customer: the customer's message c_t; empty when the agent opens the conversation.
        message: the message m_t that was sent.
        suggestion: the suggestion a_t, or None in an ordinary log.
        disposition: what became of the suggestion.
        reward: what the turn earned; for a binary outcome 1 on the turn it happened, else 0.
    """

    customer: str
    message: str
    suggestion: Suggestion | None = None
    disposition: Disposition = "unassisted"
    reward: float = 0.0


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole conversation and how it ended.

    Args:
        id: unique name.
        turns: the exchanges, in order.
        system: what the agent was told beforehand (the system message), or None.
        closing: the customer's message after the last agent message; empty when there was none.
        outcome: the undiscounted total reward; None when it is not known (censored, never a zero).
        seed: the customer's seed, when a simulator made it.
        policy_version: the policy that talked, when one did.
        metadata: anything else worth keeping; JSON types only.
    """

    id: str
    turns: tuple[Turn, ...]
    system: str | None = None
    closing: str = ""
    outcome: float | None = None
    seed: int | None = None
    policy_version: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> list[Message]:
        """The visible messages in order, empty ones left out, the system message not included."""
        found: list[Message] = []
        for turn in self.turns:
            if turn.customer:
                found.append(Message("customer", turn.customer))
            found.append(Message("agent", turn.message))
        if self.closing:
            found.append(Message("customer", self.closing))
        return found

    def returns(self, gamma: float = 1.0) -> list[float]:
        """G_t = Σ_i γ^i r_{t+i} for every turn."""
        total = 0.0
        backwards = []
        for turn in reversed(self.turns):
            total = turn.reward + gamma * total
            backwards.append(total)
        return backwards[::-1]

    def as_sent(self) -> Conversation:
        """The same conversation with every message that is not an accepted suggestion as the agent's own action."""
        own = [
            t if t.disposition == "accepted" else replace(t, suggestion=None, disposition="unassisted")
            for t in self.turns
        ]
        return replace(self, turns=tuple(own))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary that `from_json` reads back to an equal conversation."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> Conversation:
        """A conversation from our own form (``turns``) or the ``chat`` form (``messages``).

        Raises:
            ConversationError: a field is missing or has the wrong type.
        """
        if not isinstance(record, dict):
            raise ConversationError(f"expected a JSON object, found {type(record).__name__}")
        if "turns" in record:
            return _from_turns(record)
        if "messages" in record:
            return _from_chat(record)
        raise ConversationError('neither "turns" nor "messages" is there')


def _text(record: dict[str, Any], key: str, default: str | None = None) -> str:
    value = record.get(key, default)
    if not isinstance(value, str):
        raise ConversationError(f'"{key}" must be a string, found {value!r}')
    return value


def _optional_text(record: dict[str, Any], key: str) -> str | None:
    return None if record.get(key) is None else _text(record, key)


def _name(record: dict[str, Any]) -> str:
    value = record.get("id")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ConversationError(f'"id" must be text or a whole number, found {value!r}')
    return str(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float):
        raise ConversationError(f'"{key}" must be a number, found {value!r}')
    try:
        number = float(value)
    except OverflowError as error:
        raise ConversationError(f'"{key}" is too large a number') from error
    if number != number or number in (float("inf"), float("-inf")):
        raise ConversationError(f'"{key}" must be finite, found {value!r}')
    return number


def _optional_number(record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    return None if value is None else _number(value, key)


def _from_turns(record: dict[str, Any]) -> Conversation:
    turns = []
    if not isinstance(record["turns"], list | tuple) or not record["turns"]:
        raise ConversationError('"turns" must be a list with at least one turn')
    for index, turn in enumerate(record["turns"]):
        if not isinstance(turn, dict):
            raise ConversationError(f"turn {index} must be an object")
        disposition = turn.get("disposition", "unassisted")
        if disposition not in get_args(Disposition):
            raise ConversationError(
                f"turn {index}: disposition must be one of {', '.join(get_args(Disposition))}, found {disposition!r}"
            )
        made = turn.get("suggestion")
        suggestion = None
        if made is not None:
            if not isinstance(made, dict):
                raise ConversationError(f'turn {index}: "suggestion" must be an object')
            suggestion = _suggestion(made, index)
        turns.append(
            Turn(
                customer=_text(turn, "customer", ""),
                message=_text(turn, "message"),
                suggestion=suggestion,
                disposition=disposition,
                reward=_number(turn.get("reward", 0.0), "reward"),
            )
        )
    metadata = {} if record.get("metadata") is None else record["metadata"]
    if not isinstance(metadata, dict):
        raise ConversationError(f'"metadata" must be an object, found {metadata!r}')
    seed = record.get("seed")
    if not (seed is None or _whole(seed)):
        raise ConversationError(f'"seed" must be a whole number, found {seed!r}')
    return Conversation(
        id=_name(record),
        turns=tuple(turns),
        system=_optional_text(record, "system"),
        closing=_text(record, "closing", ""),
        outcome=_optional_number(record, "outcome"),
        seed=seed,
        policy_version=_optional_text(record, "policy_version"),
        metadata=dict(metadata),
    )


def _suggestion(made: dict[str, Any], index: int) -> Suggestion:
    """The suggestion of turn ``index``; nothing is rounded or cut to make it fit."""
    ids, logprobs = made.get("token_ids", ()), made.get("logprobs", ())
    if not isinstance(ids, list | tuple) or not all(_whole(each) and each >= 0 for each in ids):
        raise ConversationError(f'turn {index}: "token_ids" must be a list of whole numbers from 0, found {ids!r:.100}')
    if not isinstance(logprobs, list | tuple) or any(isinstance(each, bool) for each in logprobs):
        raise ConversationError(f'turn {index}: "logprobs" must be a list of numbers, found {logprobs!r:.100}')
    if logprobs and len(logprobs) != len(ids):
        raise ConversationError(
            f'turn {index}: "logprobs" must be as many as "token_ids" or none, found {len(logprobs)} for {len(ids)}'
        )
    return Suggestion(
        text=_text(made, "text"),
        token_ids=tuple(ids),
        logprobs=tuple(_number(each, "logprobs") for each in logprobs),
        policy_version=_optional_text(made, "policy_version"),
    )


def _from_chat(record: dict[str, Any]) -> Conversation:
    """The ``chat`` form. The outcome is the reward of the last turn; neighbours of one role are joined by a newline."""
    raw = record["messages"]
    if not isinstance(raw, list) or not raw:
        raise ConversationError('"messages" must be a list with at least one message')
    system: list[str] = []
    spoken: list[Message] = []
    for index, message in enumerate(raw):
        if not isinstance(message, dict):
            raise ConversationError(f"message {index} must be an object")
        role = _CHAT_ROLES.get(str(message.get("role")))
        if role is None:
            raise ConversationError(
                f"message {index}: role must be user, assistant or system, found {message.get('role')!r}"
            )
        content = _text(message, "content")
        lost = next((key for key in ("suggestion", "disposition", "reward") if message.get(key) is not None), None)
        if lost is not None:
            raise ConversationError(f'message {index} has a "{lost}", which only `iterppo import chat` understands')
        if role == "system":
            system.append(content)
        elif spoken and spoken[-1].role == role:
            spoken[-1] = Message(role, spoken[-1].content + "\n" + content)
        else:
            spoken.append(Message(role, content))
    outcome = _optional_number(record, "outcome")
    return Conversation(
        id=_name(record),
        turns=tuple(turns_from_messages(spoken, outcome or 0.0)),
        system="\n".join(system) or None,
        closing=spoken[-1].content if spoken and spoken[-1].role == "customer" else "",
        outcome=outcome,
        metadata={k: v for k, v in record.items() if k not in ("id", "messages", "outcome")},
    )


def turns_from_messages(messages: Iterable[Message], outcome: float) -> list[Turn]:
    """Unassisted turns from alternating messages; the whole outcome is the last turn's reward.

    Raises:
        ConversationError: there is no agent message, so there is no turn.
    """
    turns: list[Turn] = []
    customer = ""
    for message in messages:
        if message.role == "customer":
            customer = message.content
        else:
            turns.append(Turn(customer=customer, message=message.content))
            customer = ""
    if not turns:
        raise ConversationError("there is no agent message, so nothing to learn from")
    last = turns[-1]
    turns[-1] = Turn(customer=last.customer, message=last.message, reward=outcome)
    return turns
