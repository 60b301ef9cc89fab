"""What the loop is told: how often, how much, and with which batches."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.improvement import LoggedReward


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """The loop's numbers; `lightning_iterppo.config` says what raising and lowering each does."""

    iterations: int = 3
    conversations: int = 160
    evaluation_conversations: int = 240
    held_out_conversations: int = 0
    evaluate_every: int = 0
    batch: int = 64
    failed_share: float = 0.1
    customer_timeout: float = 120.0
    overlap: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    gamma: float = 1.0
    warm_start_epochs: int = 2
    warm_start_batch: int = 8
    critic_epochs: int = 4
    critic_logs: bool = True
    critic_solve_head: bool = True
    critic_head_prior: float = 3.0
    critic_head_trust: float = 0.5
    critic_head_turns: int = 20_000
    critic_batch: int = 8
    critic_patience: int = 2
    critic_td_lambda: float = 1.0
    validation_fraction: float = 0.2
    history: int = 0
    history_weights: bool = False
    rounds: int = 3
    ppo_epochs: int = 2
    policy_batch: int = 8
    samples_per_state: int = 2
    conversations_per_round: int = 64
    logged_reward: LoggedReward = "none"
    logged_lambda: float = 1.0
    log_conversations: int = 0
    log_actions: bool = False
    policy_history: int = 0
    fresh_weight: float | None = 1.0
