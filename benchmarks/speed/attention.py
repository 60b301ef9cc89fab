"""What attention costs on this processor in 16 bits, in the ways that are chosen between.

``python benchmarks/speed/attention.py`` times, for the heads of SmolLM2-135M (9, three to each of 3 groups, 64 wide):

- a training step's attention over rows of several lengths, forward and backward: with torch's fused kernel for both,
  and with a backward pass that computes the weights again (`model.recompute_attention`);
- a decoding step's over keys and values of several lengths: torch's fused kernel, and plain products.

The two take turns; medians of the times and of the ratios of each turn. Results go to
``benchmarks/results/speed/attention.json``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from records import save
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lightning_iterppo.generation.cache import SlotCache
from lightning_iterppo.models.attention import FEW_QUERIES, grouped_attention
from lightning_iterppo.models.recomputed_attention import recomputed_attention

HEADS, GROUPS, WIDTH = 9, 3, 64
TRAINING = ((16, 64), (4, 128), (4, 200), (4, 300))  # rows and tokens
DECODING = ((64, 200), (32, 200), (4, 460), (4, 1800))


class Layer(nn.Module):
    """What transformers' attention layers say of themselves."""

    is_causal, num_key_value_groups = True, HEADS // GROUPS


def drawn(rows: int, tokens: int, heads: int) -> Tensor:
    """As a layer's projections leave it."""
    return torch.randn(rows, tokens, heads, WIDTH, dtype=torch.bfloat16).transpose(1, 2)


def step(attention: Callable[..., tuple[Tensor, None]], given: list[Tensor], mask: Tensor) -> None:
    """Forward and backward."""
    output, _ = attention(Layer(), *given, mask, scaling=WIDTH**-0.5)
    torch.autograd.grad(output, given, torch.ones_like(output))


def training(rows: int, tokens: int) -> dict[str, Callable[[], None]]:
    """The two sides of a training step, with a mask as trees have one."""
    given = [drawn(rows, tokens, heads).requires_grad_() for heads in (HEADS, GROUPS, GROUPS)]
    mask = (torch.rand(rows, 1, tokens, tokens) < 0.7).tril() | torch.eye(tokens, dtype=torch.bool)
    return {
        "fused": partial(step, sdpa_attention_forward, given, mask),
        "recomputed": partial(step, recomputed_attention, given, mask),
    }


def decode(whole: int, key: Tensor, query: Tensor) -> Callable[[], None]:
    """One new token after a cache that holds ``key``, as the engine attends to it."""
    rows, _, slots, _ = key.shape
    cache = SlotCache.empty(8, rows, torch.device("cpu"), whole)
    cache.extend(torch.full((rows,), slots), slots)
    for layer in cache.layers:
        layer.update(key, key)
    _, mask = cache.extend(torch.ones(rows, dtype=torch.long), 1)
    read = [layer.update(key[:, :, :1], key[:, :, :1]) for layer in cache.layers]

    @torch.no_grad()
    def run() -> None:
        for keys, values in read:  # of several layers: the last step's are not at hand any more
            grouped_attention(Layer(), query, keys, values, mask, scaling=WIDTH**-0.5)

    return run


def decoding(rows: int, slots: int) -> dict[str, Callable[[], None]]:
    """The two sides of a decoding step."""
    key, query = drawn(rows, slots, GROUPS), drawn(rows, 1, HEADS)
    return {"fused": decode(0, key, query), "products": decode(FEW_QUERIES, key, query)}


def compared(sides: dict[str, Callable[[], None]], turns: int) -> dict[str, Any]:
    """Milliseconds of each side, and the second's share of the first's."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 2):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - started)
    first, second = seconds.values()
    ratios = sorted(b / a for a, b in zip(first, second, strict=True))
    found = {name: 1000 * statistics.median(times) for name, times in seconds.items()}
    quarter = len(ratios) // 4
    return {"ms": found, "share": statistics.median(ratios), "quartiles": [ratios[quarter], ratios[-1 - quarter]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=30)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    record: dict[str, Any] = {"training": {}, "decoding": {}}
    for part, make, sizes in (("training", training, TRAINING), ("decoding", decoding, DECODING)):
        for rows, tokens in sizes:
            found = compared(make(rows, tokens), arguments.turns)
            record[part][f"{rows} x {tokens}"] = found
            times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in found["ms"].items())
            low, high = found["quartiles"]
            print(f"{part}, {rows} rows of {tokens}: {times}, share {found['share']:.2f} ({low:.2f} to {high:.2f})")
    save("attention", record)


if __name__ == "__main__":
    main()
