"""PPOPolicy: token-level PPO on the single-turn problem (state, response, reward).

It knows nothing of conversations, critics or customers: a reward comes with each sample, wherever it was made. That is
the reduction: with the reward Q^{π_k}(s, a), one improvement of this single-turn problem is one policy-improvement step
of the multi-turn one (Jiang et al. 2025, theorem 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_iterppo.data.samples import PolicyBatch, PreparedTree, ScoredTree
from lightning_iterppo.fitted_module import FittedModule
from lightning_iterppo.functional import clipped_policy_loss, clipped_value_loss, gae, kl_k2, kl_k3, masked_mean
from lightning_iterppo.micro_batches import MicroBatches, MicroBatchSize
from lightning_iterppo.models.heads import ScalarHead
from lightning_iterppo.models.language_model import ANCHOR, POLICY, REFERENCE, LanguageModel
from lightning_iterppo.models.modes import evaluating
from lightning_iterppo.models.tree import TreeBatch, collate_trees
from lightning_iterppo.optimization import adamw
from lightning_iterppo.trainer import over_processes, world_size

LoggedRatio = Literal["anchor", "round"]


class _Read(NamedTuple):
    """Of every response's tokens, (batch, response): the policy's, and which of them are there."""

    logprobs: Tensor
    entropies: Tensor
    values: Tensor
    mask: Tensor


class PPOPolicy(FittedModule):
    """Clipped PPO over the tokens of single responses, in a KL trust region around the anchor π_k.

    The reward of a response, less the baseline of its state, sits on its last token; a value head on the same trunk
    predicts it from every prefix, and GAE turns both into token advantages. The ratio is against the policy that
    sampled a response: the round's sampler for a fresh one, the anchor for a logged one (see ``logged_ratio``). All
    log-probabilities are
    exact ones at temperature 1: responses must be sampled at temperature 1 with top-p 1, else the ratio is not a ratio
    of the distributions that are compared.

    Args:
        model: the language model; its ``policy`` variant is trained.
        learning_rate: of the policy.
        value_learning_rate: of the value head.
        clip: ε of the ratio; more lets one round move further.
        value_clip: ε of the value head's step.
        gae_lambda: λ; 1 trusts the response's reward alone, less leans on the value head.
        kl_coefficient: weight of KL(π ‖ π_k) in the loss; more keeps a step smaller. May be changed while training.
        kl_reference_coefficient: weight of KL(π ‖ reference); 0 does not compute it.
        kl_stop: stops the improvement when a response has moved this far from π_k on average, in nats; None never.
        value_coefficient: weight of the value loss.
        entropy_coefficient: weight of an entropy bonus; keeps a policy from closing early.
        whiten: scale a round's advantages to mean 0 and standard deviation 1.
        fresh_weight: factor on the advantages of fresh responses beside those of logged actions. A fresh response is as
            good as the Q that judges it, and a policy finds what a Q overrates. May be changed between rounds.
        logged_ratio: what the ratio of a logged action is clipped around. ``anchor``: π_k, so that a whole improvement
            moves the probability of its tokens by ``clip`` at most. ``round``: the policy at the start of the round,
            as for a fresh response, so that every round moves it further. What was better than its baseline then
            counts in full and what was worse with min(1, π_round(a|s) / μ(a|s)), μ being the policy that took it, so
            that what has become unlikely is not pushed down for ever (Le Roux et al. 2025, "Tapered off-policy
            REINFORCE").
        whiten_floor: a standard deviation below this, in units of the reward, is taken for this: when all responses are
            nearly equally good, what is left of the differences is the critic's noise, which must not be scaled up.
        warmup_steps: optimiser steps until the full learning rate.
        weight_decay: AdamW's.
        adam_epsilon: AdamW's ε. Where all responses are equally good the gradient is noise, and AdamW takes noise in
            full steps unless it is far below ε; 1e-5 is usual for PPO on all weights (Huang et al. 2022, "The 37
            implementation details of proximal policy optimization"). An adapter's gradients are about 5e-5 themselves.
        micro_batch: rows of a step that are computed at a time, see `MicroBatches`.

    Raises:
        ValueError: a coefficient is out of range.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        learning_rate: float = 3e-4,
        value_learning_rate: float = 1e-3,
        clip: float = 0.2,
        value_clip: float = 0.5,
        gae_lambda: float = 0.95,
        kl_coefficient: float = 0.05,
        kl_reference_coefficient: float = 0.0,
        kl_stop: float | None = None,
        value_coefficient: float = 0.5,
        entropy_coefficient: float = 0.0,
        whiten: bool = True,
        whiten_floor: float = 0.1,
        fresh_weight: float = 1.0,
        logged_ratio: LoggedRatio = "anchor",
        warmup_steps: int = 4,
        weight_decay: float = 0.0,
        adam_epsilon: float = 1e-8,
        micro_batch: MicroBatchSize = None,
    ) -> None:
        super().__init__(model)
        for name, value in (("clip", clip), ("value_clip", value_clip), ("learning_rate", learning_rate)):
            if value <= 0:
                raise ValueError(f"{name} must be above 0, found {value}")
        if not 0 <= gae_lambda <= 1:
            raise ValueError(f"gae_lambda must be in [0, 1], found {gae_lambda}")
        self.value_head = ScalarHead(model.hidden_size)
        self.learning_rate = learning_rate
        self.value_learning_rate = value_learning_rate
        self.clip = clip
        self.value_clip = value_clip
        self.gae_lambda = gae_lambda
        self.kl_coefficient = kl_coefficient
        self.kl_reference_coefficient = kl_reference_coefficient
        self.kl_stop = kl_stop
        self.value_coefficient = value_coefficient
        self.entropy_coefficient = entropy_coefficient
        self.whiten = whiten
        self.whiten_floor = whiten_floor
        self.fresh_weight = fresh_weight
        self.logged_ratio = logged_ratio
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.adam_epsilon = adam_epsilon
        self.micro_batches = MicroBatches(micro_batch)
        self.figures: dict[str, float | None] = {}
        self.stopped_on_kl = False
        self.trained_tokens = 0
        self._clipped: list[float] = []

    # -- a round's samples ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(
        self,
        trees: Sequence[ScoredTree],
        *,
        rows: int = 8,
        at_anchor: bool = False,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> list[PreparedTree]:
        """Everything that stays fixed while a round is trained on: log-probabilities, values, advantages.

        Every process prepares trees of its own. What is of the round is of all of theirs: how advantages are whitened,
        and how the round is measured on its fresh responses, which the policy just sampled. ``figures`` then holds
        ``kl_old`` and ``kl_reference`` (nats a response), ``entropy`` (nats a token) and ``reward_mean``.

        Args:
            trees: this process's, what `ScoredTree` says; there may be none where others have some.
            rows: trees a forward pass.
            at_anchor: the policy still is π_k, so that a pass is saved.
            on_batch: called with the number of trees and of tokens of each pass of the policy as it is.

        Returns:
            The trees, in their order.

        Raises:
            ValueError: no process has a tree.
        """
        if not self._total(torch.tensor(len(trees))):
            raise ValueError("a round needs at least one state")
        with_reference = self.kl_reference_coefficient > 0
        found: dict[int, PreparedTree] = {}
        sums = torch.zeros(5, dtype=torch.float64)  # fresh responses, their tokens, KL to anchor, to reference, entropy
        rewards = 0.0
        order = sorted(range(len(trees)), key=lambda index: len(trees[index].tree))
        indexes = [order[start : start + rows] for start in range(0, len(order), rows)]
        groups = [[trees[index] for index in group] for group in indexes]
        # A variant after the other: weights in shards are put together once for each.
        with evaluating(self):
            read = self._read(groups, on_batch)
            anchors = [each.logprobs for each in read] if at_anchor else self._logprobs(ANCHOR, groups)
            references = self._logprobs(REFERENCE, groups) if with_reference else [None] * len(groups)
        for own, chosen, each, anchor, known in zip(indexes, groups, read, anchors, references, strict=True):
            logprobs, values, mask = each.logprobs, each.values, each.mask
            reference = torch.zeros_like(anchor) if known is None else known
            fresh = torch.tensor([flag for item in chosen for flag in item.fresh], device=mask.device)
            reward = torch.tensor(
                [r - b for item in chosen for r, b in zip(item.rewards, item.baselines, strict=True)],
                dtype=values.dtype,
                device=mask.device,
            )
            last = mask.sum(dim=1) - 1
            token_rewards = torch.zeros_like(values)
            token_rewards[torch.arange(len(last), device=mask.device), last] = reward  # (batch, response)
            advantages, returns = gae(token_rewards, values, mask, gamma=1.0, lam=self.gae_lambda)
            old = torch.where(fresh[:, None], logprobs, anchor)
            if self.logged_ratio == "round":
                old = logprobs
            drawn = mask & fresh[:, None]
            sums += torch.stack(
                [
                    fresh.sum(),
                    drawn.sum(),
                    (kl_k3(logprobs, anchor) * drawn).sum(),
                    (kl_k3(logprobs, reference) * drawn).sum(),
                    (each.entropies * drawn).sum(),
                ]
            ).to("cpu", torch.float64)
            rewards += sum(r for item in chosen for r, f in zip(item.rewards, item.fresh, strict=True) if f)
            pieces = _by_tree(chosen, mask, old, values, anchor, reference, advantages, returns)
            found.update(zip(own, pieces, strict=True))
        prepared = [found[index] for index in range(len(trees))]
        if self.whiten:
            self._whiten(prepared)
        for item, tree in zip(prepared, trees, strict=True):
            self._weigh(item, tree.log_ratios)
        self._measure(torch.cat([sums, torch.tensor([rewards], dtype=torch.float64)]), with_reference)
        return prepared

    def _batch(self, chosen: Sequence[ScoredTree]) -> TreeBatch:
        return collate_trees([item.tree for item in chosen], self.model.pad_token_id).to(self.model.device)

    def _read(self, groups: Sequence[Sequence[ScoredTree]], on_batch: Callable[[int, int], None] | None) -> list[_Read]:
        """What the policy as it is, and the value head, say of groups of trees, a pass each."""
        found = []
        with self.model.using(POLICY), self.model.whole():
            for chosen in groups:
                batch = self._batch(chosen)
                logprobs, entropies, predicting = self.model.response_logprobs(self.model.hidden(batch), batch)
                found.append(_Read(logprobs, entropies, self.value_head(predicting), batch.action_mask))
                if on_batch is not None:
                    on_batch(len(chosen), sum(len(item.tree) for item in chosen))
        return found

    def _logprobs(self, variant: str, groups: Sequence[Sequence[ScoredTree]]) -> list[Tensor]:
        with self.model.using(variant), self.model.whole():
            batches = map(self._batch, groups)
            return [self.model.response_logprobs(self.model.hidden(batch), batch)[0] for batch in batches]

    def _whiten(self, prepared: list[PreparedTree]) -> None:
        """Scales advantages over the whole round and all processes."""
        flat = torch.cat([torch.zeros(0), *(tensor for item in prepared for tensor in item.advantages)]).double()
        totals = self._total(torch.stack([torch.ones_like(flat).sum(), flat.sum(), (flat**2).sum()]))
        mean = totals[1] / totals[0]
        scale = (totals[2] / totals[0] - mean**2).clamp(min=0).sqrt().clamp(min=self.whiten_floor)
        for item in prepared:
            item.advantages = [((tensor - mean) / scale).to(tensor.dtype) for tensor in item.advantages]

    def _weigh(self, item: PreparedTree, log_ratios: Sequence[float]) -> None:
        """How much each response counts; after whitening, which would make something of what counts nothing."""
        for number, fresh in enumerate(item.fresh):
            advantages = item.advantages[number]
            if fresh:
                item.advantages[number] = self.fresh_weight * advantages
            else:
                ratio = log_ratios[number] if log_ratios else 0.0
                if self.logged_ratio == "round":
                    ratio += float((item.old_logprobs[number] - item.anchor_logprobs[number]).sum())
                item.advantages[number] = torch.where(advantages < 0, math.exp(min(0.0, ratio)), 1.0) * advantages

    def _total(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        return over_processes(values, self.model.device)

    def _measure(self, sums: Tensor, with_reference: bool) -> None:
        responses, tokens, anchor, reference, entropy, reward = self._total(sums).tolist()
        if responses == 0:
            return
        self.figures["kl_old"] = anchor / responses
        self.figures["kl_reference"] = reference / responses if with_reference else None
        self.figures["entropy"] = entropy / tokens
        self.figures["reward_mean"] = reward / responses
        if self.kl_stop is not None and anchor / responses > self.kl_stop:
            self.stopped_on_kl = True

    # -- training ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Makes the policy's variant the one that trains, before a strategy wraps the module."""
        self.model.activate(POLICY)

    def on_fit_start(self) -> None:
        """A new improvement: π_k is the policy as it is now, and nothing is measured yet."""
        self.model.copy(POLICY, ANCHOR)
        self.stopped_on_kl = False
        self.figures = {}
        self.trained_tokens = 0
        self._clipped = []

    def on_train_batch_start(self, batch: PolicyBatch, batch_idx: int) -> int | None:
        """Ends the improvement when the round began too far from π_k."""
        if self.stopped_on_kl:
            self.trainer.should_stop = True
            return -1
        return None

    def training_step(self, batch: PolicyBatch, batch_idx: int) -> Tensor:
        """This process's part of the PPO loss of a batch: the mean over processes is the batch's."""
        tokens = self._total(batch.tree.counted_mask.sum()).clamp(min=1)
        own = self.micro_batches.total(
            self, batch, lambda group: self._terms(group) * (group.tree.counted_mask.sum() / tokens)
        )
        whole = self._total(own.detach())
        _, value_loss, kl_anchor, _, _, clipped = whole
        samples = batch.tree.action_mask.shape[0]
        self.log("policy/loss", self._weighted(whole), batch_size=samples)
        self.log("policy/value_loss", value_loss, batch_size=samples)
        self.log("policy/kl_token", kl_anchor, batch_size=samples)
        self.log("policy/clip_fraction", clipped, batch_size=samples)
        self._clipped.append(float(clipped))
        self.trained_tokens += batch.tree.counted_tokens
        return world_size() * self._weighted(own)

    def _weighted(self, terms: Tensor) -> Tensor:
        """The loss, from what `_terms` gives."""
        policy_loss, value_loss, kl_anchor, kl_reference, entropy, _ = terms
        loss: Tensor = policy_loss + self.value_coefficient * value_loss + self.kl_coefficient * kl_anchor
        if self.kl_reference_coefficient > 0:
            loss = loss + self.kl_reference_coefficient * kl_reference
        if self.entropy_coefficient > 0:
            loss = loss - self.entropy_coefficient * entropy
        return loss

    def _terms(self, batch: PolicyBatch) -> Tensor:
        """Means over tokens, (6,): losses of policy and value head, KL to anchor and reference, entropy, what clips."""
        tree, mask = batch.tree, batch.tree.counted_mask
        logprobs, entropies, predicting = self.model.response_logprobs(
            self.model.hidden(tree), tree, entropy_gradient=self.entropy_coefficient > 0
        )
        policy_loss, clipped = clipped_policy_loss(logprobs, batch.old_logprobs, batch.advantages, mask, clip=self.clip)
        values = self.value_head(predicting)
        value_loss = clipped_value_loss(values, batch.old_values, batch.returns, mask, clip=self.value_clip)
        kl_anchor = masked_mean(kl_k2(logprobs, batch.anchor_logprobs), mask)
        kl_reference = torch.zeros_like(kl_anchor)
        if self.kl_reference_coefficient > 0:
            kl_reference = masked_mean(kl_k2(logprobs, batch.reference_logprobs), mask)
        return torch.stack([policy_loss, value_loss, kl_anchor, kl_reference, masked_mean(entropies, mask), clipped])

    def on_train_epoch_end(self) -> None:
        """The share of clipped tokens over the improvement so far."""
        if self._clipped:
            self.figures["clip_fraction"] = sum(self._clipped) / len(self._clipped)

    def configure_optimizers(self) -> Any:
        """AdamW on the policy's variant and the value head."""
        return adamw(
            [
                (self.model.trainable_parameters(), self.learning_rate),
                (self.value_head.parameters(), self.value_learning_rate),
            ],
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            epsilon=self.adam_epsilon,
        )


def _by_tree(chosen: Sequence[ScoredTree], mask: Tensor, *tensors: Tensor) -> list[PreparedTree]:
    """Cuts (batch, response) tensors into one piece a response, and the pieces into trees; on the host.

    Each piece has memory of its own: a view would be sent to other processes with all that it is a view of.
    """
    lengths = mask.sum(dim=1).tolist()
    pieces = [[row[:length].clone() for row, length in zip(tensor.cpu(), lengths, strict=True)] for tensor in tensors]
    found, start = [], 0
    for item in chosen:
        stop = start + len(item.fresh)
        old, values, anchor, reference, advantages, returns = (piece[start:stop] for piece in pieces)
        found.append(PreparedTree(item.tree, item.fresh, old, values, anchor, reference, advantages, returns))
        start = stop
    return found
