"""Who the agent talks to. A customer is a plain class with two methods; no base class is needed.

One object plays one conversation at a time: ``reset`` starts a new one, ``reply`` answers the agent's last message. It
may also have a ``system`` attribute, read after ``reset``: what the agent is told before the conversation (a briefing,
what is in stock), as a system message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lightning_iterppo.conversation import Message

__all__ = ["Customer", "CustomerReply", "Message"]


@dataclass(frozen=True, slots=True)
class CustomerReply:
    """The customer's answer.

    Args:
        text: what the customer says; may be empty when the conversation is over.
        reward: what the agent's last message earned, usually 0 or 1.
        done: whether the conversation ends here.
    """

    text: str
    reward: float = 0.0
    done: bool = False


@runtime_checkable
class Customer(Protocol):
    """What a customer must do. The same seed and the same agent messages must give the same conversation."""

    def reset(self, seed: int) -> str:
        """Starts a conversation and gives the customer's opening message."""

    def reply(self, history: list[Message]) -> CustomerReply:
        """Answers the last message of ``history``, which is the agent's. ``history`` begins with the opening."""
