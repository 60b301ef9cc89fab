"""A light stand-in for IterativePPOLoop: what the callbacks read and write, and nothing that trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.progress import Phase, Progress
from lightning_iterppo.summary import IterationRecord, Rate, Summary


def a_rate(
    outcome_rate: float, ci95: tuple[float, float] = (0.1, 0.9), conversations: int = 100, return_mean: float = 0.0
) -> Rate:
    return Rate(outcome_rate, ci95, conversations, return_mean)


@dataclass
class FakeSettings:
    iterations: int = 3
    conversations: int = 100
    evaluation_conversations: int = 200
    held_out_conversations: int = 0
    rounds: int = 2
    evaluate_every: int = 0


@dataclass
class FakeRunDirectory:
    path: Path

    def checkpoint(self, iteration: int) -> Path:
        return self.path / "checkpoints" / f"iteration-{iteration:03d}"


@dataclass
class FakeLoop:
    run_dir: FakeRunDirectory | None
    progress: Progress = field(default_factory=Progress)
    settings: FakeSettings = field(default_factory=FakeSettings)
    summary: Summary = field(default_factory=lambda: Summary(recipe="test", seed=1))
    policy: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(kl_coefficient=0.1))
    conversations: list[Conversation] = field(default_factory=list)
    evaluations: dict[int, Rate] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    should_stop: bool = False
    stop_reason: str | None = None
    is_main: bool = True
    saved: list[int] = field(default_factory=list)

    def save_checkpoint(self, iteration: int) -> Path:
        assert self.run_dir is not None
        directory = self.run_dir.checkpoint(iteration)
        if self.is_main:
            (directory / "policy").mkdir(parents=True, exist_ok=True)
            (directory / "policy" / "model.safetensors").write_bytes(b"weights")
        self.saved.append(iteration)
        return directory

    def move(self, phase: Phase, **values: Any) -> None:
        """Takes the loop to a point of its run."""
        self.progress = Progress(phase, **values)

    def finish_iteration(self, iteration: int, *, collected: float = 0.3, held_out: float | None = None) -> None:
        """Does what the loop has done before on_iteration_end."""
        self.progress.iteration = iteration
        self.summary.iterations.append(IterationRecord(iteration, a_rate(collected)))
        if held_out is not None:
            self.evaluations[iteration] = a_rate(held_out)


@dataclass
class FakeClock:
    """A clock that moves when told."""

    time: float = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def loop(tmp_path: Path) -> Any:
    return FakeLoop(FakeRunDirectory(tmp_path))


@pytest.fixture
def rate() -> Callable[..., Any]:
    return a_rate


@pytest.fixture
def time() -> FakeClock:
    return FakeClock()


@pytest.fixture
def conversation() -> Conversation:
    return Conversation(
        id="shop-17",
        turns=(
            Turn("Hello, I need boots", "What for?", Suggestion("What for?"), "accepted"),
            Turn("Hiking", "The Alpina, 89 euros.", Suggestion("Buy now!"), "edited", reward=1.0),
        ),
        system="You sell boots.",
        closing="I take them.",
        outcome=1.0,
        seed=17,
        policy_version="iteration-002",
    )
