"""A piece of an iteration in a process of its own: a critic's fit and an improvement, timed, and the memory it took.

``python benchmarks/scaling/piece.py LOGS RECIPE key=value …`` prints JSON. ``check.py`` starts it.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings

import psutil

from lightning_iterppo.build import build_loop
from lightning_iterppo.composition import compose
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.machine import peak_memory_bytes, release_memory


def main() -> None:
    """Runs it."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logs, recipe, *overrides = sys.argv[1:]
    conversations = read_conversations(logs)
    release_memory()
    before = psutil.Process().memory_info().rss
    loop = build_loop(compose(recipe, overrides), kept=False, talks=False)
    loop.tools.place()
    loop.start_from_policy()
    tokens = {len(loop.renderer.render(conversation).tree) for conversation in conversations}
    started = time.perf_counter()
    loop.tools.begin("evaluate")
    loop.critic_fit.iteration(conversations, [], [])
    fitted = time.perf_counter()
    of_critic = peak_memory_bytes()
    loop.tools.begin("improve")
    loop.improvement.iteration(0, conversations, [], [])
    done = time.perf_counter()
    found = {
        "tokens": sorted(tokens),
        "generated": loop.improvement.policy.figures and loop.progress.tokens,
        "seconds": {"evaluate": fitted - started, "improve": done - fitted},
        "memory": {"before": before, "evaluate": of_critic, "peak": peak_memory_bytes()},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
