"""What a run writes down of itself while it runs: its summary, and the iteration that is going on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lightning_iterppo.collection import Failure
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.evaluation.dispositions import DispositionCounts
from lightning_iterppo.summary import (
    CRITIC_FIGURES,
    POLICY_FIGURES,
    SUGGESTION_FIGURES,
    Failures,
    IterationRecord,
    Rate,
    Summary,
)
from lightning_iterppo.trainer import gather_lists


class RunRecord:
    """The summary of a run, and the record of its running iteration.

    Args:
        summary: what is written down.
        metrics: the run's newest values by name; the figures of an iteration are among them.
    """

    def __init__(self, summary: Summary, metrics: dict[str, float]) -> None:
        self.summary = summary
        self.metrics = metrics
        self.current: IterationRecord | None = None

    @property
    def running(self) -> IterationRecord:
        """The iteration that is going on."""
        assert self.current is not None, "an iteration begins with collecting"
        return self.current

    def begin(self, iteration: int, collected: Rate | None, conversations: Iterable[Conversation]) -> None:
        """A new iteration, with the outcome rate of its conversations, and what people did with the suggestions."""
        self.current = IterationRecord(iteration, collected)
        counts = DispositionCounts()
        for conversation in conversations:
            counts.add(conversation)
        self.current.suggestions = self._of("collect", SUGGESTION_FIGURES, counts.to_json())

    def end(self, histories_cut: float | None) -> None:
        """The iteration is over."""
        self.summary.iterations.append(self.running)
        self.summary.histories_cut = histories_cut

    def spent(self, phase: str, seconds: float) -> None:
        """How long a phase took, by its name."""
        self.summary.spend(phase, seconds)
        kind, _, _ = phase.partition("-")
        if self.current is not None and kind in ("collect", "evaluate", "improve"):
            self.current.seconds[kind] = seconds

    def critic(self, figures: Mapping[str, float | None]) -> None:
        """The critic's held-out figures."""
        self.running.critic = self._of("critic", CRITIC_FIGURES, figures)

    def policy(self, figures: Mapping[str, float | None]) -> None:
        """The improvement's figures."""
        self.running.policy = self._of("policy", POLICY_FIGURES, figures)

    def _of(self, part: str, names: Sequence[str], found: Mapping[str, float | None]) -> dict[str, float | None]:
        """The figures that a record has, which are metrics too where they are known."""
        figures = {name: found.get(name) for name in names}
        self.metrics.update({f"{part}/{name}": value for name, value in figures.items() if value is not None})
        return figures

    def count(self, kind: str, tokens: int) -> None:
        """Adds the tokens of every process to the iteration's."""
        self.running.tokens[kind] = (self.running.tokens[kind] or 0) + sum(gather_lists([tokens]))

    def failed(self, prefix: str, failures: Sequence[Failure]) -> None:
        """Which conversations their customers broke off."""
        self.summary.failed[prefix] = Failures(len(failures), failures[0].error)

    def used(self, prefix: str, usage: dict[str, float]) -> None:
        """What conversations cost."""
        self.summary.usage[prefix] = usage

    def mismatched(self, prefix: str, figures: dict[str, float | None]) -> None:
        """How far a server's log-probabilities were from the trainer's."""
        self.summary.engine[prefix] = figures
        self.metrics.update({f"engine/{name}": value for name, value in figures.items() if value is not None})

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for `load_state_dict`."""
        return {
            "summary": self.summary.to_json(),
            "current": None if self.current is None else asdict(self.current),
            "metrics": dict(self.metrics),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        self.summary = Summary.from_json(state["summary"])
        self.summary.status = "running"
        self.current = None if state["current"] is None else IterationRecord.from_json(state["current"])
        self.metrics.clear()
        self.metrics.update(state["metrics"])
