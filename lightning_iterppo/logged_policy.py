"""Logged conversations as the tables of `evaluation.off_policy` and `evaluation.fitted_q`, by a language model.

Q is linear in what the policy's own trunk, as it is, says of a response: the features that the critic's head sees. The
mean over the policy's responses is that of a few fresh ones, sampled in every logged state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lightning_iterppo.behaviour import action_logprobs
from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.critic import QCritic
from lightning_iterppo.data.turns import TurnBatch
from lightning_iterppo.errors import LogDataError
from lightning_iterppo.evaluation.fitted_q import FeatureTurns
from lightning_iterppo.evaluation.off_policy import Array, LoggedTurns
from lightning_iterppo.generation.engine import Engine
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models.language_model import CRITIC, POLICY, LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer, RenderedConversation
from lightning_iterppo.models.tree import TokenTree, collate_trees


@dataclass(frozen=True)
class UsableLogs:
    """What of logs can be weighted, and what was left out.

    Args:
        conversations: those whose outcome is known, and every suggestion's log-probabilities.
        censored: how many have an unknown outcome.
        unknown_behaviour: how many of the others have a suggestion of which nobody kept how likely it was.
    """

    conversations: list[Conversation]
    censored: int
    unknown_behaviour: int

    @property
    def turns(self) -> int:
        """Turns in all."""
        return sum(len(c.turns) for c in self.conversations)

    @property
    def chosen_turns(self) -> int:
        """Turns where the agent chose: a suggestion was made, whatever a person did with it."""
        return sum(turn.suggestion is not None for c in self.conversations for turn in c.turns)


def usable(conversations: Sequence[Conversation]) -> UsableLogs:
    """Sorts out what cannot be weighted."""
    known = [c for c in conversations if c.outcome is not None]
    kept = [c for c in known if all(map(_behaviour_known, c.turns))]
    return UsableLogs(kept, len(conversations) - len(known), len(known) - len(kept))


def _behaviour_known(turn: Turn) -> bool:
    made = turn.suggestion
    return made is None or (len(made.logprobs) == len(made.token_ids) > 0)


def check_tokens(conversations: Sequence[Conversation], renderer: ChatRenderer) -> None:
    """The tokens of every suggestion must spell its text, or another model's tokenizer made them.

    Raises:
        LogDataError: they do not.
    """
    words = len(renderer.tokenizer)
    for conversation in conversations:
        for number, turn in enumerate(conversation.turns, start=1):
            made = turn.suggestion
            if made is None:
                continue
            if max(made.token_ids) >= words or renderer.decode(made.token_ids) != made.text.strip():
                raise LogDataError(
                    f"conversation {conversation.id!r}, turn {number}: the suggestion's token_ids do not spell its "
                    "text with this recipe's tokenizer: take the recipe whose model made these logs"
                )


@torch.no_grad()
def read_logs(
    model: LanguageModel,
    critic: QCritic,
    renderer: ChatRenderer,
    conversations: Sequence[Conversation],
    *,
    engine: Engine,
    max_new_tokens: int,
    responses: int,
    rows: int,
) -> tuple[LoggedTurns, FeatureTurns]:
    """The tables of a policy and of logs.

    Args:
        model: its ``policy`` variant is the policy in question. Its ``critic`` variant becomes the same.
        critic: whose head says what of a hidden state counts; its weights are not used.
        renderer: the model's chat template.
        conversations: what `usable` kept.
        engine: samples from the policy.
        max_new_tokens: length at which a fresh response is cut, as the logged ones were.
        responses: fresh ones in every state where the agent chose.
        rows: conversations a forward pass.
    """
    rendered = [renderer.render(conversation) for conversation in conversations]
    chosen = [[turn.suggestion is not None for turn in c.turns] for c in conversations]
    own = action_logprobs(model, [each.tree for each in rendered], POLICY, rows=rows)
    ratios = [
        [mine - sum(t.suggestion.logprobs) if t.suggestion else 0.0 for mine, t in zip(logprobs, c.turns, strict=True)]
        for logprobs, c in zip(own, conversations, strict=True)
    ]
    rewards = [[turn.reward for turn in c.turns] for c in conversations]
    trees = _with_fresh(rendered, chosen, engine, Sampling(1.0, 1.0, max_new_tokens), responses)
    model.copy(POLICY, CRITIC)
    done, expected = _features(critic, trees, chosen, responses, renderer.pad_token_id, rows)
    turns = FeatureTurns(
        done=done,
        expected=expected,
        rewards=np.array([each for row in rewards for each in row]),
        conversations=np.repeat(np.arange(len(conversations)), [len(row) for row in rewards]),
    )
    return LoggedTurns.of_rows(ratios, rewards), turns


def _with_fresh(
    rendered: Sequence[RenderedConversation],
    chosen: Sequence[Sequence[bool]],
    engine: Engine,
    sampling: Sampling,
    responses: int,
) -> list[TokenTree]:
    """The trees with fresh responses behind their own actions, ``responses`` for each turn where the agent chose."""
    states = [[s for s, own in zip(r.states, row, strict=True) if own] for r, row in zip(rendered, chosen, strict=True)]
    prompts = [r.tree.path(s) for r, row in zip(rendered, states, strict=True) for s in row for _ in range(responses)]
    said = iter(engine.generate(prompts, sampling))
    trees = []
    for each, row in zip(rendered, states, strict=True):
        tree = each.tree.copy()
        for state in row:
            for _ in range(responses):
                tree.add(next(said).token_ids, state, action=True)
        trees.append(tree)
    return trees


def _features(
    critic: QCritic,
    trees: Sequence[TokenTree],
    chosen: Sequence[Sequence[bool]],
    responses: int,
    pad_token_id: int,
    rows: int,
) -> tuple[Array, Array]:
    done: list[Array] = []
    expected: list[Array] = []
    for start in range(0, len(trees), rows):
        batch = collate_trees(trees[start : start + rows], pad_token_id)
        nothing = torch.zeros(len(batch.action_rows))
        seen = critic.features([TurnBatch(batch, nothing, nothing)])
        values = iter(seen.values.double().numpy().astype(np.float64))
        for row in chosen[start : start + rows]:
            own = [next(values) for _ in row]
            fresh = [np.mean([next(values) for _ in range(responses)], axis=0) for each in row if each]
            drawn = iter(fresh)
            done += own
            expected += [next(drawn) if each else mine for each, mine in zip(row, own, strict=True)]
    return np.stack(done), np.stack(expected)
