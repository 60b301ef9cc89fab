"""The evaluate phase: fits Q on conversations, some or all of them held out in turn."""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from lightning_iterppo.behaviour import action_log_ratios
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.critic import QCritic
from lightning_iterppo.critic_head import ActionFeatures, cross_validate_head
from lightning_iterppo.data.conversation_file import outcomes_known, turn_counts
from lightning_iterppo.data.trees import KEPT_CONVERSATIONS, LoggedTree, Retargeted
from lightning_iterppo.data.turns import TurnBatch, TurnDataModule, split_conversations
from lightning_iterppo.data.views import select
from lightning_iterppo.errors import LogDataError
from lightning_iterppo.functional.objectives import HLGauss
from lightning_iterppo.functional.returns import lambda_returns
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.tree import Segment, TokenTree
from lightning_iterppo.phase import PhaseTools
from lightning_iterppo.scoring import score_in_windows
from lightning_iterppo.settings import LoopSettings
from lightning_iterppo.trainer import gather_lists, share, world_size

_NOTHING_KNOWN = (
    "none of the conversations has a known outcome, so there is nothing to fit Q to: give each an `outcome`"
)


class CriticFit:
    """Fits the critic; its held-out figures are ``critic.figures`` afterwards.

    Args:
        critic: Q.
        renderer: the model's chat template.
        settings: epochs, batches, and how much is held out.
        tools: Trainers and progress.
    """

    def __init__(self, critic: QCritic, renderer: ChatRenderer, settings: LoopSettings, tools: PhaseTools) -> None:
        self.critic = critic
        self.renderer = renderer
        self.settings = settings
        self.tools = tools
        # What the head saw of conversations, by the very conversations: a trunk that is not tuned sees the same again.
        self._seen: list[tuple[Sequence[Conversation], ActionFeatures | None]] = []
        # What frozen layers made of the logs in the warm start, by their trees.
        self._frozen: dict[tuple[Segment, ...], tuple[object, Tensor]] = {}

    def iteration(
        self, newest: Sequence[Conversation], earlier: Sequence[Sequence[Conversation]], logs: Sequence[Conversation]
    ) -> None:
        """Fits Q of π_k: on its own conversations, on earlier policies' and on the logs. Only its own are held out.

        Args:
            newest: π_k's conversations.
            earlier: those of the iterations before, the newest last.
            logs: other people's; empty when they shall not count.

        Raises:
            LogDataError: no outcome of π_k's conversations is known, or of none that are held out.
        """
        self._fit(newest, earlier, logs)
        self._frozen = {}  # as large as the hidden states of all logs, and read by now

    def _fit(
        self, newest: Sequence[Conversation], earlier: Sequence[Sequence[Conversation]], logs: Sequence[Conversation]
    ) -> None:
        settings = self.settings
        if settings.critic_epochs == 0:
            self._solve_head([logs, *earlier], newest, measure=True)
            return
        train, held = split_conversations(newest, settings.validation_fraction, self.tools.seed)
        if settings.critic_solve_head:
            self._solve_head([logs, *earlier], train)
        logs = [conversation for conversation in logs if conversation.outcome is not None]
        if logs and not earlier:
            # The logs are of other people, whose outcomes come more or less often: they teach what matters, and the
            # newest conversations, which come last, how often it happens under π_k.
            self._tune(logs, [])
        past = [c for part in earlier[-settings.history :] for c in part] if settings.history else []
        self._tune([*train, *past], held, self._weights(past) if settings.history_weights else None)

    def logs(self, logs: Sequence[Conversation], validation: Sequence[Conversation] | None) -> None:
        """Fits Q on logs alone; without validation conversations some of them are held out whole.

        Logs in a `ConversationFile` or a store may be larger than the memory.

        Raises:
            LogDataError: no outcome is known, or of none that are held out.
        """
        read = self._logs(logs, validation)
        if isinstance(self.critic.objective, HLGauss):
            return
        # V(s), for what a single message was worth; not every loss has it.
        if read is None:
            some = self._some(logs)
            self.tools.progress.step(len(some), "conversations read")
            read = self._features(some, states=True)
        if read is not None:
            self.critic.fit_states(read, prior=self.settings.critic_head_prior, trust=self.settings.critic_head_trust)

    def _logs(self, logs: Sequence[Conversation], validation: Sequence[Conversation] | None) -> ActionFeatures | None:
        """Fits Q; gives what was read of the logs, if the trunk is still the one that read it."""
        settings = self.settings
        if settings.critic_epochs == 0:
            read = self._solve_head([], logs, measure=validation is None, states=True)
            if validation is not None:
                some = select(logs, np.flatnonzero(outcomes_known(logs))[:1])  # a data module has to have one
                self.tools.validate(self.critic, self._data(some, validation))
            return read
        if validation is None:
            logs, validation = split_conversations(logs, settings.validation_fraction, self.tools.seed)
        if settings.critic_solve_head:
            self._solve_head([], logs)
        self._tune(logs, validation)
        return None

    def _solve_head(
        self,
        past: Sequence[Sequence[Conversation]],
        newest: Sequence[Conversation],
        *,
        measure: bool = False,
        states: bool = False,
    ) -> ActionFeatures:
        """The optimal linear head on the critic's trunk as it is; with ``measure`` cross-validated too.

        Returns:
            What was read of the newest, with ``states`` of the states too.
        """
        settings = self.settings
        groups = [self._some(group) for group in (*past, newest)]
        known = [self._seen_before(group) for group in groups]
        unread = [group for group, features in zip(groups, known, strict=True) if features is None]
        self.tools.progress.step(sum(map(len, unread)), "conversations read")
        read = [features or self._features(group, states=states) for group, features in zip(groups, known, strict=True)]
        if settings.critic_epochs == 0:
            self._seen = list(zip(groups, read, strict=True))
        *before, new = read
        if new is None:
            raise LogDataError(_NOTHING_KNOWN)
        parts = [features for features in before if features is not None]
        old = ActionFeatures.join(parts) if parts else None
        prior, trust = settings.critic_head_prior, settings.critic_head_trust
        self.critic.fit_head(new, old, prior=prior, trust=trust)
        if measure:
            folds = max(2, round(1 / settings.validation_fraction))
            self.critic.figures = cross_validate_head(
                new,
                old,
                prior=prior,
                trust=trust,
                objective=self.critic.objective,
                folds=folds,
                seed=self.tools.seed,
            )
        return new

    def _some(self, conversations: Sequence[Conversation]) -> Sequence[Conversation]:
        """Those of known outcome; when they have more turns than a head is solved for, whole ones drawn by chance.

        What the head sees of all turns of a million would not fit into memory, and a linear map does not need it.
        """
        known = np.flatnonzero(outcomes_known(conversations))
        turns = turn_counts(conversations)[known]
        if turns.sum() > self.settings.critic_head_turns:
            order = torch.randperm(len(known), generator=torch.Generator().manual_seed(self.tools.seed)).numpy()
            fits = np.cumsum(turns[order]) <= self.settings.critic_head_turns
            known = np.sort(known[order[: max(2, int(fits.sum()))]])  # cross-validation needs two
        return select(conversations, known)

    def _seen_before(self, group: Sequence[Conversation]) -> ActionFeatures | None:
        for conversations, features in self._seen:
            if len(conversations) == len(group) and all(map(operator.is_, conversations, group)):
                return features
        return None

    def take_over(self, trees: Iterable[LoggedTree]) -> None:
        """What frozen layers made of trees that were trained on, for the iteration that reads the same ones next."""
        self._frozen = {tuple(t.tree.segments): t.tree.features for t in trees if t.tree.features is not None}

    def _with_features(self, data: TurnDataModule) -> TurnDataModule:
        for item in data.train_trees.kept:
            item.tree.features = self._frozen.get(tuple(item.tree.segments))
        return data

    def forget(self) -> None:
        """What is kept of conversations no longer holds: the critic's trunk is another."""
        self._seen = []

    def _features(self, conversations: Sequence[Conversation], *, states: bool = False) -> ActionFeatures | None:
        """Of conversations with known outcomes, in their order, each read by one process; None when there are none."""
        if not conversations:
            return None
        data = self._with_features(
            TurnDataModule(
                conversations,
                renderer=self.renderer,
                gamma=self.settings.gamma,
                bounds=self.critic.objective.bounds,
            )
        )
        found = self.critic.features(self._counted(data.reading_dataloader()), states=states)
        found.conversations = torch.tensor(data.reading_order(), dtype=torch.long)[found.conversations]
        return ActionFeatures.in_order(gather_lists([found]))

    def _counted(self, batches: Iterable[TurnBatch]) -> Iterator[TurnBatch]:
        progress = self.tools.progress
        for batch in batches:
            yield batch
            progress.done = min(progress.done + len(batch.tree.trees) * world_size(), progress.total)
            progress.tokens += batch.tree.counted_tokens
            self.tools.moved()

    def _weights(self, past: Sequence[Conversation]) -> dict[str, list[float]]:
        """For each turn min(1, Π π_k / μ) over those after it: a sample of Q as far as π_k would do the same there."""
        ratios = action_log_ratios(self.critic.model, self.renderer, past, rows=max(8, self._rows))
        found = {}
        for name, of_turns in ratios.items():
            later = [sum(of_turns[turn + 1 :]) for turn in range(len(of_turns))]
            found[name] = [math.exp(min(0.0, ratio)) for ratio in later]
        return found

    def _tune(
        self,
        train: Sequence[Conversation],
        held: Sequence[Conversation],
        weights: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Tunes the critic's trunk and head; measures them on the conversations held out, if there are any."""
        stop = EarlyStopping("critic/loss", patience=self.settings.critic_patience, check_on_train_epoch_end=False)
        data = self._data(train, held, weights)
        bootstrapped = self.settings.critic_td_lambda < 1
        if bootstrapped:
            data.relabel = self._bootstrapped
        self.tools.fit(
            self.critic, data, self.settings.critic_epochs, callbacks=[stop] if held else [], rounds=bootstrapped
        )

    def _bootstrapped(self, items: Sequence[LoggedTree]) -> Retargeted:
        """TD(λ) targets from the critic as it is. What is held out is measured against what really came."""
        gamma, lam = self.settings.gamma, self.settings.critic_td_lambda
        returns: deque[list[float]] = deque()

        def trees() -> Iterator[TokenTree]:
            for item in items:
                returns.append(item.returns)
                yield item.tree

        scores = score_in_windows(self.critic, trees(), rows=self._rows, window=KEPT_CONVERSATIONS)
        return Retargeted(items, (lambda_returns(returns.popleft(), each, gamma=gamma, lam=lam) for each in scores))

    def _data(
        self,
        train: Sequence[Conversation],
        held: Sequence[Conversation],
        weights: Mapping[str, Sequence[float]] | None = None,
    ) -> TurnDataModule:
        known = int(outcomes_known(held).sum())
        if held and not known:
            raise LogDataError(
                f"none of the {len(held)} held-out conversations has a known outcome, so Q cannot be measured: raise "
                "critic.validation_fraction or collect more"
            )
        count = int(outcomes_known(train).sum())
        if not count:
            raise LogDataError(_NOTHING_KNOWN)
        large = count > KEPT_CONVERSATIONS  # which takes long enough to be shown
        if large:
            self.tools.progress.step(count + known, "conversations read")
        return self._with_features(
            TurnDataModule(
                train,
                held,
                renderer=self.renderer,
                gamma=self.settings.gamma,
                batch_size=self.settings.critic_batch,
                seed=self.tools.seed,
                bounds=self.critic.objective.bounds,
                weights=weights,
                on_read=self._one_read if large else None,
            )
        )

    @property
    def _rows(self) -> int:
        """Conversations of a batch that a process computes."""
        return share(self.settings.critic_batch)

    def _one_read(self) -> None:
        self.tools.progress.done += 1
        self.tools.moved()
