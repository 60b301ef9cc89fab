"""The phases of an iteration, rehearsed on a model without memory: what each holds at most, and what it computes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from lightning_iterppo.config import Recipe
from lightning_iterppo.critic import Pooling, QCritic
from lightning_iterppo.data.turns import TurnBatch
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.generation.sampling import Sampling, sample_tokens
from lightning_iterppo.loading import adaptation_of, computing_of
from lightning_iterppo.micro_batches import MicroBatches
from lightning_iterppo.models.backbones import resolve_dtype
from lightning_iterppo.models.language_model import CRITIC, POLICY, VARIANTS, LanguageModel
from lightning_iterppo.models.tree import ROOT, TokenTree, TreeBatch, collate_trees
from lightning_iterppo.optimization import adamw
from lightning_iterppo.planning.dry_run import Meter, imagined_model, without_memory
from lightning_iterppo.policy import PPOPolicy
from lightning_iterppo.trainer import MIXED


@dataclass(frozen=True)
class Work:
    """What conversations are like.

    Args:
        tokens: of a whole conversation, the agent's messages included.
        turns: messages of the agent in it.
        response: tokens of one of those.
    """

    tokens: int = 256
    turns: int = 4
    response: int = 32

    def tree(self, fresh: int = 0, *, logged: bool = True) -> TokenTree:
        """A conversation with so many fresh responses to every state, and its own messages as responses or not."""
        found, parent = TokenTree(), ROOT
        for turn in range(self.turns):
            length = self.tokens * (turn + 1) // self.turns - self.tokens * turn // self.turns
            said = min(self.response, length - 1)
            state = found.add((0,) * (length - said), parent)
            for _ in range(fresh):
                found.add((0,) * self.response, state, action=True)
            parent = found.add((0,) * said, state, action=logged)
        return found.pruned()


@dataclass(frozen=True)
class Step:
    """A training step.

    ``working`` is what it holds at most beside weights, gradients and Adam's moments: activations that wait for the
    backward pass, folded weights, logits. Bytes, and floating-point operations.
    """

    gradients: int
    moments: int
    working: int
    forward: int
    backward: int


@dataclass(frozen=True)
class Reading:
    """A pass without gradients: what it holds at most beside the weights, in bytes, and floating-point operations."""

    working: int
    flops: int


@dataclass(frozen=True)
class Rehearsed:
    """What was found; None where a recipe has no such phase, or where it surely is not the largest.

    ``variant`` is one set of trained weights, ``features`` what frozen layers keep of a conversation and of one with
    its fresh responses, ``cache`` keys and values of a token. The readings are of `reading_rows` rows: ``first`` is the
    critic's over fresh responses, which computes what frozen layers make of them, ``again`` the same over the same
    rows, ``logs`` over conversations alone, ``prepare`` with log-probabilities.
    """

    weights: int
    variant: int
    trained: int
    features: tuple[int, int]
    cache: int
    spoken: Reading
    sampled: Reading
    logs: Reading
    first: Reading
    again: Reading
    prepare: Reading
    imitation: Step | None
    critic: Step | None
    policy: Step


@dataclass
class _Rows:
    """Rows of trees alone."""

    tree: TreeBatch

    def rows(self, start: int, stop: int) -> _Rows:
        return _Rows(self.tree.rows(start, stop))


class Rehearsal:
    """Rehearses a recipe.

    Args:
        config: the model's.
        recipe: everything else.
        work: what conversations are like.
        accelerator: whether it is for an accelerator, where the optimiser goes over all weights at once.

    Raises:
        ConfigError: a number does not fit the model.
    """

    def __init__(self, config: PreTrainedConfig, recipe: Recipe, work: Work, *, accelerator: bool) -> None:
        self.recipe = recipe
        self.work = work
        self.accelerator = accelerator
        with without_memory() as self._mode:
            pass
        try:
            adaptation = adaptation_of(recipe.model)
            dtype = resolve_dtype(recipe.model.dtype)
            self.model = imagined_model(config, adaptation, computing_of(recipe.model), dtype, self._mode)
        except ValueError as error:
            raise ConfigError(f"model.adaptation: {error}") from error
        mixed = MIXED.get(str(recipe.trainer.precision))
        if mixed is not None:
            self.model.precision = partial(torch.autocast, "cpu", dtype=mixed, cache_enabled=False)
        self._meter = Meter(heap=not accelerator and sys.platform.startswith("linux"))

    @property
    def reading_rows(self) -> int:
        """Rows of a pass without gradients in an improvement."""
        return max(8, self.recipe.policy.batch_conversations)

    def run(self) -> Rehearsed:
        """All phases."""
        with self._mode, self._meter:
            return self._run()

    def _run(self) -> Rehearsed:
        recipe, model, meter = self.recipe, self.model, self._meter
        policy, critic = (
            PPOPolicy(model),
            QCritic(
                model,
                layer=recipe.critic.layer,
                pooling=cast(Pooling, recipe.critic.pooling),
                question=_about_tokens(recipe.critic.question),
            ),
        )
        whole = meter.hold([*model.parameters(), *model.buffers()])
        variant = sum(_bytes(tensor) for tensor in model.variant_tensors(POLICY).values())
        weights = whole - len(VARIANTS) * variant if model.lora else whole
        imitation = None
        # A step of imitation holds no fresh responses, and is the smaller one unless it has more rows.
        if recipe.logs and recipe.warm_start.epochs:
            more = recipe.warm_start.batch_conversations > recipe.policy.batch_conversations
            imitation = self._imitation() if more else None
        model.activate(POLICY)
        samples = recipe.policy.samples_per_state
        branched = self.work.tree(samples, logged=recipe.policy.logged_reward != "none")
        plain = [self.work.tree() for _ in range(self._rows_of_critic)]
        logs = self._read(plain, critic, CRITIC)
        trees = [branched.copy() for _ in range(self.reading_rows)]
        first = self._read(trees, critic, CRITIC)
        again = self._read(trees, critic, CRITIC) if model.keeps_features else first
        return Rehearsed(
            weights=weights,
            variant=variant,
            trained=sum(_bytes(parameter) for parameter in model.trainable_parameters()),
            features=(_kept(plain[0]), _kept(trees[0])),
            cache=cache_of_a_token(model),
            spoken=self._prompts(),
            sampled=self._sampling(),
            logs=logs,
            first=first,
            again=again,
            prepare=self._prepare(trees, policy),
            imitation=imitation,
            critic=self._critic(critic) if recipe.critic.epochs else None,
            policy=self._policy(policy, branched),
        )

    @property
    def _rows_of_critic(self) -> int:
        return self.recipe.critic.batch_conversations

    # -- passes without gradients --------------------------------------------------------------------------------

    def _reading(self, work: Callable[[], Any]) -> Reading:
        meter = self._meter
        held, flops = meter.held, meter.flops
        meter.reset()
        with torch.no_grad():
            work()
        return Reading(meter.peak - held, meter.flops - flops)

    def _read(self, trees: list[TokenTree], critic: QCritic, variant: str) -> Reading:
        with self.model.using(variant):
            return self._reading(lambda: critic(collate_trees(trees, 0)))

    def _prepare(self, trees: list[TokenTree], policy: PPOPolicy) -> Reading:
        with self.model.using(POLICY):
            return self._reading(lambda: scored(self.model, collate_trees(trees, 0), policy))

    def _prompts(self) -> Reading:
        """The histories of a batch of conversations, read at once."""
        trees = [self.work.tree() for _ in range(self.recipe.loop.batch)]
        with self.model.using(POLICY):
            return self._reading(lambda: self.model.hidden(collate_trees(trees, 0)))

    def _sampling(self) -> Reading:
        """A token of every conversation of a batch, drawn from its logits; keys and values are counted apart."""
        rows, settings = self.recipe.loop.batch, self.recipe.sampling
        sampling = Sampling(settings.temperature, settings.top_p, settings.max_new_tokens)
        hidden = torch.empty(rows, self.model.hidden_size, dtype=self.model.head_weight.dtype)
        numbers = torch.zeros(rows, dtype=torch.float64)
        return self._reading(lambda: sample_tokens(self.model.logits(hidden), sampling, numbers))

    # -- steps ---------------------------------------------------------------------------------------------------

    def _imitation(self) -> Step:
        self.model.activate(POLICY)
        rows = collate_trees([self.work.tree() for _ in range(self.recipe.warm_start.batch_conversations)], 0)
        return self._step(lambda each: scored(self.model, each.tree), _Rows(rows), ())

    def _policy(self, policy: PPOPolicy, tree: TokenTree) -> Step:
        entropy = self.recipe.policy.entropy_coefficient > 0
        self.model.activate(POLICY)
        trees = [tree.copy() for _ in range(self.recipe.policy.batch_conversations)]
        rows = collate_trees(trees, 0)
        if self.model.keeps_features:
            with torch.no_grad():
                self.model.hidden(rows)

        def part(each: _Rows) -> Tensor:
            return scored(self.model, each.tree, policy, entropy=entropy)

        return self._step(part, _Rows(rows), policy.value_head.parameters())

    def _critic(self, critic: QCritic) -> Step:
        self.model.activate(CRITIC)
        rows = collate_trees([self.work.tree() for _ in range(self._rows_of_critic)], 0)
        if self.model.keeps_features:
            with torch.no_grad():
                critic(rows)
        returns = torch.zeros(len(rows.action_rows))
        batch = TurnBatch(rows, returns, torch.ones_like(returns))
        found = self._step(critic._loss, batch, critic.head.parameters())
        self.model.activate(POLICY)
        return found

    def _step(self, part: Callable[[Any], Tensor], batch: Any, head: Iterable[nn.Parameter]) -> Step:
        meter, recipe = self._meter, self.recipe
        groups = [(self.model.trainable_parameters(), 1e-4), (list(head), 1e-4)]
        parameters = [parameter for group, _ in groups for parameter in group]
        before = meter.held
        optimizer = adamw(groups, warmup_steps=1)["optimizer"]
        for group in optimizer.param_groups:
            group["foreach"] = True  # all weights in one operation: on an accelerator the default
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        gradients = meter.held - before
        meter.reset()
        optimizer.step()  # Adam's moments come with its first step
        moments = meter.held - before - gradients
        stepping = meter.peak - meter.held if self.accelerator else self._largest_update(parameters)
        # The gradients of the step before are held until the forward pass of the next is through: Lightning's order.
        flops, held = meter.flops, meter.held
        meter.reset()
        micro = recipe.trainer.micro_batch
        loss = MicroBatches(1 if micro == "auto" else micro).total(self.model, batch, part)
        forward = meter.flops - flops
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        backward = meter.flops - flops - forward
        optimizer.zero_grad()
        return Step(gradients, moments, max(meter.peak - held, stepping), forward, backward)

    def _largest_update(self, parameters: Sequence[nn.Parameter]) -> int:
        """What Adam holds beside its moments where it goes from weight to weight, as it does on a processor."""
        largest = nn.Parameter(torch.zeros_like(max(parameters, key=_bytes)))
        optimizer = torch.optim.AdamW([largest])
        largest.grad = torch.zeros_like(largest)
        optimizer.step()
        self._meter.reset()
        held = self._meter.held
        optimizer.step()
        return self._meter.peak - held


def scored(model: LanguageModel, batch: TreeBatch, policy: PPOPolicy | None = None, *, entropy: bool = False) -> Tensor:
    """What a step makes of rows, as `PPOPolicy` does, or `WarmStart` without one: sums for their means and ratios."""
    hidden = model.hidden(batch)
    predicting = hidden[batch.action_rows[:, None], batch.predict_positions]
    logprobs, entropies = model.score_tokens(
        predicting.flatten(0, 1), batch.action_tokens.flatten(), entropy_gradient=entropy
    )
    if policy is None:
        return logprobs.sum()
    # The entropies are in PPO's terms, with a factor of 0 too.
    values: Tensor = policy.value_head(predicting)
    return logprobs.sum() + entropies.sum() + values.sum()


def _about_tokens(question: str | None) -> list[int]:
    """As many tokens as a question has about, with those of a template around it."""
    return [] if question is None else [0] * (3 * len(question.split()) // 2 + 8)


def cache_of_a_token(model: LanguageModel) -> int:
    """Bytes of the keys and values of a token of one conversation."""
    config = model.causal_lm.config.get_text_config()
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 2 * int(config.num_hidden_layers) * groups * width * model.head_weight.element_size()


def _kept(tree: TokenTree) -> int:
    return 0 if tree.features is None else _bytes(tree.features[1])


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
