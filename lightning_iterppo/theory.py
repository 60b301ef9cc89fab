"""The reduction on small exact problems: enumerate, evaluate, improve. Everything is float64 and nothing is sampled.

A problem is small enough to list all its states and responses. Every quantity that the method estimates is then a sum:
the value Q of a response, the states that a policy visits, the improved policy, and both policy gradients that the
theorem of Jiang et al. (2025, arXiv 2511.21638) says are the same.

Shapes: T turns, S states, A responses, N prefixes of responses, K tokens. A state stands for a history; turn t has its
own S of them, so a state is (t, s). Tables over responses are (T, S, A), over states (T, S).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = [
    "Problem",
    "ResponseTree",
    "Values",
    "evaluate",
    "improve",
    "improvement_bound",
    "multi_turn_gradient",
    "occupancy",
    "of_histories",
    "optimum",
    "outcome_problem",
    "random_problem",
    "single_turn_gradient",
]


@dataclass(frozen=True)
class ResponseTree:
    """All responses over a vocabulary: token sequences that end with the end token, or at the longest length.

    Args:
        tokens: K, how many tokens there are; token 0 ends a response.
        length: most tokens of a response, the end token included.
    """

    tokens: int
    length: int
    responses: tuple[tuple[int, ...], ...] = field(init=False)
    prefixes: tuple[tuple[int, ...], ...] = field(init=False)
    node: Tensor = field(init=False, repr=False)
    token: Tensor = field(init=False, repr=False)
    mask: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.tokens < 2 or self.length < 1:
            raise ValueError(f"there must be at least 2 tokens and 1 position, found {self.tokens} and {self.length}")
        responses: list[tuple[int, ...]] = []
        prefixes: list[tuple[int, ...]] = []
        waiting: list[tuple[int, ...]] = [()]
        while waiting:
            prefix = waiting.pop(0)
            prefixes.append(prefix)
            for word in range(self.tokens):
                longer = (*prefix, word)
                (responses if word == 0 or len(longer) == self.length else waiting).append(longer)
        index = {prefix: i for i, prefix in enumerate(prefixes)}
        shape = (len(responses), self.length)
        node, token = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.bool)
        for i, response in enumerate(responses):
            for j, word in enumerate(response):
                node[i, j], token[i, j], mask[i, j] = index[response[:j]], word, True
        for name, value in (("responses", tuple(responses)), ("prefixes", tuple(prefixes))):
            object.__setattr__(self, name, value)
        for name, tensor in (("node", node), ("token", token), ("mask", mask)):
            object.__setattr__(self, name, tensor)

    def policy(self, logits: Tensor) -> Tensor:
        """π(a | s), (…, A), of a token-level policy's logits (…, N, K): the product of its token probabilities."""
        logprobs = logits.log_softmax(-1)[..., self.node, self.token]
        return (logprobs * self.mask).sum(-1).exp()


@dataclass(frozen=True)
class Problem:
    """A conversation that can be enumerated.

    Args:
        tree: the responses.
        start: probability of each state at the first turn, (S,).
        reward: expected reward of *sending* a message in a state, (T, S, A).
        transition: probability of the next turn's state after sending it, (T, S, A, S); what is missing to 1 is the
            probability that the conversation ends. After the last turn it always ends.
        gamma: discount from turn to turn.
        person: probability that a person sends a message when another (or the same) one is suggested,
            (T, S, A suggested, A sent); None sends every suggestion as it is.
    """

    tree: ResponseTree
    start: Tensor
    reward: Tensor
    transition: Tensor
    gamma: float = 1.0
    person: Tensor | None = None

    def of_suggestions(self) -> Problem:
        """The same problem with the person as a part of the customer: its actions are the suggestions."""
        if self.person is None:
            return self
        return replace(
            self,
            reward=torch.einsum("tsam,tsm->tsa", self.person, self.reward),
            transition=torch.einsum("tsam,tsmz->tsaz", self.person, self.transition),
            person=None,
        )


@dataclass(frozen=True)
class Values:
    """The values of a policy.

    Args:
        q: Q(s, a) of suggesting a response and going on with the policy, (T, S, A).
        v: V(s), the mean of Q under the policy, (T, S).
        sent: Q of *sending* a message, whoever wrote it, (T, S, A); equal to q where no person stands between.
    """

    q: Tensor
    v: Tensor
    sent: Tensor


def evaluate(problem: Problem, policy: Tensor) -> Values:
    """Exact values of a policy (T, S, A), by going back from the last turn; differentiable in the policy."""
    turns = problem.reward.shape[0]
    following = torch.zeros_like(problem.start)
    q: list[Tensor] = []
    v: list[Tensor] = []
    sent: list[Tensor] = []
    for turn in reversed(range(turns)):
        of_message = problem.reward[turn] + problem.gamma * problem.transition[turn] @ following
        of_suggestion = of_message
        if problem.person is not None:
            of_suggestion = torch.einsum("sam,sm->sa", problem.person[turn], of_message)
        following = (policy[turn] * of_suggestion).sum(-1)
        q.append(of_suggestion)
        v.append(following)
        sent.append(of_message)
    return Values(*(torch.stack(part[::-1]) for part in (q, v, sent)))


def occupancy(problem: Problem, policy: Tensor) -> Tensor:
    """d(t, s) = γ^t P(the conversation is in state s at turn t) under a policy, (T, S)."""
    problem = problem.of_suggestions()
    here, found = problem.start, []
    for turn in range(problem.reward.shape[0]):
        found.append(here)
        here = problem.gamma * torch.einsum("s,sa,saz->z", here, policy[turn], problem.transition[turn])
    return torch.stack(found)


def improve(policy: Tensor, q: Tensor, beta: float) -> Tensor:
    """The policy that maximises E_π[Q(s, a)] − β KL(π ‖ π_k) in every state: π_k exp(Q / β), normalised, (T, S, A).

    β = 0 is the greedy policy, whatever π_k is; it shares a state between responses that are equally good.
    """
    if beta < 0:
        raise ValueError(f"beta must not be negative, found {beta}")
    if beta == 0:
        chosen = (q == q.max(-1, keepdim=True).values).to(q.dtype)
        return chosen / chosen.sum(-1, keepdim=True)
    return (policy.log() + q / beta).softmax(-1)


def optimum(problem: Problem) -> Values:
    """The values of an optimal policy."""
    problem = problem.of_suggestions()
    policy = torch.zeros_like(problem.reward)
    for turn in reversed(range(problem.reward.shape[0])):
        best = evaluate(problem, policy).q[turn].argmax(-1)
        policy[turn] = torch.nn.functional.one_hot(best, policy.shape[-1]).to(policy.dtype)
    return evaluate(problem, policy)


def improvement_bound(problem: Problem, policy: Tensor, improved: Tensor, beta: float, epsilon: float) -> Tensor:
    """The least that V of an improved policy can be above V of the policy when its Q was wrong by at most ε, (T, S).

    Let π' be `improve` of π with a Q̂ that is nowhere further than ε from Q. In a state, log(π'/π) = Q̂/β − log Z gives
    E_π'[Q̂] − E_π[Q̂] = β (KL(π' ‖ π) + KL(π ‖ π')), and replacing Q̂ by Q costs at most 2 ε TV(π', π). The performance
    difference lemma (Kakade and Langford 2002, lemma 6.1) adds that up over the states that π' visits from there on:

        V^π'(s) − V^π(s) ≥ E_π'[Σ_i γ^i (β (KL(π' ‖ π) + KL(π ‖ π')) − 2 ε TV(π', π))(s_i)] ≥ −2 ε Σ_i γ^i.
    """
    difference = improved - policy
    jeffreys = (difference * (improved.log() - policy.log())).sum(-1)
    variation = difference.abs().sum(-1) / 2
    gain = beta * jeffreys - 2 * epsilon * variation
    # As if that were the reward of a state, whatever is suggested there.
    earned = replace(problem.of_suggestions(), reward=gain.unsqueeze(-1).expand_as(problem.reward))
    return evaluate(earned, improved).v


def multi_turn_gradient(problem: Problem, logits: Tensor) -> Tensor:
    """Gradient of the expected discounted return of a whole conversation, in the token-level policy's logits.

    It differentiates the exact value, through every turn, and knows of no theorem.

    Args:
        problem: the conversation.
        logits: of the policy, (T, S, N, K).
    """
    leaf = logits.detach().clone().requires_grad_(True)
    expected = problem.start @ evaluate(problem, problem.tree.policy(leaf)).v[0]
    (gradient,) = torch.autograd.grad(expected, leaf)
    return gradient


def single_turn_gradient(problem: Problem, logits: Tensor, reward: Tensor) -> Tensor:
    """Token-level policy gradient of single-turn RLHF in the logits, with a given reward of whole responses.

    Prompts come with the probabilities with which the policy visits the states; a response is an episode of tokens
    whose only reward is at its end. By the policy gradient theorem for that episode, the gradient of the logit of token
    k after prefix n in state s is d(s) P(n | s) π(k | n) (E[reward | n, k] − E[reward | n]).

    Args:
        problem: the conversation, for the states that are visited.
        logits: of the policy, (T, S, N, K).
        reward: of a response in a state, (T, S, A).
    """
    tree = problem.tree
    policy = tree.policy(logits)
    weighted = policy * reward
    shape = (*logits.shape[:2], len(tree.prefixes) * tree.tokens)
    slot = (tree.node * tree.tokens + tree.token)[tree.mask]  # (entries,)
    owner = torch.arange(len(tree.responses)).unsqueeze(-1).expand_as(tree.node)[tree.mask]
    reach = torch.zeros(shape, dtype=logits.dtype).index_add(2, slot, policy[..., owner]).view_as(logits)
    earned = torch.zeros(shape, dtype=logits.dtype).index_add(2, slot, weighted[..., owner]).view_as(logits)
    # reach is P(n | s) π(k | n), earned is that times E[reward | n, k]; sums over k are of the prefix alone.
    of_prefix = earned.sum(-1, keepdim=True) / reach.sum(-1, keepdim=True)
    return occupancy(problem, policy)[..., None, None] * (earned - reach * of_prefix)


def random_problem(
    seed: int,
    *,
    tokens: int = 3,
    length: int = 2,
    turns: int = 3,
    states: int = 3,
    gamma: float = 1.0,
    person: bool = False,
) -> Problem:
    """A random conversation: every message leads anywhere, ends the conversation sometimes, and earns something.

    With ``person``, a person accepts a suggestion, edits it or rejects it for one of their own, with probabilities that
    depend on the state and the suggestion.
    """
    generator = torch.Generator().manual_seed(seed)
    tree = ResponseTree(tokens, length)
    responses = len(tree.responses)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def distributions(*shape: int) -> Tensor:
        drawn = uniform(*shape) ** 3  # far from uniform
        return drawn / drawn.sum(-1, keepdim=True)

    transition = distributions(turns, states, responses, states + 1)[..., :states].clone()
    transition[-1] = 0
    kernel = None
    if person:
        accepted = uniform(turns, states, responses, 1)
        kernel = accepted * torch.eye(responses, dtype=torch.float64) + (1 - accepted) * distributions(
            turns, states, responses, responses
        )
    return Problem(
        tree=tree,
        start=distributions(states),
        reward=uniform(turns, states, responses) - 0.5,
        transition=transition,
        gamma=gamma,
        person=kernel,
    )


def outcome_problem(seed: int, *, tokens: int = 3, length: int = 2, turns: int = 2, states: int = 3) -> Problem:
    """A random conversation with a binary outcome, which ends when it is paid; the last turn pays most often.

    Rewards are probabilities, and Q is the probability that the conversation is paid from here on.
    """
    drawn = random_problem(seed, tokens=tokens, length=length, turns=turns, states=states)
    reward = drawn.reward + 0.5
    reward[:-1] *= 0.3  # so that an earlier turn pays by where it leads more than by itself
    return replace(drawn, reward=reward, transition=drawn.transition * (1 - reward).unsqueeze(-1))


def of_histories(problem: Problem) -> Problem:
    """The same conversation with whole histories as states, so that any policy of a language model is a table.

    At turn t the history (s_0, a_0, s_1, …, s_t) is state ((s_0 A + a_0) S + s_1) A + … + s_t; the table is as large as
    the last turn needs, and the states that an earlier turn does not have are never reached.
    """
    problem = problem.of_suggestions()
    turns, states, responses = problem.reward.shape
    size = states * (responses * states) ** (turns - 1)
    reward = torch.zeros(turns, size, responses, dtype=problem.reward.dtype)
    transition = torch.zeros(turns, size, responses, size, dtype=problem.reward.dtype)
    start = torch.zeros(size, dtype=problem.start.dtype)
    start[:states] = problem.start
    for turn in range(turns):
        count = states * (responses * states) ** turn
        history = torch.arange(count)
        state = history % states
        reward[turn, :count] = problem.reward[turn][state]
        if turn + 1 < turns:
            following = (history[:, None, None] * responses + torch.arange(responses)[:, None]) * states
            following = following + torch.arange(states)
            rows = history[:, None, None].expand_as(following)
            columns = torch.arange(responses)[:, None].expand_as(following)
            transition[turn, rows, columns, following] = problem.transition[turn][state]
    return replace(problem, start=start, reward=reward, transition=transition)
