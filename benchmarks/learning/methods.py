"""The methods that are compared: Iterative PPO as the library has it, and others in its place inside the same loop.

Every method has the same warm start, model, optimiser, sampling and number of conversations. A method replaces what an
iteration does with its conversations: the evaluate phase (`critic_fit`) and the improve phase (`improvement`). The size
of a step (``policy.learning_rate``) and how often the samples are gone through (``policy.ppo_epochs``, or
``policy.rounds`` where fresh responses are sampled) are tuned for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.customers import Customer, CustomerReply, Message
from lightning_iterppo.data.samples import PreparedTree, ScoredTree, collate_samples
from lightning_iterppo.data.turns import LengthBatches, LoggedTree, TurnBatch, TurnDataModule
from lightning_iterppo.functional.logistic import fit_logistic
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.improvement import RoundDataModule, RoundState
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.language_model import ANCHOR, POLICY
from lightning_iterppo.models.rendering import RenderedConversation
from lightning_iterppo.models.tree import ROOT, TokenTree, collate_trees
from lightning_iterppo.warm_start import WarmStart

#: Conversations with one customer that GRPO compares.
GROUP: Final = 8


@dataclass(frozen=True)
class Method:
    """One way to learn from conversations.

    Args:
        install: puts it in its place in a loop.
        overrides: of the recipe.
        passes: the recipe's key for how often an iteration's samples are gone through.
        online: whether it talks with customers; else it has only the logs.
    """

    install: Callable[[IterativePPOLoop], None] = lambda loop: None
    overrides: tuple[str, ...] = ()
    passes: str = "policy.ppo_epochs"
    online: bool = True


# -- parts ---------------------------------------------------------------------------------------------------------


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

    def train_dataloader(self) -> DataLoader[PreparedTree]:
        """All of them, as often as ``policy.ppo_epochs`` says."""
        settings, pad = self.loop.settings, self.loop.renderer.pad_token_id
        prepared = self.loop.policy.prepare(self.trees, rows=64, at_anchor=True)
        batches = LengthBatches(
            [len(item.tree) for item in prepared], settings.policy_batch, seed=self.seed, passes=settings.ppo_epochs
        )
        return DataLoader(prepared, batch_sampler=batches, collate_fn=lambda items: collate_samples(items, pad))  # type: ignore[arg-type]


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

    def iteration(self, iteration: int, newest: Sequence[Conversation], logs: Sequence[Conversation]) -> int:
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


class Targets(pl.LightningDataModule):
    """Trees and what Q is to be at each of their actions."""

    def __init__(self, loop: IterativePPOLoop, trees: Sequence[LoggedTree], seed: int) -> None:
        super().__init__()
        self.loop = loop
        self.trees = trees
        self.seed = seed

    def collate(self, items: list[LoggedTree]) -> TurnBatch:
        """A batch."""
        values = torch.tensor([value for item in items for value in item.returns])
        return TurnBatch(collate_trees([item.tree for item in items], self.loop.renderer.pad_token_id), values)

    def train_dataloader(self) -> DataLoader[LoggedTree]:
        """All trees in random order."""
        lengths = [len(item.tree) for item in self.trees]
        batches = LengthBatches(lengths, self.loop.settings.critic_batch, seed=self.seed)
        return DataLoader(self.trees, batch_sampler=batches, collate_fn=self.collate)  # type: ignore[arg-type]


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


def _probability(value: float) -> float:
    return min(1.0, max(0.0, value))


# -- trajectory PPO ------------------------------------------------------------------------------------------------


def trajectory_ppo(loop: IterativePPOLoop) -> None:
    """PPO on the Monte Carlo return of the whole trajectory: every response's reward is what came after it."""
    loop.critic_fit = NoCritic()  # type: ignore[assignment]
    loop.improvement = LoggedImprovement(  # type: ignore[assignment]
        loop, lambda conversations: [c.returns(loop.settings.gamma) for c in conversations]
    )


# -- GRPO ----------------------------------------------------------------------------------------------------------


class Again:
    """A customer that comes `GROUP` times in a row."""

    def __init__(self, customer: Customer) -> None:
        self.customer = customer

    def reset(self, seed: int) -> str:
        """The same customer for a group of seeds."""
        return self.customer.reset(seed // GROUP)

    def reply(self, history: list[Message]) -> CustomerReply:
        """What the customer says."""
        return self.customer.reply(history)


def _compared(conversations: Sequence[Conversation]) -> list[list[float]]:
    """(R - mean) / deviation of the group, for every response (Shao et al. 2024, section 4.1.2)."""
    groups: dict[int, list[float]] = {}
    for conversation in conversations:
        assert conversation.seed is not None and conversation.outcome is not None
        groups.setdefault(conversation.seed // GROUP, []).append(conversation.outcome)
    found = []
    for conversation in conversations:
        assert conversation.seed is not None and conversation.outcome is not None
        outcomes = torch.tensor(groups[conversation.seed // GROUP], dtype=torch.float64)
        advantage = (conversation.outcome - outcomes.mean()) / (outcomes.std(unbiased=False) + 1e-4)
        found.append([float(advantage)] * len(conversation.turns))
    return found


def grpo(loop: IterativePPOLoop) -> None:
    """Trajectory-level GRPO: conversations with the same customer are compared, and every token of one gets the same.

    The evaluation's customers are those of the other methods; only training meets the same one again.
    """
    ordinary, talk = loop.customer, loop.talker.talk

    def talk_again(customer: Any, kind: int, count: int, *arguments: Any, **more: Any) -> list[Conversation]:
        chosen = (lambda: Again(ordinary())) if kind == 0 else customer
        return talk(chosen, kind, count, *arguments, **more)

    loop.talker.talk = talk_again  # type: ignore[method-assign]
    loop.critic_fit = NoCritic()  # type: ignore[assignment]
    loop.improvement = LoggedImprovement(loop, _compared)  # type: ignore[assignment]


# -- turn-level PPO ------------------------------------------------------------------------------------------------


class StateValue(NoCritic):
    """Fits V(s) at the end of every state to the observed returns, on the critic's variant."""

    def __init__(self, loop: IterativePPOLoop) -> None:
        self.loop = loop

    def iteration(
        self, newest: Sequence[Conversation], earlier: Sequence[Sequence[Conversation]], logs: Sequence[Conversation]
    ) -> None:
        """Fits V of the newest conversations' policy; the first time to the logs before."""
        settings, tools = self.loop.settings, self.loop.tools
        for conversations in [newest] if earlier else [logs, newest]:
            trees = [
                LoggedTree(marked(self.loop.renderer.render(c), actions=False), c.returns(settings.gamma))
                for c in conversations
            ]
            tools.fit(self.loop.critic, Targets(self.loop, trees, tools.seed), settings.critic_epochs)


def turn_ppo(loop: IterativePPOLoop) -> None:
    """Turn-level PPO with one value head: GAE over the turns of a conversation, one advantage for all its tokens."""
    lam = 0.95

    def advantages(conversations: Sequence[Conversation]) -> list[list[float]]:
        trees = [marked(loop.renderer.render(c), actions=False) for c in conversations]
        found = []
        for conversation, values in zip(conversations, loop.critic.score(trees, rows=64), strict=True):
            advantage, following, backwards = 0.0, 0.0, []
            for turn, value in zip(reversed(conversation.turns), reversed(values), strict=True):
                delta = turn.reward + loop.settings.gamma * following - value
                advantage = delta + loop.settings.gamma * lam * advantage
                following = value
                backwards.append(advantage)
            found.append(backwards[::-1])
        return found

    loop.critic_fit = StateValue(loop)  # type: ignore[assignment]
    loop.improvement = LoggedImprovement(loop, advantages)  # type: ignore[assignment]


# -- filtered behaviour cloning ------------------------------------------------------------------------------------


class Imitation:
    """In the place of the improve phase: imitates the best quarter, or all that earned the most there is."""

    def __init__(self, loop: IterativePPOLoop) -> None:
        self.loop = loop

    def iteration(self, iteration: int, newest: Sequence[Conversation], logs: Sequence[Conversation]) -> int:
        """Imitates the best of the newest conversations and of those kept from before."""
        loop = self.loop
        known = [c for part in (*loop.earlier, newest) for c in part]
        if iteration == 0:
            known += logs
        outcomes = sorted((c.outcome or 0.0 for c in known), reverse=True)
        bar = max(outcomes[len(outcomes) // 4], 1e-9)
        chosen = [replace(c, outcome=c.outcome) for c in known if (c.outcome or 0.0) >= bar]
        cloning = WarmStart(loop.language_model, learning_rate=loop.policy.learning_rate)
        data = TurnDataModule(
            chosen,
            renderer=loop.renderer,
            batch_size=loop.settings.policy_batch,
            seed=loop.tools.seed_of(f"imitation-{iteration}"),
        )
        loop.tools.fit(cloning, data, loop.settings.ppo_epochs)
        return 0


def filtered_cloning(loop: IterativePPOLoop) -> None:
    """Filtered behaviour cloning: imitates the conversations that went best."""
    loop.critic_fit = NoCritic()  # type: ignore[assignment]
    loop.improvement = Imitation(loop)  # type: ignore[assignment]


# -- ArCHer --------------------------------------------------------------------------------------------------------


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
        for sweep in range(self.SWEEPS):
            values = loop.critic.score(answered, rows=64)
            targets = [
                LoggedTree(tree, self._targets(c, value))
                for tree, c, value in zip(trees, conversations, values, strict=True)
            ]
            loop.tools.fit(loop.critic, Targets(loop, targets, loop.tools.seed_of(f"sweep-{sweep}")), 1)

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

    def iteration(self, iteration: int, newest: Sequence[Conversation], logs: Sequence[Conversation]) -> int:
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


# -- a reward model of the next message ----------------------------------------------------------------------------


class NextMessage:
    """How well a conversation ends whose customer has just said this: logistic regression on the words."""

    def __init__(self, conversations: Sequence[Conversation]) -> None:
        pairs = [(text, c.outcome or 0.0) for c in conversations for text in _answers(c)]
        words = sorted({word for text, _ in pairs for word in text.split()})
        self.index = {word: number for number, word in enumerate(words)}
        rows = torch.stack([self._row(text) for text, _ in pairs])
        self.weight, self.bias = fit_logistic(rows, torch.tensor([outcome for _, outcome in pairs]), prior=1.0)

    def _row(self, text: str) -> torch.Tensor:
        row = torch.zeros(len(self.index))
        row[[self.index[word] for word in text.split() if word in self.index]] = 1.0
        return row

    def relabelled(self, conversation: Conversation) -> Conversation:
        """The conversation with rewards whose sum from each turn on is the value of the answer to that turn."""
        values = [
            1 / (1 + math.exp(-float(self._row(text).double() @ self.weight + self.bias)))
            for text in _answers(conversation)
        ]
        rewards = [value - following for value, following in zip(values, [*values[1:], 0.0], strict=True)]
        turns = tuple(replace(t, reward=r) for t, r in zip(conversation.turns, rewards, strict=True))
        return replace(conversation, turns=turns, outcome=sum(rewards))


def _answers(conversation: Conversation) -> list[str]:
    """What the customer said after each agent message."""
    return [*(turn.customer for turn in conversation.turns[1:]), conversation.closing]


def next_message(loop: IterativePPOLoop) -> None:
    """A single-turn reward model that only looks at the customer's next message, in the place of the return."""
    critic_fit, improvement = loop.critic_fit, loop.improvement
    model: list[NextMessage] = []

    class Evaluate(NoCritic):
        def iteration(self, newest: Any, earlier: Any, logs: Any) -> None:
            model[:] = [NextMessage([c for part in (logs, *earlier, newest) for c in part])]
            relabelled = model[0].relabelled
            critic_fit.iteration(
                [*map(relabelled, newest)],
                [[*map(relabelled, part)] for part in earlier],
                [*map(relabelled, logs)],
            )

    class Improve:
        def iteration(self, iteration: int, newest: Any, logs: Any) -> int:
            relabelled = model[0].relabelled
            return improvement.iteration(iteration, [*map(relabelled, newest)], [*map(relabelled, logs)])

    loop.critic_fit = Evaluate()  # type: ignore[assignment]
    loop.improvement = Improve()  # type: ignore[assignment]


#: What an advantage given from outside needs: no value head, no GAE.
_GIVEN: Final = ("policy.gae_lambda=1", "policy.value_coefficient=0")

METHODS: Final[dict[str, Method]] = {
    "iterative-ppo": Method(passes="policy.rounds"),
    "trajectory-ppo": Method(trajectory_ppo),
    "grpo": Method(grpo, (*_GIVEN, "policy.whiten=false")),
    "turn-ppo": Method(turn_ppo, _GIVEN),
    "filtered-cloning": Method(filtered_cloning),
    "archer": Method(archer, _GIVEN, passes="policy.rounds"),
    "offline": Method(passes="policy.rounds", online=False),
    "next-message": Method(next_message, passes="policy.rounds"),
}
