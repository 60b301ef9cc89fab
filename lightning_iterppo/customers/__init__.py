"""Who the agent talks to. A customer is a plain class with two methods; no base class is needed.

One object plays one conversation at a time: ``reset`` starts a new one, ``reply`` answers the agent's last message. It
may also have a ``system`` attribute, read after ``reset``: what the agent is told before the conversation (a briefing,
what is in stock), as a system message; a ``review`` method: the person between the suggestion and the customer; and
``usage``, a dataclass of numbers: what the conversation cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lightning_iterppo.conversation import Disposition, Message

__all__ = ["AsyncCustomer", "Customer", "CustomerReply", "Message", "Reviewer", "Sent"]


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


@runtime_checkable
class AsyncCustomer(Protocol):
    """The asynchronous form, for customers that wait for something: those of a batch wait at the same time."""

    async def reset(self, seed: int) -> str:
        """As `Customer.reset`."""

    async def reply(self, history: list[Message]) -> CustomerReply:
        """As `Customer.reply`."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What a person made of a suggestion.

    Args:
        message: what is sent to the customer.
        disposition: ``accepted``, the suggestion as it is; ``edited``; or ``rejected``, the person's own message.
    """

    message: str
    disposition: Disposition = "accepted"


@runtime_checkable
class Reviewer(Protocol):
    """A customer with a person before it, who sees every suggestion first. The action stays the suggestion."""

    def review(self, history: list[Message]) -> Sent:
        """What to send in place of the last message of ``history``, the suggestion; it then stands there instead."""
