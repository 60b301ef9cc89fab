"""Plays a ladder of tiny conversations, each of which needs one thing more of the method than the one before.

Two answers, at most two turns, a known optimum. Which rung is the first that is not reached says what to look at:
`lightning_iterppo.probes` runs them one after another.
"""

from __future__ import annotations

import random
from typing import Final, Literal, get_args

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.customers import CustomerReply, Message, Sent
from lightning_iterppo.customers.scripted import log_seed, play

__all__ = ["ANSWERS", "EditedLadderCustomer", "LadderCustomer", "Rung", "ladder_logs"]

Rung = Literal["constant", "prompt", "memory", "delayed", "trap"]
#: What an agent can say.
ANSWERS: Final[tuple[str, str]] = ("tea", "juice")
#: The answer to each wish.
_RIGHT: Final = {"hot": "tea", "cold": "juice"}
#: What the greedy first answer of the trap earns at once. Well below the half that the other one is worth to an agent
#: that answers by chance: where logs of a few dozen conversations can say that greed is better, falling in is right.
GREEDY_REWARD: Final = 0.25


class LadderCustomer:
    """A guest with a wish, ``hot`` or ``cold``.

    ============ ===== =========================================================================================
    rung         turns what pays
    ============ ===== =========================================================================================
    ``constant`` 1     ``tea``, whatever the guest says
    ``prompt``   1     ``tea`` if the guest says hot, ``juice`` if cold
    ``memory``   2     the same, asked for a turn later: the guest says ``okay`` to any first answer
    ``delayed``  2     ``juice`` as the second answer, but only after ``tea`` as the first, which earns nothing
    ``trap``     2     ``tea`` first earns 0.25 at once and nothing later; after ``juice``, ``tea`` earns 1
    ============ ===== =========================================================================================

    Args:
        rung: which of them.

    Raises:
        ValueError: there is no such rung.
    """

    #: The outcome of the best agent, the same on every rung.
    optimum: float = 1.0

    def __init__(self, rung: Rung = "constant") -> None:
        if rung not in get_args(Rung):
            raise ValueError(f"rung must be one of {', '.join(get_args(Rung))}, found {rung!r}")
        self.rung = rung
        self._wish = ""

    def reset(self, seed: int) -> str:
        """Draws the wish, and says it."""
        self._wish = random.Random(seed).choice(tuple(_RIGHT))
        return self._wish

    def reply(self, history: list[Message]) -> CustomerReply:
        """Pays, waits for the second answer, or leaves."""
        said = [message.content for message in history if message.role == "agent"]
        if self.rung in ("constant", "prompt"):
            return _end(said[0] == ("tea" if self.rung == "constant" else _RIGHT[self._wish]))
        if len(said) == 1:
            greedy = self.rung == "trap" and said[0] == "tea"
            return CustomerReply("okay", reward=GREEDY_REWARD if greedy else 0.0)
        if self.rung == "memory":
            return _end(said[1] == _RIGHT[self._wish])
        return _end(said == (["tea", "juice"] if self.rung == "delayed" else ["juice", "tea"]))


class EditedLadderCustomer(LadderCustomer):
    """The rung ``prompt`` behind a person who edits every suggestion, into the other answer.

    What pays is thus to *suggest* the wrong answer: an agent that learns what is good to send learns to fail.
    """

    def __init__(self) -> None:
        super().__init__("prompt")

    def review(self, history: list[Message]) -> Sent:
        """The other answer."""
        return Sent("juice" if history[-1].content == "tea" else "tea", "edited")


def _end(paid: bool) -> CustomerReply:
    return CustomerReply("thanks" if paid else "hmm", reward=float(paid), done=True)


def ladder_logs(conversations: int, seed: int, rung: Rung = "constant") -> list[Conversation]:
    """Logged conversations of an agent that says either answer by chance: how to speak, and nothing about what to say.

    Args:
        conversations: how many.
        seed: of guests and agent.
        rung: as of `LadderCustomer`.
    """
    rng = random.Random(seed)
    customer = LadderCustomer(rung)

    def respond(system: str, history: list[Message]) -> str:
        return rng.choice(ANSWERS)

    return [play(customer, respond, log_seed(seed, index), f"ladder-{index:06d}") for index in range(conversations)]
