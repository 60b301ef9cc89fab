"""RoundDataModule: the samples of one round of improvement, made anew for every round.

A round takes logged conversations, samples fresh responses in each of their states from the policy as it is now, and
asks for the reward of every response. Where the rewards come from is the caller's business: a critic's Q, or any
function of the history and the response.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_iterppo.conversation import Conversation, Message
from lightning_iterppo.data.parts import load_parts
from lightning_iterppo.data.samples import PolicyBatch, PreparedTree, ScoredTree, collate_samples
from lightning_iterppo.data.turns import RandomBatches
from lightning_iterppo.functional.returns import lambda_returns
from lightning_iterppo.generation.engine import Engine
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.randomness import mixed_seed
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.tree import TokenTree
from lightning_iterppo.policy import PPOPolicy
from lightning_iterppo.trainer import gather_dealt, over_processes, rank, world_size

LoggedReward = Literal["return", "q", "mix", "none"]
# Conversations, over all processes, in whose states the end of an improvement is measured: some hundred responses.
MEASURED = 16


class Scorer(Protocol):
    """Gives the value of every response of every tree, in the order of ``tree.actions``."""

    def __call__(self, states: Sequence[RoundState]) -> list[list[float]]:
        """One list a state group, one value a response."""


class RoundState:
    """A conversation's states and the responses to them, in tokens and in text.

    Args:
        conversation: where the states come from.
        tree: the tokens; its actions are the responses.
        turns: for each action, the turn whose state it answers.
        fresh: for each action, whether it was sampled in this round.
        renderer: turns tokens back into text.
    """

    def __init__(
        self, conversation: Conversation, tree: TokenTree, turns: list[int], fresh: list[bool], renderer: ChatRenderer
    ) -> None:
        self.conversation = conversation
        self.tree = tree
        self.turns = turns
        self.fresh = fresh
        self._renderer = renderer

    def history(self, action: int) -> list[Message]:
        """The messages before the action-th response."""
        found: list[Message] = []
        for turn in self.conversation.turns[: self.turns[action]]:
            found += [Message("customer", turn.customer)] if turn.customer else []
            found.append(Message("agent", turn.message))
        said = self.conversation.turns[self.turns[action]].customer
        return found + ([Message("customer", said)] if said else [])

    def response(self, action: int) -> str:
        """The text of the action-th response."""
        return self._renderer.decode(self.tree.segments[self.tree.actions[action]].token_ids)


def score_each(reward: Callable[[list[Message], str], float]) -> Scorer:
    """A scorer from a function of the history and the response's text: single-turn RLHF with any reward."""

    def score(states: Sequence[RoundState]) -> list[list[float]]:
        return [[float(reward(s.history(a), s.response(a))) for a in range(len(s.turns))] for s in states]

    return score


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A conversation of a round, and its place in the round."""

    place: int
    conversation: Conversation


class RoundDataModule(pl.LightningDataModule):
    """Makes a round each time a training dataloader is asked for.

    Give it to ``Trainer(max_epochs=ROUNDS, reload_dataloaders_every_n_epochs=1, use_distributed_sampler=False)``: one
    epoch is one round. Fresh responses are sampled at temperature 1 and top-p 1, where log-probabilities are exact.
    Several processes share a round out, and train on all of it: what is learnt does not depend on how many they are.

    Args:
        policy: the policy that samples and is trained.
        conversations: logged ones; every turn's state is a prompt.
        score: the value of every response.
        renderer: the model's chat template.
        engine: makes the engine of a round from a seed; by default a `LocalEngine` on the policy's own weights.
        max_new_tokens: length at which a response is cut.
        samples_per_state: fresh responses a state. The mean value of the others is a response's baseline, so that from
            two on nothing has to be known about the state.
        conversations_per_round: how many conversations' states one round uses, over all processes.
        logged_reward: the reward of the logged actions: ``return`` is what they earned, ``q`` the scorer's value,
            ``mix`` the mean of both, ``none`` leaves them out.
        logged_lambda: λ of what they earned, as in GAE but over turns: below 1 a part of what came later is replaced by
            the mean value of the responses to the next state, which has seen the customer's answer but not the luck of
            the turns after it. 1 is the observed return.
        log_ratios: for conversations that π_k did not have, by their id, log π_k - log μ of every turn's action; see
            `lightning_iterppo.behaviour`. What came after an action that π_k would not take is no sample of what comes
            after it under π_k: λ is multiplied by min(1, π_k / μ) there (Munos et al. 2016, Retrace).
        log_actions: whether what people wrote by themselves is a logged action too, as what the policy suggested is.
        gamma: discount from turn to turn, for ``return``.
        ppo_epochs: passes over the samples of a round.
        batch_size: conversations a batch, over all processes.
        rows: conversations a forward pass without gradients.
        seed: which conversations, which responses, which order.
        on_stage: told what is being done, ``sample``, ``score``, ``prepare`` or ``train``, and how much of it there is.
        on_batch: called with the number of conversations and of tokens of each pass of ``prepare``.

    Raises:
        ValueError: there is no conversation.
    """

    def __init__(
        self,
        policy: PPOPolicy,
        conversations: Sequence[Conversation],
        score: Scorer,
        *,
        renderer: ChatRenderer,
        engine: Callable[[int], Engine] | None = None,
        max_new_tokens: int = 32,
        samples_per_state: int = 2,
        conversations_per_round: int = 64,
        logged_reward: LoggedReward = "none",
        logged_lambda: float = 1.0,
        log_ratios: Mapping[str, Sequence[float]] | None = None,
        log_actions: bool = False,
        gamma: float = 1.0,
        ppo_epochs: int = 2,
        batch_size: int = 8,
        rows: int = 8,
        seed: int = 0,
        on_stage: Callable[[str, int], None] | None = None,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        if not conversations:
            raise ValueError("an improvement needs logged conversations: their states are its prompts")
        self.policy = policy
        self.conversations = list(conversations)
        self.score = score
        self.engine = engine or self._local_engine
        self.renderer = renderer
        self.sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=max_new_tokens)
        self.samples_per_state = samples_per_state
        self.conversations_per_round = conversations_per_round
        self.logged_reward = logged_reward
        self.logged_lambda = logged_lambda
        self.log_ratios = log_ratios or {}
        self.log_actions = log_actions
        self.gamma = gamma
        self.ppo_epochs = ppo_epochs
        self.batch_size = batch_size
        self.rows = rows
        self.seed = seed
        self.on_stage = on_stage
        self.on_batch = on_batch
        self.round = 0
        self.first_reward: float | None = None  # of the first round, in the states that are measured at the end
        self.generated_tokens = 0
        order = torch.randperm(len(self.conversations), generator=torch.Generator().manual_seed(seed))
        self._order: list[int] = order.tolist()

    def train_dataloader(self) -> DataLoader[PolicyBatch]:
        """Samples, scores and prepares a round, and gives this process's parts of its batches."""
        own = self._make(self._chosen(self.round), logged=self.logged_reward != "none", at_anchor=self.round == 0)
        prepared = _all_processes(own)
        batches = RandomBatches(len(prepared), self.batch_size, seed=self.seed + self.round, passes=self.ppo_epochs)
        self._tell("train", len(batches))
        self.round += 1
        return load_parts(prepared, batches, self._collate)

    def _collate(self, items: Sequence[PreparedTree], stand_ins: int) -> PolicyBatch:
        return collate_samples(items, self.renderer.pad_token_id, stand_ins=stand_ins)

    def _tell(self, stage: str, total: int) -> None:
        if self.on_stage is not None:
            self.on_stage(stage, total)

    def _local_engine(self, seed: int) -> Engine:
        return LocalEngine(self.policy.model, stop_token_id=self.renderer.stop_token_id, seed=seed)

    def measure(self) -> None:
        """Measures the policy as it is now, after the last round: ``policy.figures`` then are of its end.

        Samples afresh in states of the first round, so that ``reward_gain`` compares like with like: of the first
        `MEASURED` conversations, since this costs as much as half a round and trains nothing.
        """
        self._make(self._chosen(0)[:MEASURED], logged=False, at_anchor=False)

    def _chosen(self, number: int) -> list[_Chosen]:
        """A round's conversations; the next ones of one shuffled order, over and over."""
        count = min(self.conversations_per_round, len(self._order))
        places = [self._order[(number * count + place) % len(self._order)] for place in range(count)]
        return [_Chosen(place, self.conversations[index]) for place, index in enumerate(places)]

    def _make(self, chosen: Sequence[_Chosen], *, logged: bool, at_anchor: bool) -> list[PreparedTree]:
        """This process's share of what is made of conversations."""
        # In the precision that training uses: else the ratio would begin beside 1.
        with self.trainer.precision_plugin.forward_context() if self.trainer else nullcontext():
            states = self._sampled(chosen, logged=logged)
            self._tell("score", len(states))
            values = self.score(states)
            self._tell("prepare", len(states))
            scored = [self._rewarded(state, value) for state, value in zip(states, values, strict=True)]
            prepared = self.policy.prepare(scored, rows=self.rows, at_anchor=at_anchor, on_batch=self.on_batch)
        own = chosen[rank() :: world_size()]
        reward = self._mean_reward([tree for each, tree in zip(own, scored, strict=True) if each.place < MEASURED])
        self.first_reward = reward if self.first_reward is None else self.first_reward
        self.policy.figures["reward_gain"] = reward - self.first_reward
        return prepared

    def _mean_reward(self, scored: Sequence[ScoredTree]) -> float:
        """Of the fresh responses, over all processes; there are some, every state has them."""
        rewards = [r for tree in scored for r, fresh in zip(tree.rewards, tree.fresh, strict=True) if fresh]
        own = torch.tensor([sum(rewards), len(rewards)], dtype=torch.float64)
        total, count = over_processes(own, self.policy.model.device).tolist()
        return float(total / count)

    def _sampled(self, chosen: Sequence[_Chosen], *, logged: bool) -> list[RoundState]:
        """Fresh responses in every state of this process's share, and the logged ones if they count."""
        # All are rendered on every process, which then have counted the same histories that were cut.
        both = [(each, self.renderer.render(each.conversation)) for each in chosen][rank() :: world_size()]
        asked = [
            (item.tree.path(state), mixed_seed(self.seed, self.round, each.place, turn, sample))
            for each, item in both
            for turn, state in enumerate(item.states)
            for sample in range(self.samples_per_state)
        ]
        self._tell("sample", len(asked))
        engine = self.engine(mixed_seed(self.seed, self.round))
        prompts, seeds = [prompt for prompt, _ in asked], [seed for _, seed in asked]
        responses = iter(engine.generate(prompts, self.sampling, seeds=seeds))
        self.generated_tokens += engine.generated_tokens
        found = []
        for each, item in both:
            conversation = each.conversation
            # What a conversation with an unknown outcome earned is unknown, never a zero.
            censored = conversation.outcome is None and self.logged_reward != "q"
            # Only what a policy suggested is a sample of its action: what people wrote themselves gives states alone,
            # unless it is asked for, as it may be where the policy imitates those very people.
            counted = [
                turn
                for turn, made in enumerate(conversation.turns)
                if logged and not censored and (self.log_actions or made.suggestion is not None)
            ]
            tree, turns, fresh = item.tree.copy(), list(counted), [False] * len(counted)
            kept = {item.actions[turn] for turn in counted}
            tree.segments = [replace(s, action=index in kept) for index, s in enumerate(tree.segments)]
            for turn, state in enumerate(item.states):
                for _ in range(self.samples_per_state):
                    tree.add(next(responses).token_ids, state, action=True)
                    turns.append(turn)
                    fresh.append(True)
            found.append(RoundState(conversation, tree.pruned(), turns, fresh, self.renderer))
        return found

    def _rewarded(self, state: RoundState, values: Sequence[float]) -> ScoredTree:
        """Rewards, and for each response the mean value of the *other* responses to its state as the baseline.

        A baseline that does not depend on the response itself leaves the gradient unbiased. A logged action's own value
        is one of the others' too: it is one more sample of the same policy's.
        """
        turns = len(state.conversation.turns)
        totals, counts = [0.0] * turns, [0] * turns
        for turn, value in zip(state.turns, values, strict=True):
            totals[turn] += value
            counts[turn] += 1
        returns = state.conversation.returns(self.gamma)
        ratios = self.log_ratios.get(state.conversation.id, [0.0] * turns)
        traces = [math.exp(min(0.0, ratio)) for ratio in ratios]
        if self.logged_lambda < 1 or any(trace < 1 for trace in traces):
            means = [total / count for total, count in zip(totals, counts, strict=True)]
            returns = lambda_returns(returns, means, gamma=self.gamma, lam=self.logged_lambda, traces=traces)
        rewards, baselines = [], []
        for turn, value, fresh in zip(state.turns, values, state.fresh, strict=True):
            if fresh or self.logged_reward == "q":
                rewards.append(value)
            else:
                share = 1.0 if self.logged_reward == "return" else 0.5
                rewards.append(share * returns[turn] + (1 - share) * value)
            others = counts[turn] - 1
            baselines.append((totals[turn] - value) / others if others else 0.0)
        own = [0.0 if fresh else ratios[turn] for turn, fresh in zip(state.turns, state.fresh, strict=True)]
        return ScoredTree(state.tree, rewards, baselines, list(state.fresh), own)


def _all_processes(own: Sequence[PreparedTree]) -> Sequence[PreparedTree]:
    """Everybody's trees, in the order of the round."""
    if world_size() == 1:
        return own
    # What frozen layers made of a tree is not sent: it is large, and the others can compute it.
    found = gather_dealt([replace(item, tree=item.tree.copy()) for item in own])
    found[rank() :: world_size()] = own
    return found
