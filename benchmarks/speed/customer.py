"""The customer of the speed benchmark: says fixed texts for a fixed number of turns. Needs nothing installed."""

from __future__ import annotations

# About fifteen tokens each for SmolLM2.
OPENING = "Number {seed} here. I am looking for warm shoes for the winter. What do you have?"
REPLIES = (
    "Those sound nice. Which colours are there, and how much do they cost?",
    "Do you also have them in a size that fits a child of ten?",
    "My old ones were never dry. Are these good in deep snow and rain?",
    "I see. And how long would it take until they are here with me?",
    "Can I send them back later on if they do not fit my feet?",
)
# For conversations of many turns: about eight tokens.
SHORT = "I see. And what else is there?"


def said(turn: int, seed: int = 0, *, short: bool = False) -> str:
    """What the customer says in a turn, from 0. Customers of different seeds begin differently."""
    if short:
        return SHORT
    return OPENING.format(seed=seed) if turn == 0 else REPLIES[(turn - 1) % len(REPLIES)]
