"""A patient who calls a clinic, and comes if the desk offers the right doctor."""

from __future__ import annotations

import random

from lightning_iterppo.customers import CustomerReply, Message

DOCTORS = {"ear": "green", "eye": "brown", "knee": "white"}


class Patient:
    """Comes to the doctor for what hurts, which the desk has to ask for.

    Args:
        patience: messages of the desk until the patient hangs up.
    """

    def __init__(self, patience: int = 3) -> None:
        self.patience = patience

    def reset(self, seed: int) -> str:
        """Opens the call."""
        self.hurts = random.Random(seed).choice(sorted(DOCTORS))
        return "hello"

    def reply(self, history: list[Message]) -> CustomerReply:
        """Answers the desk."""
        said = [message.content.split() for message in history if message.role == "agent"]
        words = set(said[-1])
        if words & set(DOCTORS.values()) == {DOCTORS[self.hurts]}:
            return CustomerReply("thanks", reward=1.0, done=True)
        return CustomerReply(self.hurts if "where" in words else "no", done=len(said) == self.patience)
