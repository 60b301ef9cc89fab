"""What a run found out: `summary.json` as typed objects. A figure that was not computed is None, never 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lightning_iterppo.conversation import Conversation

SCHEMA = 1
CRITIC_FIGURES = ("auroc", "brier", "ece", "explained_variance", "turns", "brier_constant")
POLICY_FIGURES = ("kl_old", "kl_reference", "clip_fraction", "entropy", "reward_mean", "reward_gain")
SUGGESTION_FIGURES = ("acceptance_rate", "edit_distance")


@dataclass(frozen=True, slots=True)
class Rate:
    """How conversations ended.

    Args:
        outcome_rate: share with an outcome above 0.
        ci95: Wilson's 95 % interval of that share.
        conversations: how many were counted; those with an unknown outcome are not.
        return_mean: mean outcome.
    """

    outcome_rate: float
    ci95: tuple[float, float]
    conversations: int
    return_mean: float

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Rate:
        """The rate that `dataclasses.asdict` wrote."""
        low, high = record["ci95"]
        return cls(record["outcome_rate"], (low, high), record["conversations"], record["return_mean"])


@dataclass(frozen=True, slots=True)
class Failures:
    """Conversations that their customers broke off: they are in no rate and in no file.

    Args:
        conversations: how many.
        first: what the first one failed of.
    """

    conversations: int
    first: str


@dataclass(slots=True)
class IterationRecord:
    """One iteration's figures, as `summary.json` names them."""

    iteration: int
    collected: Rate | None
    critic: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(CRITIC_FIGURES))
    policy: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(POLICY_FIGURES))
    seconds: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(("collect", "evaluate", "improve")))
    tokens: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(("generated", "trained")))
    held_out: Rate | None = None
    suggestions: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(SUGGESTION_FIGURES))

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> IterationRecord:
        """The record that `dataclasses.asdict` wrote."""
        rates = {key: Rate.from_json(record[key]) for key in ("collected", "held_out") if record.get(key)}
        return cls(**{**record, "collected": None, "held_out": None, **rates})


@dataclass(slots=True)
class Summary:
    """A whole run.

    ``start`` is the policy of another run that this one began with; None without. ``seconds`` counts from the start of
    training to its end, over all processes of a resumed run; the evaluations before and after are counted in
    ``evaluation_seconds``. ``histories_cut`` is the share of states whose history did not fit the window; None without
    a window. ``before_held_out`` and ``after_held_out`` are the second
    figure: a kind of customer that training never meets. ``estimate`` is what `iterppo estimate` says, of the logs that
    a run without a customer held back. ``failed`` is empty where no customer failed; else by the conversations' prefix.
    ``usage`` is what the conversations cost, by their prefix, where customers count that. ``engine`` is how far a
    server's log-probabilities were from the trainer's, by the conversations' prefix, where a server sampled.
    """

    recipe: str
    seed: int
    start: str | None = None
    status: Literal["running", "finished", "failed"] = "running"
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    before: Rate | None = None
    after: Rate | None = None
    before_held_out: Rate | None = None
    after_held_out: Rate | None = None
    logs: Rate | None = None
    estimate: dict[str, Any] | None = None
    stop_reason: str | None = None
    histories_cut: float | None = None
    failed: dict[str, Failures] = field(default_factory=dict)
    usage: dict[str, dict[str, float]] = field(default_factory=dict)
    engine: dict[str, dict[str, float | None]] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    iterations: list[IterationRecord] = field(default_factory=list)
    examples: tuple[Conversation | None, Conversation | None] = (None, None)

    def spend(self, phase: str, seconds: float) -> None:
        """Counts the time of a phase, by its name: measuring outcome rates is no training."""
        if phase in ("before", "after") or phase.startswith("held-out"):
            self.evaluation_seconds += seconds
        else:
            self.seconds += seconds

    def measured(self, when: Literal["before", "after"], rate: Rate | None, held_out: Rate | None) -> None:
        """Takes the two outcome rates of before training or after it."""
        if when == "before":
            self.before, self.before_held_out = rate, held_out
        else:
            self.after, self.after_held_out = rate, held_out

    def to_json(self) -> dict[str, Any]:
        """The content of `summary.json`; the example conversations are files of their own."""
        record = {key: value for key, value in asdict(self).items() if key != "examples"}
        return {"schema": SCHEMA, **record}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Summary:
        """The summary that `to_json` wrote."""
        known = {key: value for key, value in record.items() if key != "schema"}
        for key in ("before", "after", "before_held_out", "after_held_out", "logs"):
            if known.get(key):
                known[key] = Rate.from_json(known[key])
        known["failed"] = {name: Failures(**each) for name, each in known.get("failed", {}).items()}
        known["iterations"] = [IterationRecord.from_json(item) for item in known.get("iterations", [])]
        return cls(**known)


def side_by_side(
    before: Sequence[Conversation], after: Sequence[Conversation]
) -> tuple[Conversation | None, Conversation | None]:
    """A pair to show: one customer, lost before and won after; else any lost one and any won one; else the first."""
    won = {c.seed: c for c in after if (c.outcome or 0) > 0}
    for conversation in before:
        if (conversation.outcome or 0) <= 0 and conversation.seed in won:
            return conversation, won[conversation.seed]
    lost = next((c for c in before if (c.outcome or 0) <= 0), before[0] if before else None)
    return lost, next(iter(won.values()), after[0] if after else None)
