"""A plain Python function as a customer."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from lightning_iterppo.conversation import Message
from lightning_iterppo.customers import CustomerReply
from lightning_iterppo.errors import ConfigError, CustomerError
from lightning_iterppo.targets import resolve


class FunctionCustomer:
    """A customer that is one function ``reply(history, seed) -> CustomerReply``.

    With an empty history it opens the conversation; the reply's text is the opening. It has nothing but its arguments
    to go by, so that the same seed and the same messages give the same conversation by themselves.

    Args:
        function: the function, or its import path: ``customer.function=my_module.reply``.

    Raises:
        ConfigError: there is no such function, or it is ``async def``.
    """

    def __init__(self, function: str | Callable[[list[Message], int], CustomerReply]) -> None:
        self.function = resolve(function, "customer.function") if isinstance(function, str) else function
        if inspect.iscoroutinefunction(self.function):
            raise ConfigError(
                "customer.function is async def: write a class with async def reset and reply, and name it as "
                "customer._target_"
            )

    def reset(self, seed: int) -> str:
        """The text of what the function says to an empty history.

        Raises:
            CustomerError: that is no reply, or ends the conversation.
        """
        self.seed = seed
        opening = self.function([], seed)
        if not isinstance(opening, CustomerReply) or opening.done or opening.reward:
            raise CustomerError(
                f"customer function {_name(self.function)} (seed {seed}): to an empty history it must return a "
                f"CustomerReply that neither earns nor ends, found {opening!r}"
            )
        return opening.text

    def reply(self, history: list[Message]) -> CustomerReply:
        """What the function says."""
        return self.function(history, self.seed)


def _name(function: object) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
