"""Plays a guest who books a table: a customer of your own is one class with two methods, and needs no base class."""

import random

from lightning_iterppo.customers import CustomerReply, Message


class Guest:
    """Books when the desk first asks when, and then offers the hour at which a table of that size is free."""

    def __init__(self, small: str = "seven", large: str = "eight") -> None:
        self.hours = {"two": small, "six": large}

    def reset(self, seed: int) -> str:
        rng = random.Random(seed)
        self.people, self.day = rng.choice(["two", "six"]), rng.choice(["today", "tomorrow"])
        return f"table for {self.people}"

    def reply(self, history: list[Message]) -> CustomerReply:
        first, *later = [message.content.split() for message in history if message.role == "agent"]
        if not later:
            return CustomerReply(self.day if "when" in first else "hello")
        offered = [word for word in later[0] if word in self.hours.values()]
        booked = "when" in first and offered[:1] == [self.hours[self.people]]
        return CustomerReply("thanks" if booked else "no", reward=float(booked), done=True)
