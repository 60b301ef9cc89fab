"""The templated shop with a small language model: policies of one run, judged from logs of the first of them."""

from __future__ import annotations

import importlib
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from lightning_iterppo import operations
from lightning_iterppo.composition import compose
from lightning_iterppo.config import Recipe
from lightning_iterppo.estimation import estimate

LEARNING = Path(__file__).resolve().parents[1] / "learning"
sys.path.insert(0, str(LEARNING))  # the recipe names tasks.shop

#: Of a run: conversations an iteration; of the logs to judge from; and to measure what a policy is really worth.
TRAINED, LOGGED, MEASURED = 300, 500, 10_000
ITERATIONS: Final = 3


def recipe(seed: int) -> Recipe:
    """The learning benchmark's recipe of the shop."""
    config = compose(
        str(LEARNING / "learning.yaml"),
        [
            f"seed={seed}",
            *("customer._target_=tasks.shop.Customer", "logs._target_=tasks.shop.logs", "logs.conversations=400"),
            *(f"loop.iterations={ITERATIONS}", f"loop.conversations={TRAINED}", "loop.evaluation_conversations=0"),
            *("critic.epochs=2", "policy.rounds=1", "policy.learning_rate=3e-4"),  # small steps, or no log can tell
            *(f"callbacks.checkpoint.keep_last={ITERATIONS}", "callbacks.progress=null"),
        ],
    )
    assert config.model.scratch is not None, "learning.yaml makes its model from nothing"
    config.model.scratch.vocabulary = list(importlib.import_module("tasks.shop").VOCABULARY)
    return config


def repetitions(seed: int, numbers: range) -> Iterator[dict[str, Any]]:
    """A run; then, for each number, fresh logs of its first policy, and what they say of it and of the later ones.

    The logs are not those that the policies were trained on: what a policy was fitted to flatters it.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as place:
        run, logs = Path(place) / "run", Path(place) / "logs.jsonl"
        operations.train(recipe(seed), run, False)
        policies = [run / "checkpoints" / f"iteration-{iteration:03d}" for iteration in range(ITERATIONS)]
        truths = [operations.evaluate(recipe(seed), policy, MEASURED)["return_mean"] for policy in policies]
        for number in numbers:
            # Other customers than the run or other logs have met: training's are numbered from the seed.
            operations.collect(recipe(1000 * seed + number), logs, policies[0], LOGGED)
            for iteration, (policy, truth) in enumerate(zip(policies, truths, strict=True)):
                said = estimate(recipe(seed), policy, [logs])
                yield {
                    "seed": seed,
                    "logs": number,
                    "iterations": iteration,
                    "truth": truth,
                    **{key: said[key] for key in ("verdict", "reasons", "fqe", "pdwis", "doubly_robust", "overlap")},
                }
            logs.unlink()
