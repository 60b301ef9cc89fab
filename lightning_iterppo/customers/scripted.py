"""Conversations of a scripted agent with a customer: how the starting logs of a simulated customer are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.customers import Customer, Message

__all__ = ["log_seed", "play"]

# Where the logs' customers begin, far from the seeds of training and evaluation and from any given by hand.
_LOG_SEEDS: Final = 1_000_000_000_000


def log_seed(seed: int, index: int) -> int:
    """The customer's seed in a log's conversation; logs of different seeds share no customer."""
    return _LOG_SEEDS + seed * 1_000_003 + index


def play(
    customer: Customer,
    respond: Callable[[str, list[Message]], str],
    seed: int,
    id: str,
    metadata: dict[str, Any] | None = None,
) -> Conversation:
    """A whole conversation of a customer with an agent.

    Args:
        customer: who answers; it is reset with ``seed``.
        respond: what the agent says next, from the system message ("" without one) and the history.
        seed: the customer's seed.
        id: the name of the conversation.
        metadata: what else to keep with it.
    """
    opening = customer.reset(seed)
    system: str = getattr(customer, "system", "")
    history, turns, heard = [Message("customer", opening)], list[Turn](), opening
    while True:
        message = respond(system, history)
        history.append(Message("agent", message))
        reply = customer.reply(list(history))
        turns.append(Turn(customer=heard, message=message, reward=reply.reward))
        heard = reply.text
        if reply.done:
            break
        history.append(Message("customer", heard))
    outcome = sum(turn.reward for turn in turns)
    return Conversation(id, tuple(turns), system or None, heard, outcome, seed, metadata=metadata or {})
