"""What the loop and Lightning cost beside the tensor work of an iteration.

``python benchmarks/speed/overhead.py`` runs one iteration of the shop recipe and counts the time within the trunk's
passes, the output embedding, sampling, folding adapters, backward passes and optimiser steps; all else is overhead: the
customers, chat templates and tokenising, collating, rewards and advantages, Trainers, callbacks, logging and files.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from records import save

from lightning_iterppo.build import build_loop
from lightning_iterppo.composition import compose
from lightning_iterppo.generation import local
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models import folding
from lightning_iterppo.models.language_model import LanguageModel


class Watch:
    """Adds up the time within what it wraps; what is within another counts once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._depth = 0
        self._started = 0.0

    def enter(self) -> None:
        """The tensor work begins."""
        if self._depth == 0:
            self._started = time.perf_counter()
        self._depth += 1

    def leave(self, name: str) -> None:
        """It ends."""
        self._depth -= 1
        if self._depth == 0:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - self._started

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Watches a function of a module or a class."""
        function: Callable[..., Any] = getattr(owner, attribute)

        def watched(*arguments: Any, **named: Any) -> Any:
            self.enter()
            try:
                return function(*arguments, **named)
            finally:
                self.leave(name)

        setattr(owner, attribute, watched)


class Iterations(pl.Callback):
    """When each iteration ran, and how much of it was tensor work."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.found: list[dict[str, Any]] = []

    def on_iteration_start(self, loop: IterativePPOLoop) -> None:
        """Begins to count."""
        self.watch.seconds = {}
        self._started = time.perf_counter()

    def on_iteration_end(self, loop: IterativePPOLoop) -> None:
        """Stops counting."""
        total = time.perf_counter() - self._started
        work = dict(self.watch.seconds)
        self.found.append({"seconds": total, "work": work, "overhead": total / sum(work.values()) - 1})


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="shop")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--conversations", type=int, default=32)
    parser.add_argument("--try", dest="trial", action="store_true", help="write no results")
    parser.add_argument("overrides", nargs="*", help="key=value for the recipe")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    overrides = [
        f"loop.iterations={arguments.iterations}",
        f"loop.conversations={arguments.conversations}",
        *("loop.evaluation_conversations=8", "loop.held_out_conversations=0", "logs.conversations=40"),
        *("warm_start.epochs=1", "policy.rounds=1", *arguments.overrides),
    ]
    config = compose(arguments.recipe, overrides)
    watch = Watch()
    watch.wrap(LanguageModel, "hidden", "trunk and its mask")
    watch.wrap(LanguageModel, "response_logprobs", "log-probabilities")
    watch.wrap(LanguageModel, "logits", "log-probabilities")
    watch.wrap(local.LocalEngine, "_forward", "trunk, token by token")
    watch.wrap(local, "sample_tokens", "sampling")
    watch.wrap(folding, "_fold", "folding")
    watch.wrap(torch.Tensor, "backward", "backward")
    watch.wrap(sys.modules["torch.optim.adam"], "adam", "optimiser")  # the package takes it for its class
    watch.wrap(torch.nn.utils, "clip_grad_norm_", "optimiser")
    iterations = Iterations(watch)
    loop = build_loop(config, kept=False)
    loop.callbacks.append(iterations)
    loop.run()
    middle = statistics.median(i["overhead"] for i in iterations.found)
    for item in iterations.found:
        work = ", ".join(f"{name} {seconds:.1f}" for name, seconds in item["work"].items())
        print(f"{item['seconds']:.1f} s: {work}; overhead {item['overhead']:.1%} of it")
    print(f"overhead {middle:.1%} in the median of {len(iterations.found)} iterations")
    if not arguments.trial:
        content = {
            "recipe": arguments.recipe,
            "overrides": overrides,
            "iterations": iterations.found,
            "overhead": middle,
        }
        save("overhead", content)


if __name__ == "__main__":
    main()
