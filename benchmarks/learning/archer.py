"""ArCHer-style learning (Zhou et al. 2024): a critic by temporal differences, a token-level actor against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from parts import NoCritic, marked, targets

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.turns import LoggedTree
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.improvement import RoundDataModule, RoundState
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.language_model import ANCHOR, POLICY
from lightning_iterppo.models.tree import TokenTree


class TemporalDifferences(NoCritic):
    """Q and V by temporal differences on all conversations kept (Zhou et al. 2024, ArCHer, equations 2 and 3).

    One network has both: Q at the end of a response, V at the end of a state. V is fitted to Q of responses that the
    policy samples, Q to the reward and the next state's V.
    """

    SWEEPS: Final = 8

    def __init__(self, loop: IterativePPOLoop) -> None:
        self.loop = loop

    def iteration(
        self, newest: Sequence[Conversation], earlier: Sequence[Sequence[Conversation]], logs: Sequence[Conversation]
    ) -> None:
        """Sweeps of fitted values, one pass over all conversations each, from the network as it was before."""
        loop = self.loop
        conversations = [c for part in (logs, *earlier, newest) for c in part]
        trees = [marked(loop.renderer.render(c), actions=True) for c in conversations]
        answered = self._with_fresh_responses(trees)
        for _ in range(self.SWEEPS):
            values = loop.critic.score(answered, rows=64)
            wanted = [
                LoggedTree(tree, self._targets(c, value))
                for tree, c, value in zip(trees, conversations, values, strict=True)
            ]
            loop.tools.fit(loop.critic, targets(loop, conversations, wanted), 1)

    def _with_fresh_responses(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        """The trees with a response of the policy to each state; marked then are s_0, a_0, …, and those responses."""
        loop = self.loop
        states = [tree.actions[0::2] for tree in trees]
        prompts = [tree.path(state) for tree, row in zip(trees, states, strict=True) for state in row]
        engine = loop.talker.engine(loop.tools.seed_of(f"archer-{loop.progress.iteration}"), keep=False)
        responses = iter(engine.generate(prompts, Sampling(1.0, 1.0, loop.settings.sampling.max_new_tokens)))
        answered = [tree.copy() for tree in trees]
        for tree, row in zip(answered, states, strict=True):
            for state in row:
                tree.add(next(responses).token_ids, state, action=True)
        return answered

    def _targets(self, conversation: Conversation, values: Sequence[float]) -> list[float]:
        """What each s_t and a_t is to be worth."""
        count = len(conversation.turns)
        of_states, fresh = values[0 : 2 * count : 2], values[2 * count :]
        found = []
        for turn, made in enumerate(conversation.turns):
            following = of_states[turn + 1] if turn + 1 < count else 0.0
            found += [fresh[turn], _probability(made.reward + self.loop.settings.gamma * following)]
        return found


class ActorCritic:
    """In the place of the improve phase: fresh responses, advantage Q(s, a) - V(s) (ArCHer, equation 4)."""

    def __init__(self, loop: IterativePPOLoop) -> None:
        self.loop = loop

    def iteration(self, iteration: int, newest: Sequence[Conversation], earlier: Any, logs: Any) -> int:
        """Rounds of fresh responses in the newest conversations' states."""
        loop, settings = self.loop, self.loop.settings
        loop.language_model.copy(POLICY, ANCHOR)
        rounds = RoundDataModule(
            loop.policy,
            newest,
            self._advantages,
            renderer=loop.renderer,
            engine=lambda seed: loop.talker.engine(seed, keep=False),
            max_new_tokens=settings.sampling.max_new_tokens,
            samples_per_state=1,
            conversations_per_round=settings.conversations_per_round,
            ppo_epochs=1,
            batch_size=settings.policy_batch,
            rows=64,
            seed=loop.tools.seed_of(f"rounds-{iteration}"),
        )
        loop.tools.fit(loop.policy, rounds, settings.rounds, rounds=True)
        loop.language_model.discard(ANCHOR)
        return rounds.generated_tokens

    def _advantages(self, states: Sequence[RoundState]) -> list[list[float]]:
        critic = self.loop.critic
        q = critic.score([state.tree for state in states], rows=64)
        v = critic.score([marked(self.loop.renderer.render(s.conversation), actions=False) for s in states], rows=64)
        return [
            [value - of_state[turn] for value, turn in zip(of_actions, state.turns, strict=True)]
            for state, of_actions, of_state in zip(states, q, v, strict=True)
        ]


def archer(loop: IterativePPOLoop) -> None:
    """ArCHer-style: an utterance-level critic by temporal differences, a token-level actor against it."""
    loop.critic_fit = TemporalDifferences(loop)  # type: ignore[assignment]
    loop.improvement = ActorCritic(loop)  # type: ignore[assignment]


def _probability(value: float) -> float:
    return min(1.0, max(0.0, value))
