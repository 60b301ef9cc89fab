"""WarmStart: behaviour cloning of logged agent messages: the first policy speaks like the people it learnt from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_iterppo.data.turns import TurnBatch
from lightning_iterppo.fitted_module import FittedModule
from lightning_iterppo.functional import masked_mean
from lightning_iterppo.micro_batches import MicroBatches, MicroBatchSize
from lightning_iterppo.models.language_model import POLICY, LanguageModel
from lightning_iterppo.optimization import adamw
from lightning_iterppo.trainer import over_processes, world_size


class WarmStart(FittedModule):
    """Maximises the log-probability of the agent's messages, end token included, in their conversations.

    Args:
        model: the language model; its ``policy`` variant is trained.
        learning_rate: AdamW's.
        warmup_steps: optimiser steps until the full learning rate.
        weight_decay: AdamW's.
        micro_batch: rows of a step that are computed at a time, see `MicroBatches`.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        learning_rate: float = 1e-3,
        warmup_steps: int = 10,
        weight_decay: float = 0.0,
        micro_batch: MicroBatchSize = None,
    ) -> None:
        super().__init__(model)
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.micro_batches = MicroBatches(micro_batch)
        self.trained_tokens = 0
        self._held_out = torch.zeros(2, dtype=torch.float64)  # negative log-likelihood and tokens

    def setup(self, stage: str) -> None:
        """Makes the policy's variant the one that trains, before a strategy wraps the module."""
        self.model.activate(POLICY)

    def loss(self, batch: TurnBatch) -> Tensor:
        """Mean negative log-likelihood of the action tokens that count, in nats a token; a scalar."""
        logprobs, _, _ = self.model.response_logprobs(self.model.hidden(batch.tree), batch.tree)
        return -masked_mean(logprobs, batch.tree.counted_mask)

    def training_step(self, batch: TurnBatch, batch_idx: int) -> Tensor:
        """This process's part of a batch's negative log-likelihood: the mean over processes is the batch's."""
        tokens = over_processes(batch.tree.counted_mask.sum(), self.model.device).clamp(min=1)
        own = self.micro_batches.total(
            self, batch, lambda group: self.loss(group) * (group.tree.counted_mask.sum() / tokens)
        )
        self.trained_tokens += batch.tree.counted_tokens
        whole = over_processes(own.detach(), self.model.device)
        self.log("warm_start/loss", whole, batch_size=len(batch.returns))
        return world_size() * own

    def validation_step(self, batch: TurnBatch, batch_idx: int) -> None:
        """The same on held-out conversations."""
        tokens = batch.tree.counted_mask.sum()
        own = torch.stack([self.loss(batch) * tokens, tokens]).to("cpu", torch.float64)
        self._held_out = self._held_out + own  # a new tensor: this one may be of inference mode

    def on_validation_epoch_end(self) -> None:
        """Logs the mean over all held-out tokens of all processes."""
        total, tokens = over_processes(self._held_out, self.model.device)
        self.log("warm_start/held_out_loss", (total / tokens).float())
        self._held_out = torch.zeros_like(self._held_out)

    def configure_optimizers(self) -> Any:
        """AdamW on the policy's variant."""
        return adamw(
            [(self.model.trainable_parameters(), self.learning_rate)],
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            decay_steps=int(self.trainer.estimated_stepping_batches),
        )
