"""Conversations between a policy and customers, many side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_iterppo.conversation import Conversation, Suggestion
from lightning_iterppo.customers import AsyncCustomer, Customer
from lightning_iterppo.errors import CustomerError
from lightning_iterppo.generation.engine import Engine, Response
from lightning_iterppo.generation.randomness import mixed_seed
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.side_by_side import SideBySide
from lightning_iterppo.talk import Talk, waits


@dataclass(frozen=True, slots=True)
class Failure:
    """A conversation that its customer broke off: it is lost, and has no outcome.

    Args:
        seed: the customer's.
        error: what happened, in one line.
    """

    seed: int
    error: str


@dataclass(slots=True)
class _Running:
    """A conversation that goes on, and what the policy is asked next."""

    place: int
    talk: Talk
    prompt: list[int]

    def go_on(self, response: Response, renderer: ChatRenderer) -> None:
        """Makes the next prompt, out of the last one where the template allows it."""
        system, history, last = self.talk.system, self.talk.history, self.talk.turns[-1]
        own = last.disposition != "accepted"
        tokens = renderer.response_ids(last.message) if own else response.token_ids
        more = renderer.continuation(system, history, ended=own or response.finished)
        if more is None:
            self.prompt = renderer.encode(renderer.prompt_text(system, history))
        else:
            self.prompt = [*self.prompt, *tokens, *more]


def too_many(error: str, failed: int, count: int, share: float) -> str | None:
    """What to say of ``failed`` of ``count`` conversations, the last of which failed of ``error``; None if they may."""
    allowed = math.floor(share * count)
    if failed <= allowed:
        return None
    return error + (
        f"; {failed} of {count} failed, and loop.failed_share={share:g} allows {allowed}" if allowed else ""
    )


def collect(
    make_customer: Callable[[], Customer | AsyncCustomer],
    seeds: Sequence[int],
    *,
    engine: Engine,
    renderer: ChatRenderer,
    sampling: Sampling,
    policy_version: str,
    prefix: str,
    seed: int = 0,
    batch: int = 64,
    events: bool = True,
    timeout: float = math.inf,
    failed_share: float = 0.0,
    among: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_failure: Callable[[Failure], None] | None = None,
    on_usage: Callable[[dict[str, float]], None] | None = None,
) -> list[Conversation]:
    """One conversation for each seed, in their order. As soon as one ends, the next begins in its place.

    Customers of the asynchronous form (``async def reply``) answer at once; others one after the other.

    Args:
        make_customer: makes a customer; one object a conversation.
        seeds: the customers' seeds.
        engine: says the policy's part; it may keep what it computed from turn to turn.
        renderer: the model's chat template.
        sampling: how suggestions are sampled.
        policy_version: written into every suggestion.
        prefix: conversations are named ``prefix-SEED``.
        seed: what suggestions' randomness comes from, with the customer's seed and the turn: a conversation is the
            same whichever others go on beside it.
        batch: conversations side by side.
        events: whether outcomes are of events, so that the rewards of a conversation add up to 0 to 1; else amounts.
        timeout: seconds that a customer of the asynchronous form may take for an answer.
        failed_share: how many of the conversations may fail, below 1. One that fails is left out.
        among: how many conversations that is a share of, where other processes have some of them; None for these.
        on_progress: called with the number of conversations that are over after every turn.
        on_failure: called with every conversation that failed.
        on_usage: called with what every conversation cost, as far as its customer counts it.

    Raises:
        CustomerError: a customer broke its protocol or failed, with its class and seed, and one too many.
    """
    waiting = list(enumerate(seeds))[::-1]  # the next is the last
    found: dict[int, Conversation] = {}
    failed = 0
    slots: list[_Running | None] = [None] * min(batch, len(seeds))

    def paid(talk: Talk) -> None:
        if on_usage is not None and talk.usage:
            on_usage(talk.usage)

    def lost(talk: Talk, error: CustomerError) -> None:
        nonlocal failed
        failed += 1
        paid(talk)
        refused = too_many(str(error), failed, len(seeds) if among is None else among, failed_share)
        if refused is not None:
            raise CustomerError(refused) from error
        if on_failure is not None:
            on_failure(Failure(talk.seed, str(error)))

    with SideBySide() as side_by_side:
        while True:
            while waiting and None in slots:
                free = [slot for slot, taken in enumerate(slots) if taken is None][: len(waiting)]
                new = []
                for slot in free:
                    place, customers_seed = waiting.pop()
                    talk = Talk(make_customer(), customers_seed, events=events, timeout=timeout)
                    new.append((slot, place, talk))
                errors = side_by_side.run(
                    [talk.open() for _, _, talk in new], waiting=any(waits(talk.customer) for _, _, talk in new)
                )
                for (slot, place, talk), error in zip(new, errors, strict=True):
                    if error is None:
                        prompt = renderer.encode(renderer.prompt_text(talk.system, talk.history))
                        slots[slot] = _Running(place, talk, prompt)
                    else:
                        lost(talk, error)
            active = [(slot, taken) for slot, taken in enumerate(slots) if taken is not None]
            if not active:
                return [found[place] for place in sorted(found)]
            responses = engine.generate(
                [each.prompt for _, each in active],
                sampling,
                seeds=[mixed_seed(seed, each.talk.seed, len(each.talk.turns)) for _, each in active],
            )
            suggestions = [
                Suggestion(renderer.decode(r.token_ids), r.token_ids, r.logprobs, policy_version) for r in responses
            ]
            errors = side_by_side.run(
                [each.talk.answer(s) for (_, each), s in zip(active, suggestions, strict=True)],
                waiting=any(waits(each.talk.customer) for _, each in active),
            )
            for (slot, each), response, error in zip(active, responses, errors, strict=True):
                talk = each.talk
                if error is not None:
                    lost(talk, error)
                elif talk.done:
                    paid(talk)
                    found[each.place] = talk.conversation(f"{prefix}-{talk.seed}", policy_version)
                else:
                    each.go_on(response, renderer)
                if error is not None or talk.done:
                    slots[slot] = None
            if on_progress is not None:
                on_progress(len(found) + failed)
