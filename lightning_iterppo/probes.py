"""A ladder of tiny conversations that the whole loop learns in seconds: where it breaks says which part is broken.

Each rung runs the recipe ``ladder`` from beginning to end and needs one thing more than the one before, so the first
that fails names the part to look at.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lightning_iterppo.build import build_loop
from lightning_iterppo.composition import compose
from lightning_iterppo.conversation import Conversation

__all__ = ["PROBES", "Probe", "ProbeResult", "render", "results_as_json", "run"]


@dataclass(frozen=True)
class Probe:
    """One rung.

    Args:
        name: what it is called.
        overrides: of the recipe ``ladder``.
        checks: what fails when this rung fails and those before it do not.
        least: the mean outcome that it must reach.
        most: the mean outcome that it must not exceed: a trap that has to be fallen into.
    """

    name: str
    overrides: tuple[str, ...]
    checks: str
    least: float = 0.95
    most: float = 1.0


def _rung(rung: str) -> tuple[str, ...]:
    return (f"customer.rung={rung}", f"logs.rung={rung}")


_PERSON = "customer._target_=lightning_iterppo.customers.ladder.EditedLadderCustomer"

PROBES: Final[tuple[Probe, ...]] = (
    Probe("constant", _rung("constant"), "the PPO step: reward, advantage and gradient of PPOPolicy"),
    Probe("prompt", _rung("prompt"), "Q of a response in its state: QCritic, and which response a reward belongs to"),
    Probe("memory", _rung("memory"), "the history in a state: rendering, token trees, the engine's cache"),
    Probe("delayed", _rung("delayed"), "returns from later turns: the Monte Carlo targets of QCritic"),
    Probe("trap, γ = 1", _rung("trap"), "the discount: later turns must outweigh what is earned at once"),
    Probe(
        "trap, γ = 0", (*_rung("trap"), "critic.gamma=0"), "the discount: with γ = 0 the greedy answer wins", 0.2, 0.3
    ),
    Probe(
        "edited",
        ("~customer.rung", _PERSON, "logs.rung=prompt"),
        "the action is the suggestion, not the message that was sent",
    ),
)


@dataclass(frozen=True)
class ProbeResult:
    """How a rung went.

    Args:
        name: the rung's.
        checks: what fails when it fails.
        before: mean outcome before training.
        after: mean outcome after it.
        passed: whether that is where it should be.
        seconds: how long it took.
    """

    name: str
    checks: str
    before: float
    after: float
    passed: bool
    seconds: float


def run(probe: Probe, *, seed: int = 1) -> ProbeResult:
    """Runs one probe, from warm start to evaluation.

    Args:
        probe: which.
        seed: of the run.
    """
    started = time.perf_counter()
    recipe = compose("ladder", [f"seed={seed}", *probe.overrides])
    recipe.callbacks = {}  # no display: whoever runs several of them has one
    loop = build_loop(recipe, kept=False)
    loop.run()
    # The mean outcome, not the rate of those above 0: the trap pays a little for the wrong answer.
    before, after = (_mean_outcome(loop.measurement.samples[when]) for when in ("before", "after"))
    passed = probe.least <= after <= probe.most
    return ProbeResult(probe.name, probe.checks, before, after, passed, time.perf_counter() - started)


def _mean_outcome(conversations: Sequence[Conversation]) -> float:
    return sum(conversation.outcome or 0.0 for conversation in conversations) / len(conversations)


def results_as_json(results: Sequence[ProbeResult]) -> dict[str, Any]:
    """The results as JSON types: ``passed``, whether all did, and ``probes``, each with the fields of `ProbeResult`."""
    return {"passed": all(result.passed for result in results), "probes": [asdict(result) for result in results]}


def render(results: Sequence[ProbeResult]) -> RenderableType:
    """The results as a table for a rich console."""
    table = Table(show_edge=False, pad_edge=False, box=None)
    for name in ("", "probe", "before", "after", "seconds", "what it checks"):
        table.add_column(name, no_wrap=name != "what it checks", justify="right" if name in _NUMBERS else "left")
    for result in results:
        told = Text("ok", "green") if result.passed else Text("failed", "bold red")
        rates = (f"{result.before:.0%}", f"{result.after:.0%}", f"{result.seconds:.0f}")
        table.add_row(told, result.name, *rates, result.checks)
    return table


_NUMBERS: Final = ("before", "after", "seconds")
