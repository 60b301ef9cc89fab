"""Samples of one round of improvement: (state, response, reward), as trees and as batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_iterppo.models.tree import TokenTree, TreeBatch, collate_trees


@dataclass(slots=True)
class ScoredTree:
    """A tree whose responses have rewards; every list has one entry a response, in the order of ``tree.actions``.

    Args:
        tree: states and responses.
        rewards: what each response is worth: Q(s, a) of a fresh one, or the observed return of a logged one.
        baselines: the value of each response's state, V(s), to subtract from the reward.
        fresh: true for a response that the policy in training just sampled, false for a logged action, which the
            anchor π_k or an earlier policy sampled.
        log_ratios: of a logged action, log π_k - log μ with μ the policy that sampled it; 0 for all others. Empty is 0
            for every response.
    """

    tree: TokenTree
    rewards: list[float]
    baselines: list[float]
    fresh: list[bool]
    log_ratios: list[float] = field(default_factory=list)


@dataclass(slots=True)
class PreparedTree:
    """A tree with all that PPO needs of each response's tokens, one tensor (response,) a response."""

    tree: TokenTree
    fresh: list[bool]
    old_logprobs: list[Tensor]
    old_values: list[Tensor]
    anchor_logprobs: list[Tensor]
    reference_logprobs: list[Tensor]
    advantages: list[Tensor]
    returns: list[Tensor]


@dataclass(slots=True)
class PolicyBatch:
    """Rows of trees and their samples; every tensor but ``fresh`` (batch,) is (batch, response)."""

    tree: TreeBatch
    fresh: Tensor
    old_logprobs: Tensor
    old_values: Tensor
    anchor_logprobs: Tensor
    reference_logprobs: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, start: int, stop: int) -> PolicyBatch:
        """Some of the rows with their samples."""
        own = self.tree.responses(start, stop)
        return PolicyBatch(
            tree=self.tree.rows(start, stop),
            fresh=self.fresh[own],
            old_logprobs=self.old_logprobs[own],
            old_values=self.old_values[own],
            anchor_logprobs=self.anchor_logprobs[own],
            reference_logprobs=self.reference_logprobs[own],
            advantages=self.advantages[own],
            returns=self.returns[own],
        )


def collate_samples(items: Sequence[PreparedTree], pad_token_id: int, *, stand_ins: int = 0) -> PolicyBatch:
    """One batch of prepared trees, of which the last ``stand_ins`` count nothing."""

    def padded(name: str) -> Tensor:
        parts: list[Tensor] = [tensor for item in items for tensor in getattr(item, name)]
        return pad_sequence(parts, batch_first=True)

    return PolicyBatch(
        tree=collate_trees([item.tree for item in items], pad_token_id, stand_ins=stand_ins),
        fresh=torch.tensor([flag for item in items for flag in item.fresh]),
        old_logprobs=padded("old_logprobs"),
        old_values=padded("old_values"),
        anchor_logprobs=padded("anchor_logprobs"),
        reference_logprobs=padded("reference_logprobs"),
        advantages=padded("advantages"),
        returns=padded("returns"),
    )
