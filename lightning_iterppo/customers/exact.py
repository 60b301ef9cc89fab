"""Plays a random conversation that `theory` can enumerate: words without meaning, outcomes by chance, a known optimum.

What the loop reaches with it can be held against `theory.optimum`, and each improvement against the exact one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.customers import CustomerReply, Message
from lightning_iterppo.customers.scripted import log_seed, play
from lightning_iterppo.theory import Problem, outcome_problem

__all__ = ["WORDS", "ExactCustomer", "random_logs", "response_of", "state_word", "vocabulary"]

#: The agent's words; token k of a response is word k - 1, token 0 ends it.
WORDS: Final[tuple[str, ...]] = ("red", "blue", "green", "gold")
_TURNS: Final[tuple[str, ...]] = ("a", "b", "c", "d")


def state_word(turn: int, state: int) -> str:
    """What the customer says in a state."""
    return f"{_TURNS[turn]}{state}"


def vocabulary(turns: int = 2, states: int = 3, tokens: int = 3) -> list[str]:
    """Every word of such a conversation, for a model made from scratch."""
    said = [state_word(turn, state) for turn in range(turns) for state in range(states)]
    return [*WORDS[: tokens - 1], *said, "yes", "no"]


def response_of(text: str, tokens: int, length: int) -> tuple[int, ...]:
    """The response that a message is, as the tokens of `theory.ResponseTree`: its words up to the first unknown one."""
    found: list[int] = []
    known = WORDS[: tokens - 1]
    for word in text.split()[:length]:
        if word not in known:
            break
        found.append(known.index(word) + 1)
    return tuple(found) if len(found) == length else (*found, 0)


class ExactCustomer:
    """A customer of `theory.outcome_problem`.

    In every state each response is paid with a probability of its own; a paid conversation ends with outcome 1, others
    go on to a random next state, or end.

    Args:
        problem: which random conversation.
        turns: most agent messages, at most 4.
        states: states of a turn.
        tokens: of the response vocabulary, the end token included, at most 5.
        length: most tokens of a response.
    """

    def __init__(self, problem: int = 0, turns: int = 2, states: int = 3, tokens: int = 3, length: int = 2) -> None:
        if not 1 <= turns <= len(_TURNS) or not 2 <= tokens <= len(WORDS) + 1:
            raise ValueError(f"turns must be 1 to {len(_TURNS)} and tokens 2 to {len(WORDS) + 1}")
        self.problem: Problem = outcome_problem(problem, turns=turns, states=states, tokens=tokens, length=length)
        self._index = {response: i for i, response in enumerate(self.problem.tree.responses)}
        self._turn = self._state = 0

    def reset(self, seed: int) -> str:
        """Draws the first state, and says it."""
        self._rng = random.Random(seed)
        self._turn = 0
        self._state = self._draw(self.problem.start.tolist())
        return state_word(0, self._state)

    def reply(self, history: list[Message]) -> CustomerReply:
        """Pays or does not; goes on to the next state or ends."""
        tree = self.problem.tree
        response = self._index[response_of(history[-1].content, tree.tokens, tree.length)]
        here = (self._turn, self._state, response)
        if self._rng.random() < float(self.problem.reward[here]):
            return CustomerReply("yes", reward=1.0, done=True)
        # The problem's transitions count what is paid as an end; here it is known that nothing was.
        going_on = (self.problem.transition[here] / (1 - self.problem.reward[here])).tolist()
        following = self._draw([*going_on, 1 - sum(going_on)])
        self._turn += 1
        if following == len(going_on) or self._turn == self.problem.reward.shape[0]:
            return CustomerReply("no", done=True)
        self._state = following
        return CustomerReply(state_word(self._turn, following))

    def _draw(self, probabilities: Sequence[float]) -> int:
        return self._rng.choices(range(len(probabilities)), [max(0.0, p) for p in probabilities])[0]


def random_logs(
    conversations: int, seed: int, problem: int = 0, turns: int = 2, states: int = 3, tokens: int = 3, length: int = 2
) -> list[Conversation]:
    """Logged conversations of an agent that takes every response equally often: how to speak, not what to say.

    Args:
        conversations: how many.
        seed: of customers and agent.
        problem: as of `ExactCustomer`, like the rest.
        turns: see there.
        states: see there.
        tokens: see there.
        length: see there.
    """
    rng = random.Random(seed)
    customer = ExactCustomer(problem, turns, states, tokens, length)
    responses = customer.problem.tree.responses

    def respond(system: str, history: list[Message]) -> str:
        return " ".join(WORDS[token - 1] for token in rng.choice(responses) if token)

    return [play(customer, respond, log_seed(seed, index), f"exact-logs-{index:06d}") for index in range(conversations)]
