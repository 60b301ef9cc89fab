"""A customer of a dozen lines: it names a colour and is won by an agent that says the same one within two turns."""

from __future__ import annotations

from lightning_iterppo.customers import CustomerReply, Message


class WordCustomer:
    """The smallest customer that needs the state: what is right depends on what the customer said."""

    def reset(self, seed: int) -> str:
        self.colour = ("red", "blue")[seed % 2]
        self.turns = 0
        return f"{self.colour} ?"

    def reply(self, history: list[Message]) -> CustomerReply:
        self.turns += 1
        if self.colour in history[-1].content.split():
            return CustomerReply("yes", reward=1.0, done=True)
        return CustomerReply("no", done=self.turns == 2)
