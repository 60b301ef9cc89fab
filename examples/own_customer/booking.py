"""Plays a guest who books a table: a customer of your own is one class with two methods, and needs no base class."""

import random

from lightning_iterppo.customers import CustomerReply, Message


class Guest:
    """Books when the desk first asks how many come, and then offers the hour at which such a table is free."""

    def __init__(self, small: str = "seven", large: str = "eight") -> None:
        self.hours = {"two": small, "six": large}

    def reset(self, seed: int) -> str:
        """Opens the conversation."""
        self.people = random.Random(seed).choice(["two", "six"])
        return "a table"

    def reply(self, history: list[Message]) -> CustomerReply:
        """Answers the desk's last message."""
        first, *later = [message.content.split() for message in history if message.role == "agent"]
        asked = "many" in first
        if not later:
            return CustomerReply(self.people if asked else "hello")
        offered = [word for word in later[0] if word in self.hours.values()]
        booked = asked and offered[:1] == [self.hours[self.people]]
        return CustomerReply("thanks" if booked else "no", reward=float(booked), done=True)
