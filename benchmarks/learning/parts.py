"""What the methods share: logged actions as PPO's samples, trees with their states marked, targets for a critic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.parts import load_parts
from lightning_iterppo.data.samples import PolicyBatch, ScoredTree, collate_samples
from lightning_iterppo.data.turns import LoggedTree, RandomBatches, TurnDataModule
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.language_model import ANCHOR, POLICY
from lightning_iterppo.models.rendering import RenderedConversation
from lightning_iterppo.models.tree import ROOT, TokenTree


class NoCritic:
    """In the place of the evaluate phase, for methods without a critic."""

    def iteration(self, newest: Any, earlier: Any, logs: Any) -> None:
        """Fits nothing."""

    def take_over(self, trees: Any) -> None:
        """Keeps nothing."""

    def forget(self) -> None:
        """Forgets nothing."""


class LoggedSamples(pl.LightningDataModule):
    """Logged actions with their rewards as the samples of PPO."""

    def __init__(self, loop: IterativePPOLoop, trees: Sequence[ScoredTree], seed: int) -> None:
        super().__init__()
        self.loop = loop
        self.trees = trees
        self.seed = seed

    def train_dataloader(self) -> DataLoader[PolicyBatch]:
        """All of them, as often as ``policy.ppo_epochs`` says."""
        settings, pad = self.loop.settings, self.loop.renderer.pad_token_id
        prepared = self.loop.policy.prepare(self.trees, rows=64, at_anchor=True)
        batches = RandomBatches(len(prepared), settings.policy_batch, seed=self.seed, passes=settings.ppo_epochs)
        return load_parts(prepared, batches, lambda items, n: collate_samples(items, pad, stand_ins=n))


class LoggedImprovement:
    """In the place of the improve phase: PPO on the newest conversations' own actions.

    Args:
        loop: the loop.
        rewards: of each action of each conversation; what PPO's value head is to predict, or an advantage itself.
    """

    def __init__(
        self, loop: IterativePPOLoop, rewards: Callable[[Sequence[Conversation]], Iterable[Sequence[float]]]
    ) -> None:
        self.loop = loop
        self.rewards = rewards

    def iteration(self, iteration: int, newest: Sequence[Conversation], earlier: Any, logs: Any) -> int:
        """One improvement; nothing is generated."""
        loop = self.loop
        loop.language_model.copy(POLICY, ANCHOR)
        trees = [
            ScoredTree(loop.renderer.render(c).tree, list(r), [0.0] * len(c.turns), [False] * len(c.turns))
            for c, r in zip(newest, self.rewards(newest), strict=True)
        ]
        samples = LoggedSamples(loop, trees, loop.tools.seed_of(f"samples-{iteration}"))
        loop.tools.fit(loop.policy, samples, 1, rounds=True)
        loop.language_model.discard(ANCHOR)
        return 0


def targets(
    loop: IterativePPOLoop, conversations: Sequence[Conversation], trees: Sequence[LoggedTree]
) -> TurnDataModule:
    """The critic's own data, with trees and targets of the caller's in the place of the conversations'."""
    settings = loop.settings
    return TurnDataModule(
        conversations,
        renderer=loop.renderer,
        gamma=settings.gamma,
        batch_size=settings.critic_batch,
        seed=loop.tools.seed,
        relabel=lambda _: trees,
    )


def marked(rendered: RenderedConversation, *, actions: bool) -> TokenTree:
    """The tree of a conversation with its states marked, so that a critic has a value V(s) at the end of each.

    Args:
        rendered: the conversation.
        actions: keep the responses marked too; the marked segments then are s_0, a_0, s_1, a_1, …
    """
    tree = TokenTree()
    places = {ROOT: ROOT}
    for index, segment in enumerate(rendered.tree.segments):
        ids, parent = segment.token_ids, places[segment.parent]
        if parent == ROOT:  # what is marked needs something before it
            ids, parent = ids[1:], tree.add(ids[:1], ROOT)
        places[index] = tree.add(
            ids, parent, action=index in rendered.states or (actions and index in rendered.actions)
        )
    return tree
