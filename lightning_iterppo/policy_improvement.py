"""The improve phase: rounds of PPO on the states of conversations, against the fitted Q."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_iterppo.behaviour import action_log_ratios
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.critic import QCritic
from lightning_iterppo.improvement import RoundDataModule, RoundState
from lightning_iterppo.machine import release_memory
from lightning_iterppo.models.language_model import ANCHOR, POLICY
from lightning_iterppo.phase import PhaseTools
from lightning_iterppo.policy import PPOPolicy
from lightning_iterppo.settings import LoopSettings
from lightning_iterppo.talker import Talker
from lightning_iterppo.trainer import share

_UNITS = {"sample": "responses", "score": "conversations scored", "prepare": "conversations prepared"}


class PolicyImprovement:
    """Improves the policy; its figures are ``policy.figures`` and ``policy.trained_tokens`` afterwards.

    Args:
        policy: what is improved.
        critic: Q of π_k.
        talker: makes the engines.
        settings: rounds, batches, and which rewards count.
        tools: Trainers and progress.
    """

    def __init__(
        self, policy: PPOPolicy, critic: QCritic, talker: Talker, settings: LoopSettings, tools: PhaseTools
    ) -> None:
        self.policy = policy
        self.critic = critic
        self.talker = talker
        self.settings = settings
        self.tools = tools

    def iteration(
        self,
        iteration: int,
        newest: Sequence[Conversation],
        earlier: Sequence[Sequence[Conversation]],
        logs: Sequence[Conversation],
    ) -> int:
        """One policy-improvement step from π_k, which is the policy as it is now.

        Args:
            iteration: names the randomness.
            newest: π_k's conversations.
            earlier: those of the iterations before, the newest last.
            logs: other people's, of which some join.

        Returns:
            The number of tokens that this process generated.
        """
        settings, model = self.settings, self.policy.model
        model.copy(POLICY, ANCHOR)
        self.policy.fresh_weight = self._fresh_weight()
        past = [c for part in earlier[-settings.policy_history :] for c in part] if settings.policy_history else []
        people = self._some(logs, iteration)
        # Whose logged actions take part and are not π_k's own.
        served = newest if self.talker.delivery is not None else []  # by weights that are only nearly π_k's
        others = [*served, *past, *(people if settings.log_actions else [])]
        observed = others if settings.logged_reward != "none" else []
        log_ratios = action_log_ratios(model, self.talker.renderer, observed, rows=self._rows)
        rounds = RoundDataModule(
            self.policy,
            [*newest, *past, *people],
            self._score,
            engine=lambda seed: self.talker.engine(seed, keep=False),
            renderer=self.talker.renderer,
            max_new_tokens=settings.sampling.max_new_tokens,
            samples_per_state=settings.samples_per_state,
            conversations_per_round=settings.conversations_per_round,
            logged_reward=settings.logged_reward,
            logged_lambda=settings.logged_lambda,
            log_ratios=log_ratios,
            log_actions=settings.log_actions,
            gamma=settings.gamma,
            ppo_epochs=settings.ppo_epochs,
            batch_size=settings.policy_batch,
            rows=self._rows,
            seed=self.tools.seed_of(f"rounds-{iteration}"),
            on_stage=self._staged,
            on_batch=self._passed,
        )
        self.tools.fit(self.policy, rounds, settings.rounds, rounds=True)
        rounds.measure()
        if not model.lora and not settings.overlap:  # else the next conversations are of π_k, and compared with it
            model.discard(ANCHOR)
        return rounds.generated_tokens

    @property
    def _rows(self) -> int:
        """Conversations a pass without gradients, which needs less memory than a step of training."""
        return max(8, share(self.settings.policy_batch))

    def _fresh_weight(self) -> float:
        """As it is set, or by how much of the returns' variance Q explains; 1 where that was not measured."""
        if self.settings.fresh_weight is not None:
            return self.settings.fresh_weight
        explained = self.critic.figures.get("explained_variance")
        return 1.0 if explained is None else min(1.0, max(0.0, explained))

    def _some(self, logs: Sequence[Conversation], iteration: int) -> list[Conversation]:
        """Logged conversations whose states join the collected ones: where the policy does not come by itself yet."""
        generator = torch.Generator().manual_seed(self.tools.seed_of(f"logs-{iteration}"))
        order = torch.randperm(len(logs), generator=generator).tolist()
        return [logs[index] for index in order[: self.settings.log_conversations]]

    def _score(self, states: Sequence[RoundState]) -> list[list[float]]:
        trees = [state.tree for state in states]
        return self.critic.score(trees, rows=self._rows, on_batch=self._passed)

    def _passed(self, conversations: int, tokens: int) -> None:
        self.tools.progress.done += conversations
        self.tools.moved()

    def _staged(self, stage: str, total: int) -> None:
        release_memory()
        progress = self.tools.progress
        if stage == "sample" and progress.unit:
            progress.round = min(progress.round + 1, self.settings.rounds - 1)
        progress.step(total, _UNITS.get(stage, "batches"))
        self.tools.moved()
