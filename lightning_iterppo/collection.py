"""Conversations between a policy and customers, many side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lightning_iterppo.conversation import Conversation, Message, Suggestion, Turn
from lightning_iterppo.customers import Customer, CustomerReply, Reviewer, Sent
from lightning_iterppo.errors import CustomerError, IterPPOError, describe_exception
from lightning_iterppo.generation.engine import Engine, Response
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models.rendering import ChatRenderer

T = TypeVar("T")
MAX_TURNS = 64  # a customer that never ends a conversation is a defect of the customer


class _Talk:
    """One running conversation."""

    def __init__(self, customer: Customer, seed: int, renderer: ChatRenderer, *, events: bool) -> None:
        self.customer = customer
        self.seed = seed
        self.renderer = renderer
        self.events = events
        opening = _checked(_asked(customer, seed, "reset", seed), str, customer, "reset", seed)
        self.system: str | None = getattr(customer, "system", None)
        self.history = [Message("customer", opening)] if opening else []
        self.said = opening
        self.turns: list[Turn] = []
        self.prompt = renderer.encode(renderer.prompt_text(self.system, self.history))
        self.done = False
        self.closing = ""

    def answer(self, response: Response, policy_version: str) -> None:
        """Sends the response, hears the customer, and makes the next prompt."""
        text = self.renderer.decode(response.token_ids)
        sent = self._reviewed(text)
        self.history.append(Message("agent", sent.message))
        found = _asked(self.customer, self.seed, "reply", list(self.history))
        reply = _checked(found, CustomerReply, self.customer, "reply", self.seed)
        self._check_reward(reply.reward)
        suggestion = Suggestion(text, response.token_ids, response.logprobs, policy_version)
        self.turns.append(Turn(self.said, sent.message, suggestion, sent.disposition, float(reply.reward)))
        if reply.done:
            self.done, self.closing = True, reply.text
            return
        if len(self.turns) >= MAX_TURNS:
            raise CustomerError(
                f"customer {type(self.customer).__name__} (seed {self.seed}) did not end after {MAX_TURNS} turns: "
                "reply must return done=True at some point"
            )
        self.said = reply.text
        self.history.append(Message("customer", reply.text))
        own = sent.disposition != "accepted"
        tokens = self.renderer.response_ids(sent.message) if own else response.token_ids
        more = self.renderer.continuation(self.system, self.history, ended=own or response.finished)
        if more is None:
            self.prompt = self.renderer.encode(self.renderer.prompt_text(self.system, self.history))
        else:
            self.prompt = [*self.prompt, *tokens, *more]

    def _reviewed(self, text: str) -> Sent:
        """What the person sends, if there is one."""
        if not isinstance(self.customer, Reviewer):
            return Sent(text)
        history = [*self.history, Message("agent", text)]
        sent = _checked(_asked(self.customer, self.seed, "review", history), Sent, self.customer, "review", self.seed)
        known = ("accepted", "edited", "rejected")
        if sent.disposition not in known or (sent.disposition == "accepted" and sent.message != text):
            raise CustomerError(
                f"customer {type(self.customer).__name__} (seed {self.seed}): review must return the suggestion as it "
                f"is with accepted, or another message with edited or rejected; found {sent.disposition!r} with "
                f"{sent.message!r} for {text!r}"
            )
        return sent

    def _check_reward(self, reward: float) -> None:
        where = f"customer {type(self.customer).__name__} (seed {self.seed})"
        if not isinstance(reward, int | float) or not math.isfinite(reward):
            raise CustomerError(f"{where}: the reward must be a finite number, found {reward!r}")
        # Where Q is a probability every return, from any turn to the end, has to lie in [0, 1].
        total = sum(turn.reward for turn in self.turns) + reward
        if self.events and (reward < 0 or total > 1 + 1e-9):
            raise CustomerError(
                f"{where}: the rewards of a conversation must be at least 0 and add up to at most 1, found {reward:g} "
                f"for turn {len(self.turns) + 1}, {total:g} in all: divide them by the largest total there can be, or "
                "fit amounts with critic.loss=mse"
            )

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


def _asked(customer: Customer, seed: int, method: str, *arguments: Any) -> Any:
    """Calls a customer's method; its own exceptions say which conversation they are of, and where in whose code."""
    try:
        return getattr(customer, method)(*arguments)
    except IterPPOError:
        raise
    except Exception as error:
        raise CustomerError(
            f"customer {type(customer).__name__} (seed {seed}): {method} raised {describe_exception(error)}"
        ) from error


def _checked(value: Any, kind: type[T], customer: Customer, method: str, seed: int) -> T:
    if not isinstance(value, kind):
        raise CustomerError(
            f"customer {type(customer).__name__} (seed {seed}): {method} must return {kind.__name__}, "
            f"found {type(value).__name__}"
        )
    return value


def collect(
    make_customer: Callable[[], Customer],
    seeds: Sequence[int],
    *,
    engine: Engine,
    renderer: ChatRenderer,
    sampling: Sampling,
    policy_version: str,
    prefix: str,
    batch: int = 64,
    events: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> list[Conversation]:
    """One conversation for each seed, in their order. As soon as one ends, the next begins in its place.

    Args:
        make_customer: makes a customer; one object a conversation.
        seeds: the customers' seeds.
        engine: says the policy's part; it may keep what it computed from turn to turn.
        renderer: the model's chat template.
        sampling: how suggestions are sampled.
        policy_version: written into every suggestion.
        prefix: conversations are named ``prefix-SEED``.
        batch: conversations side by side.
        events: whether outcomes are of events, so that the rewards of a conversation add up to 0 to 1; else amounts.
        on_progress: called with the number of finished conversations after every turn.

    Raises:
        CustomerError: a customer broke its protocol, with its class and seed.
    """
    waiting = list(enumerate(seeds))[::-1]  # the next is the last
    found: dict[int, Conversation] = {}
    slots: list[tuple[int, _Talk] | None] = [None] * min(batch, len(seeds))
    while True:
        for slot, taken in enumerate(slots):
            if taken is None and waiting:
                place, seed = waiting.pop()
                slots[slot] = place, _Talk(make_customer(), seed, renderer, events=events)
        active = [(slot, *taken) for slot, taken in enumerate(slots) if taken is not None]
        if not active:
            return [found[place] for place in range(len(seeds))]
        responses = engine.generate([talk.prompt for _, _, talk in active], sampling)
        for (slot, place, talk), response in zip(active, responses, strict=True):
            talk.answer(response, policy_version)
            if talk.done:
                found[place] = talk.conversation(f"{prefix}-{talk.seed}", policy_version)
                slots[slot] = None
        if on_progress is not None:
            on_progress(len(found))
