"""Every response has randomness of its own: what it says does not hang on who else is asked, where, or by whom."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def mixed_seed(*parts: int | str) -> int:
    """A seed made of several numbers and names, from 0 to below 2⁶³: other parts have another one, however alike."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeds_in_turn(seed: int, first: int, count: int) -> list[int]:
    """Seeds of the next responses of an engine that is told none.

    Args:
        seed: the engine's.
        first: how many responses it has given before.
        count: how many are asked for.
    """
    return [mixed_seed(seed, number) for number in range(first, first + count)]


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """Random numbers in [0, 1), (responses, count), float64, on the host: the same ones for the same seed, everywhere.

    Args:
        seeds: one a response, any whole numbers; they count modulo 2⁶⁴.
        count: how many numbers a response gets.
    """
    bits = np.random.Philox(key=0)
    draw, state = np.random.Generator(bits), bits.state
    found = np.empty((len(seeds), count))
    for row, seed in zip(found, seeds, strict=True):
        # The state as it begins, with another key: a generator of its own for each would take three times as long.
        state["state"]["key"][0] = seed % 2**64
        bits.state = state
        draw.random(out=row)
    return torch.from_numpy(found)
