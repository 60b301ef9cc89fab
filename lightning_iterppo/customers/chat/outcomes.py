"""How a conversation with a language model ends, and what it earned: by what was said, by a tool, or by a judge."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lightning_iterppo.conversation import Message
from lightning_iterppo.customers.chat.client import Answer, Client, Usage
from lightning_iterppo.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Heard:
    """What an answer means.

    Args:
        text: what the agent hears.
        done: whether the conversation ends with it.
        won: whether it ends well; only then does it earn something by itself.
    """

    text: str
    done: bool = False
    won: bool = False


class Outcome(Protocol):
    """Reads answers, and says what the conversation earned when it is over."""

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """What the model may call, in OpenAI's form."""

    def heard(self, answer: Answer) -> Heard:
        """What an answer means."""

    async def earned(self, history: Sequence[Message], heard: Heard, usage: Usage, seed: int) -> float:
        """The reward of a conversation that is over."""


def _pattern(name: str, pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"customer.outcome.{name} {pattern!r} is no regular expression: {error}") from error


@dataclass(frozen=True)
class SaidOutcome:
    """By what the customer says: regular expressions, whose match the agent does not get to see.

    Args:
        won: ends the conversation, and earns 1.
        lost: ends it, and earns nothing.

    Raises:
        ConfigError: one is no regular expression.
    """

    won: str
    lost: str | None = None
    tools: Sequence[Mapping[str, Any]] = field(default=(), init=False)

    def __post_init__(self) -> None:
        _pattern("won", self.won)
        _pattern("lost", self.lost)

    def heard(self, answer: Answer) -> Heard:
        """Looks for either; who says both has won."""
        won, lost = _pattern("won", self.won), _pattern("lost", self.lost)
        found = [pattern is not None and bool(pattern.search(answer.text)) for pattern in (won, lost)]
        text = answer.text
        for pattern in (won, lost):
            text = text if pattern is None else pattern.sub("", text)
        return Heard(text.strip(), done=any(found), won=found[0])

    async def earned(self, history: Sequence[Message], heard: Heard, usage: Usage, seed: int) -> float:
        """1 where it was won."""
        return float(heard.won)


@dataclass(frozen=True)
class ToolOutcome:
    """By a tool that the customer calls to end the conversation.

    Args:
        name: of the tool.
        description: when to call it, for the model.
        won: the name of its one argument, true or false: whether it ends well.
    """

    name: str = "end_conversation"
    description: str = "End the conversation, once you have decided."
    won: str = "bought"

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """The tool, in OpenAI's form."""
        argument = {"type": "object", "properties": {self.won: {"type": "boolean"}}, "required": [self.won]}
        return [
            {
                "type": "function",
                "function": {"name": self.name, "description": self.description, "parameters": argument},
            }
        ]

    def heard(self, answer: Answer) -> Heard:
        """Looks for a call.

        Raises:
            ValueError: the argument is missing, or neither true nor false.
        """
        for name, given in answer.calls:
            if name != self.name:
                raise ValueError(f"the model called {name}, which there is not")
            if not isinstance(given.get(self.won), bool):
                raise ValueError(f"the model called {name} with {dict(given)}, and {self.won} must be true or false")
            return Heard(answer.text, done=True, won=given[self.won])
        return Heard(answer.text)

    async def earned(self, history: Sequence[Message], heard: Heard, usage: Usage, seed: int) -> float:
        """1 where it was won."""
        return float(heard.won)


@dataclass(frozen=True)
class JudgeOutcome:
    """By a model that reads the whole conversation when it is over, with a rubric.

    Args:
        client: how to reach the judge.
        rubric: what earns how much, from ``low`` to ``high``.
        ends: a regular expression: what the customer says to end the conversation. None leaves that to ``max_turns``.
        low: the score that earns 0.
        high: the score that earns 1.

    Raises:
        ConfigError: ``ends`` is no regular expression, or the scores are in the wrong order.
    """

    client: Client
    rubric: str
    ends: str | None = None
    low: float = 0.0
    high: float = 1.0
    tools: Sequence[Mapping[str, Any]] = field(default=(), init=False)

    def __post_init__(self) -> None:
        _pattern("ends", self.ends)
        if not self.low < self.high:
            raise ConfigError(f"customer.outcome: low {self.low:g} must be below high {self.high:g}")

    def heard(self, answer: Answer) -> Heard:
        """Looks for the end."""
        pattern = _pattern("ends", self.ends)
        if pattern is None or not pattern.search(answer.text):
            return Heard(answer.text)
        return Heard(pattern.sub("", answer.text).strip(), done=True)

    async def earned(self, history: Sequence[Message], heard: Heard, usage: Usage, seed: int) -> float:
        """The judge's score, from 0 at ``low`` to 1 at ``high``.

        Raises:
            ValueError: the judge gave no score, or one beyond them.
        """
        told = "\n".join(f"{message.role}: {message.content}" for message in history)
        asked = (
            f"{self.rubric}\n\nAnswer with JSON and nothing else: "
            f'{{"score": a number from {self.low:g} to {self.high:g}}}'
        )
        messages = [{"role": "system", "content": asked}, {"role": "user", "content": told}]
        answer = await self.client.ask(messages, usage, seed=seed)
        found = re.search(r"\{[^{}]*\}", answer.text)
        try:
            score = float(json.loads(found[0] if found else answer.text)["score"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"the judge gave no score: {answer.text!r:.200}") from error
        if not self.low <= score <= self.high:
            raise ValueError(f"the judge gave {score:g}, which is not from {self.low:g} to {self.high:g}")
        return (score - self.low) / (self.high - self.low)
