"""One running conversation with a customer, in words: what the protocol promises is checked here and nowhere else."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
import time
from typing import Any, Final, TypeVar

from lightning_iterppo.conversation import Conversation, Message, Suggestion, Turn
from lightning_iterppo.customers import AsyncCustomer, Customer, CustomerReply, Reviewer, Sent
from lightning_iterppo.errors import CustomerError, IterPPOError, describe_exception

T = TypeVar("T")
MAX_TURNS: Final = 64  # a customer that never ends a conversation is a defect of the customer
_METHODS: Final = ("reset", "reply", "review")


def waits(customer: object) -> bool:
    """Whether a customer is of the asynchronous form: one of its methods is ``async def``."""
    return any(inspect.iscoroutinefunction(getattr(customer, name, None)) for name in _METHODS)


class Talk:
    """One conversation.

    Its methods are coroutines for the customers that wait for something; with others they end at once.

    Args:
        customer: who talks; one object a conversation.
        seed: of the customer.
        events: whether the outcome is of an event, so that the rewards add up to 0 to 1; else an amount.
        timeout: seconds that a customer of the asynchronous form may take for an answer.
    """

    def __init__(
        self, customer: Customer | AsyncCustomer, seed: int, *, events: bool = True, timeout: float = math.inf
    ) -> None:
        self.customer = customer
        self.seed = seed
        self.events = events
        self.timeout = timeout
        self.system: str | None = None
        self.said = ""  # by the customer, before the agent's next message
        self.history: list[Message] = []
        self.turns: list[Turn] = []
        self.done = False
        self.closing = ""

    async def open(self) -> None:
        """Hears the opening.

        Raises:
            CustomerError: the customer broke its protocol, or failed.
        """
        self.said = self._checked(await self._asked("reset", self.seed), str, "reset")
        self.system = getattr(self.customer, "system", None)
        if self.said:
            self.history.append(Message("customer", self.said))

    async def answer(self, suggestion: Suggestion) -> None:
        """Sends what the person makes of a suggestion, if there is a person, and hears the customer.

        Raises:
            CustomerError: the customer broke its protocol, or failed.
        """
        sent = await self._reviewed(suggestion.text)
        self.history.append(Message("agent", sent.message))
        reply = self._checked(await self._asked("reply", list(self.history)), CustomerReply, "reply")
        self._check_reply(reply)
        self.turns.append(Turn(self.said, sent.message, suggestion, sent.disposition, float(reply.reward)))
        if reply.done:
            self.done, self.closing = True, reply.text
        elif len(self.turns) >= MAX_TURNS:
            raise CustomerError(
                f"{self._who} did not end after {MAX_TURNS} turns: reply must return done=True at some point"
            )
        else:
            self.said = reply.text
            self.history.append(Message("customer", reply.text))

    def conversation(self, name: str, policy_version: str) -> Conversation:
        """The finished conversation."""
        return Conversation(
            id=name,
            turns=tuple(self.turns),
            system=self.system,
            closing=self.closing,
            outcome=sum(turn.reward for turn in self.turns),
            seed=self.seed,
            policy_version=policy_version,
        )

    @property
    def usage(self) -> dict[str, float]:
        """What the conversation cost so far, by the customer's own count; empty if it keeps none."""
        kept = getattr(self.customer, "usage", None)
        return dataclasses.asdict(kept) if dataclasses.is_dataclass(kept) and not isinstance(kept, type) else {}

    @property
    def _who(self) -> str:
        return f"customer {type(self.customer).__name__} (seed {self.seed})"

    async def _reviewed(self, text: str) -> Sent:
        """What the person sends, if there is one."""
        if not isinstance(self.customer, Reviewer):
            return Sent(text)
        found = await self._asked("review", [*self.history, Message("agent", text)])
        sent = self._checked(found, Sent, "review")
        known = ("accepted", "edited", "rejected")
        if sent.disposition not in known or (sent.disposition == "accepted" and sent.message != text):
            raise CustomerError(
                f"{self._who}: review must return the suggestion as it is with accepted, or another message with "
                f"edited or rejected; found {sent.disposition!r} with {sent.message!r} for {text!r}"
            )
        return sent

    def _check_reply(self, reply: CustomerReply) -> None:
        if not isinstance(reply.text, str):
            raise CustomerError(f"{self._who}: the text of a reply must be str, found {type(reply.text).__name__}")
        reward = reply.reward
        if not isinstance(reward, int | float) or not math.isfinite(reward):
            raise CustomerError(f"{self._who}: the reward must be a finite number, found {reward!r}")
        # Where Q is a probability every return, from any turn to the end, has to lie in [0, 1].
        total = sum(turn.reward for turn in self.turns) + reward
        if self.events and (reward < 0 or total > 1 + 1e-9):
            raise CustomerError(
                f"{self._who}: the rewards of a conversation must be at least 0 and add up to at most 1, found "
                f"{reward:g} for turn {len(self.turns) + 1}, {total:g} in all: divide them by the largest total there "
                "can be, or fit amounts with critic.loss=mse"
            )

    async def _asked(self, method: str, *arguments: Any) -> Any:
        """Calls a method; the customer's own exceptions say which conversation they are of, and where in whose code."""
        started = time.monotonic()
        try:
            found = getattr(self.customer, method)(*arguments)
            if inspect.isawaitable(found):
                if not waits(self.customer):
                    if inspect.iscoroutine(found):
                        found.close()
                    raise CustomerError(f"{self._who}: {method} returned something to wait for: write it as async def")
                found = await asyncio.wait_for(found, None if math.isinf(self.timeout) else self.timeout)
        except IterPPOError:
            raise
        except Exception as error:
            if isinstance(error, asyncio.TimeoutError) and time.monotonic() - started >= self.timeout:
                raise CustomerError(
                    f"{self._who}: {method} took more than {self.timeout:g} s (loop.customer_timeout)"
                ) from error
            raise CustomerError(f"{self._who}: {method} raised {describe_exception(error)}") from error
        return found

    def _checked(self, value: Any, kind: type[T], method: str) -> T:
        if not isinstance(value, kind):
            raise CustomerError(f"{self._who}: {method} must return {kind.__name__}, found {type(value).__name__}")
        return value
