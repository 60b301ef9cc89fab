"""QCritic: the response-level value Q(s, a) of a suggestion, fitted on logged conversations.

One pass of a conversation scores all its turns: the value of a turn is read at the last token of its suggestion, where
the model has seen the whole state and the whole action and nothing after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_iterppo.critic_head import ActionFeatures, solve_head
from lightning_iterppo.critic_question import Asked, ask
from lightning_iterppo.data.turns import TurnBatch
from lightning_iterppo.fitted_module import FittedModule
from lightning_iterppo.functional.calibration import calibration_figures
from lightning_iterppo.functional.objectives import CriticLoss, make_objective
from lightning_iterppo.micro_batches import MicroBatches, MicroBatchSize
from lightning_iterppo.models.heads import ScalarHead
from lightning_iterppo.models.language_model import CRITIC, LanguageModel
from lightning_iterppo.models.modes import evaluating
from lightning_iterppo.models.sharding import put
from lightning_iterppo.models.tree import TokenTree, TreeBatch, collate_trees
from lightning_iterppo.optimization import adamw
from lightning_iterppo.trainer import gather_lists, over_processes, world_size

Pooling = Literal["last", "mean"]


class _Reading(NamedTuple):
    """Conversations, with the question if there is one, and their hidden states, (rows, tokens, hidden)."""

    asked: Asked
    hidden: Tensor


class QCritic(FittedModule):
    """Q(s, a) = E[Σ γ^i r_{t+i} | s_t = s, a_t = a, then π_k], by default as the probability of a binary outcome.

    The targets are Monte Carlo returns, and the expected return is every loss's minimiser. ``bce``, binary
    cross-entropy, is for returns in [0, 1] (Jiang et al. 2025, section 4); ``mse`` and ``hl-gauss`` are for outcomes
    that are amounts (`lightning_iterppo.functional.objectives`). The trunk is the language model's ``critic`` variant:
    start it from the policy's with ``model.copy("policy", "critic")``; one made from nothing fails on a few hundred
    conversations.

    After a fit with validation the module holds the weights of its best epoch, by held-out loss.

    Args:
        model: the language model; its ``critic`` variant is trained.
        learning_rate: of the trunk's variant.
        head_learning_rate: of the scalar head, which starts from zero and can learn faster.
        weight_decay: AdamW's; more keeps the critic of few conversations from learning them by heart.
        warmup_steps: optimiser steps until the full learning rate.
        loss: ``bce``, ``mse`` or ``hl-gauss``.
        low: the least return there can be; for ``mse`` about the least.
        high: the greatest.
        pooling: what of the hidden states the head sees: ``last``, that of the action's last token, or ``mean``, the
            mean over all tokens of the conversation up to there. The mean says better how a long conversation goes; of
            two responses to one state it shows little, since they are a few of its tokens.
        layer: whose hidden states, from 1; None is the last one's. Layers above it are not computed. What a
            conversation is about stands clearer in the middle of a language model than at its end, which has the next
            token in mind.
        question: tokens that are read after every action, as a branch that nothing else sees. The head then sees the
            last of them, or the mean over them beside that over the conversation, each normalised, added. None asks
            nothing.
        micro_batch: rows of a step that are computed at a time, see `MicroBatches`.

    Raises:
        ValueError: no such loss or pooling, or a range that does not suit the loss.
        ConfigError: the model has no such layer, or is of a kind that cannot stop after one.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        learning_rate: float = 5e-4,
        head_learning_rate: float = 3e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 10,
        loss: CriticLoss = "bce",
        low: float = 0.0,
        high: float = 1.0,
        pooling: Pooling = "last",
        layer: int | None = None,
        question: Sequence[int] | None = None,
        micro_batch: MicroBatchSize = None,
    ) -> None:
        super().__init__(model)
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, found {pooling!r}")
        model.check_layer(layer)
        self.objective = make_objective(loss, low, high)
        self.pooling = pooling
        self.layer = layer
        self.question = tuple(question or ())
        self.head = ScalarHead(model.hidden_size, self.objective.outputs)
        #: V(s) at the last token before an action, when `fit_states` has solved for it.
        self.state_head: ScalarHead | None = None
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.micro_batches = MicroBatches(micro_batch)
        self._held_out: list[Tensor] = []  # values, returns and losses of some held-out turns, (3, n)
        self.figures: dict[str, float | None] = {}
        self._newest: dict[str, float | None] | None = None
        self._best: tuple[float, dict[str, float | None], dict[str, Tensor], dict[str, Tensor]] | None = None

    # -- the value -----------------------------------------------------------------------------------------------

    def forward(self, batch: TreeBatch) -> Tensor:
        """What the head says of every action of the batch, (batch,): for ``bce`` the logits of Q.

        ``hl-gauss`` has one dimension more. ``critic.objective.values`` makes it Q.
        """
        return self._outputs(self._look(batch))

    def _look(self, batch: TreeBatch, *, states: bool = False) -> _Reading:
        asked = ask(batch, self.question, self.model.pad_token_id, states=states)
        return _Reading(asked, self.model.hidden(asked.batch, layers=self.layer))

    def _outputs(self, read: _Reading) -> Tensor:
        outputs: Tensor = self.head(self._seen(read))
        return outputs

    def _seen(self, read: _Reading) -> Tensor:
        """What the head sees of every action, (batch, hidden)."""
        return self._pooled(read, read.asked.batch.last_positions, read.asked.after)

    def _seen_before(self, read: _Reading) -> Tensor:
        """What the head of states sees before every action, (batch, hidden)."""
        return self._pooled(read, read.asked.batch.predict_positions[:, 0], read.asked.before)

    def _pooled(self, read: _Reading, positions: Tensor, question: Tensor | None) -> Tensor:
        hidden, rows = read.hidden, read.asked.batch.action_rows
        if self.pooling == "last":
            return hidden[rows, positions if question is None else question[:, -1]]
        means = _means(hidden, read.asked.batch, positions)
        if question is None:
            return means
        asked = hidden[rows[:, None], question].float().mean(1)
        return F.layer_norm(means, means.shape[-1:]) + F.layer_norm(asked, means.shape[-1:])

    @torch.no_grad()
    def score(
        self, trees: Sequence[TokenTree], *, rows: int = 8, on_batch: Callable[[int, int], None] | None = None
    ) -> list[list[float]]:
        """Q of every action of every tree, in the order of ``tree.actions``.

        Args:
            trees: conversations, with any responses added to their states.
            rows: trees a forward pass.
            on_batch: called with the number of trees and of tokens of each pass.
        """
        return [[q for q, _ in scores] for scores in self.score_states(trees, rows=rows, on_batch=on_batch)]

    @torch.no_grad()
    def score_states(
        self, trees: Sequence[TokenTree], *, rows: int = 8, on_batch: Callable[[int, int], None] | None = None
    ) -> list[list[tuple[float, float | None]]]:
        """Q of every action as `score` gives it, and V of the state that it was taken in; None before `fit_states`."""
        found: list[list[tuple[float, float | None]]] = [[] for _ in trees]
        order = sorted(range(len(trees)), key=lambda index: len(trees[index]))
        with evaluating(self), self.model.using(CRITIC), self.model.whole():
            for start in range(0, len(order), rows):
                chosen = order[start : start + rows]
                batch = collate_trees([trees[i] for i in chosen], self.model.pad_token_id).to(self.model.device)
                read = self._look(batch, states=self.state_head is not None)
                values = iter(self.objective.values(self._outputs(read)).tolist())
                states = iter(self._values_of_states(read))
                for index in chosen:
                    found[index] = [(next(values), next(states)) for _ in trees[index].actions]
                if on_batch is not None:
                    on_batch(len(chosen), sum(len(trees[i]) for i in chosen))
        return found

    def _values_of_states(self, read: _Reading) -> list[float | None]:
        if self.state_head is None:
            return [None] * len(read.asked.batch.action_rows)
        outputs: Tensor = self.state_head(self._seen_before(read))
        return list(self.objective.values(outputs).tolist())

    # -- the head alone -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def features(self, batches: Iterable[TurnBatch], *, states: bool = False) -> ActionFeatures:
        """What the head sees of every action of some batches, stand-ins left out.

        Args:
            batches: of logged conversations.
            states: whether what the head of states sees, before each action, is wanted too.

        Raises:
            ValueError: there is no batch.
        """
        parts: list[ActionFeatures] = []
        with evaluating(self), self.model.using(CRITIC), self.model.whole():
            for batch in batches:
                tree = batch.tree.to(self.model.device)
                read = self._look(tree, states=states)
                values = self.head.seen(self._seen(read)).cpu()
                before = self.head.seen(self._seen_before(read)).cpu() if states else None
                part = ActionFeatures(values, batch.returns.cpu(), tree.action_rows.cpu(), before)
                parts.append(part.where(tree.counted.cpu()))
        return ActionFeatures.join(parts)

    @torch.no_grad()
    def fit_head(
        self, newest: ActionFeatures, past: ActionFeatures | None = None, *, prior: float = 3.0, trust: float = 0.5
    ) -> None:
        """Takes the head that `solve_head` finds.

        A linear head on the warm-started trunk already tells good actions from bad ones, and its optimum costs one pass
        over the conversations; gradient steps on a few hundred of them stay far from it. Tuning the trunk afterwards
        starts from here (Kumar et al. 2022, "Fine-tuning can distort pretrained features").

        Args:
            newest: of the conversations that π_k made.
            past: of all others.
            prior: precision of the prior on the head's weights; higher keeps them smaller.
            trust: what the weights are multiplied with, from 0 (the mean for every action) to 1 (the optimum).

        Raises:
            ValueError: the loss is ``hl-gauss``, whose head has no such optimum.
        """
        weight, bias = solve_head(newest, past, prior=prior, trust=trust, objective=self.objective)
        put(self.head.linear.weight, weight[None])
        put(self.head.linear.bias, bias[None])

    @torch.no_grad()
    def fit_states(self, features: ActionFeatures, *, prior: float = 3.0, trust: float = 0.5) -> None:
        """Solves for V(s) = E[G_t | s_t = s] under those who wrote the logs, on the trunk as it is.

        What an action was worth is then Q(s, a) − V(s): how the end became likelier, or less, by it.

        Args:
            features: what `features` gives with ``states``.
            prior: as for `fit_head`.
            trust: as for `fit_head`.

        Raises:
            ValueError: the loss is ``hl-gauss``, whose head has no such optimum, or the features are without states.
        """
        if features.states is None:
            raise ValueError("fit_states needs the features of states: ask features(…, states=True) for them")
        states = ActionFeatures(features.states, features.returns, features.conversations)
        weight, bias = solve_head(states, prior=prior, trust=trust, objective=self.objective)
        head = ScalarHead(self.model.hidden_size).to(self.head.linear.weight.device)
        head.linear.weight[0] = weight
        head.linear.bias[0] = bias
        self.state_head = head.requires_grad_(False)

    # -- fitting -------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Makes the critic's variant the one that trains, before a strategy wraps the module."""
        self.model.activate(CRITIC)

    def on_fit_start(self) -> None:
        """Forgets the best epoch of an earlier fit, and what it measured."""
        self._best = None
        self.figures = {}

    def training_step(self, batch: TurnBatch, batch_idx: int) -> Tensor:
        """This process's part of the mean loss between Q and the observed returns: its mean over processes is that."""
        # Over the number of actions and not over their weights' sum: a batch of unlikely ones shall not be scaled up.
        actions = over_processes(batch.tree.counted.sum(), self.model.device)
        own = self.micro_batches.total(self, batch, lambda group: self._loss(group) / actions)
        whole = over_processes(own.detach(), self.model.device)
        self.log("critic/train_loss", whole, batch_size=len(batch.returns))
        return world_size() * own

    def _loss(self, batch: TurnBatch) -> Tensor:
        """The sum over actions."""
        losses = self.objective.losses(self(batch.tree), batch.returns)
        return (losses * batch.weights * batch.tree.counted).sum()

    def validation_step(self, batch: TurnBatch, batch_idx: int) -> None:
        """Collects predictions on held-out conversations."""
        outputs = self(batch.tree).float()
        losses = self.objective.losses(outputs, batch.returns)
        found = torch.stack([self.objective.values(outputs), batch.returns, losses])
        self._held_out.append(found[:, batch.tree.counted].cpu())

    def on_validation_epoch_end(self) -> None:
        """Logs the held-out figures, of all processes."""
        values, returns, losses = torch.cat(gather_lists(self._held_out), dim=1)
        self._held_out = []
        figures = calibration_figures(values, returns, losses, probability=self.objective.probability)
        for name, figure in figures.items():
            if figure is not None:
                self.log(f"critic/{name}", figure)
        if self.trainer.sanity_checking:
            return
        if self.trainer.state.fn == "validate":
            self.figures = figures
            return
        self._newest = figures

    def on_validation_end(self) -> None:
        """Remembers the weights when they are the best so far: in shards again, where they are divided.

        Held-out conversations that all ended alike choose nothing: best would be what has forgotten how others end.
        """
        super().on_validation_end()
        figures, self._newest = self._newest, None
        if figures is None:
            return
        loss = figures["loss"]
        assert loss is not None, "a mean of at least one turn"
        alike = figures["auroc" if self.objective.probability else "explained_variance"] is None
        if self._best is None or alike or loss < self._best[0]:
            weights = {key: tensor.clone() for key, tensor in self.model.variant_tensors(CRITIC).items()}
            head = {key: tensor.clone() for key, tensor in self.head.tensors().items()}
            self._best = (loss, figures, weights, head)

    def on_fit_end(self) -> None:
        """Goes back to the best epoch."""
        if self._best is None:
            return
        _, self.figures, weights, head = self._best
        for key, tensor in self.model.variant_tensors(CRITIC).items():
            put(tensor, weights[key])
        for key, tensor in self.head.tensors().items():
            put(tensor, head[key])
        self._best = None

    def configure_optimizers(self) -> Any:
        """AdamW on the critic's variant and the head."""
        return adamw(
            [
                (self.model.trainable_parameters(), self.learning_rate),
                (self.head.parameters(), self.head_learning_rate),
            ],
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            decay_steps=int(self.trainer.estimated_stepping_batches),
        )


def _means(hidden: Tensor, batch: TreeBatch, positions: Tensor) -> Tensor:
    """For every action the mean hidden state of what its position may look at, (batch, hidden) in float32."""
    rows = batch.action_rows
    if batch.attention_mask is None:
        seen = torch.arange(hidden.shape[1], device=hidden.device) <= positions[:, None]
    else:
        seen = batch.attention_mask[rows, 0, positions]
    shares = seen / seen.sum(1, keepdim=True)
    with torch.autocast(hidden.device.type, enabled=False):
        # A product a row: the hidden states of a row for each of its actions would be many times the batch.
        parts = torch.split(shares, torch.bincount(rows, minlength=len(hidden)).tolist())
        return torch.cat([part @ row.float() for part, row in zip(parts, hidden, strict=True)])
