"""The methods that are compared: Iterative PPO as the library has it, and others in its place inside the same loop.

Every method has the same warm start, model, optimiser, sampling and number of conversations. A method replaces what an
iteration does with its conversations: the evaluate phase (`critic_fit`) and the improve phase (`improvement`). The size
of a step (``policy.learning_rate``) and how often the samples are gone through (``policy.ppo_epochs``, or
``policy.rounds`` where fresh responses are sampled) are tuned for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from archer import archer
from parts import LoggedImprovement, NoCritic, marked, targets

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.customers import Customer, CustomerReply, Message
from lightning_iterppo.data.turns import LoggedTree, TurnDataModule
from lightning_iterppo.functional.logistic import fit_logistic
from lightning_iterppo.loop import IterativePPOLoop
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
            tools.fit(self.loop.critic, targets(self.loop, conversations, trees), settings.critic_epochs)


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

    def iteration(
        self,
        iteration: int,
        newest: Sequence[Conversation],
        earlier: Sequence[Sequence[Conversation]],
        logs: Sequence[Conversation],
    ) -> int:
        """Imitates the best of all conversations so far."""
        loop = self.loop
        known = [c for part in (logs, *earlier, newest) for c in part]
        outcomes = sorted((c.outcome or 0.0 for c in known), reverse=True)
        bar = max(outcomes[len(outcomes) // 4], 1e-9)
        chosen = [c for c in known if (c.outcome or 0.0) >= bar]
        if not chosen:  # nothing went well, so there is nothing to imitate
            return 0
        self.imitate(chosen, loop.settings.ppo_epochs, loop.tools.seed_of(f"imitation-{iteration}"))
        return 0

    def imitate(self, chosen: Sequence[Conversation], epochs: int, seed: int) -> None:
        """Fits the policy to the agent's messages of some conversations."""
        loop = self.loop
        cloning = WarmStart(loop.language_model, learning_rate=loop.policy.learning_rate)
        data = TurnDataModule(chosen, renderer=loop.renderer, batch_size=loop.settings.policy_batch, seed=seed)
        loop.tools.fit(cloning, data, epochs)


def filtered_cloning(loop: IterativePPOLoop) -> None:
    """Filtered behaviour cloning: imitates the conversations that went best."""
    loop.critic_fit = NoCritic()  # type: ignore[assignment]
    loop.improvement = Imitation(loop)  # type: ignore[assignment]


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
        def iteration(self, iteration: int, newest: Any, earlier: Any, logs: Any) -> int:
            relabelled = model[0].relabelled
            past = [[*map(relabelled, part)] for part in earlier]
            return improvement.iteration(iteration, [*map(relabelled, newest)], past, [*map(relabelled, logs)])

    loop.critic_fit = Evaluate()  # type: ignore[assignment]
    loop.improvement = Improve()  # type: ignore[assignment]


#: Iterative PPO on all that was observed: logged actions earn their λ-return less the mean Q of the responses to their
#: state and are moved by every round; fresh responses count as much as Q explains.
_OBSERVED: Final = ("policy=observed",)
#: A value head and GAE: the baseline of rewards that come without one. All others bring theirs, or need none.
_VALUE_HEAD: Final = ("policy.gae_lambda=0.95", "policy.value_coefficient=0.5")

METHODS: Final[dict[str, Method]] = {
    "iterative-ppo": Method(overrides=_OBSERVED, passes="policy.rounds"),
    "trajectory-ppo": Method(trajectory_ppo, _VALUE_HEAD),
    "grpo": Method(grpo, ("policy.whiten=false",)),
    "turn-ppo": Method(turn_ppo),
    "filtered-cloning": Method(filtered_cloning),
    "archer": Method(archer, passes="policy.rounds"),
    "offline": Method(overrides=(*_OBSERVED, "policy.log_conversations=0"), passes="policy.rounds", online=False),
    "next-message": Method(next_message, _OBSERVED, passes="policy.rounds"),
}
