"""How much of what was once done the policy would still do: the ratios to other policies and to people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.models.language_model import POLICY, REFERENCE, LanguageModel
from lightning_iterppo.models.modes import evaluating
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.tree import TokenTree, collate_trees


@torch.no_grad()
def _passes(
    model: LanguageModel, trees: Sequence[TokenTree], variant: str, rows: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Some trees at a time: which, and of all their actions' tokens log-probability and mask, (actions, response)."""
    order = sorted(range(len(trees)), key=lambda index: len(trees[index]))
    with evaluating(model), model.using(variant), model.whole():
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            batch = collate_trees([trees[index] for index in chosen], model.pad_token_id).to(model.device)
            yield chosen, model.response_logprobs(model.hidden(batch), batch)[0], batch.action_mask


def action_logprobs(model: LanguageModel, trees: Sequence[TokenTree], variant: str, *, rows: int) -> list[list[float]]:
    """Log-probability of every action of every tree under a variant: nats, in the order of ``tree.actions``."""
    found: list[list[float]] = [[] for _ in trees]
    for chosen, logprobs, mask in _passes(model, trees, variant, rows):
        sums = iter((logprobs * mask).sum(dim=1).tolist())
        for index in chosen:
            found[index] = [next(sums) for _ in trees[index].actions]
    return found


def token_logprobs(
    model: LanguageModel, trees: Sequence[TokenTree], variant: str, *, rows: int
) -> list[list[tuple[float, ...]]]:
    """The same of every token of every action."""
    found: list[list[tuple[float, ...]]] = [[] for _ in trees]
    for chosen, logprobs, mask in _passes(model, trees, variant, rows):
        lengths = mask.sum(dim=1).tolist()
        actions = iter([tuple(row[:length]) for row, length in zip(logprobs.tolist(), lengths, strict=True)])
        for index in chosen:
            found[index] = [next(actions) for _ in trees[index].actions]
    return found


def action_log_ratios(
    model: LanguageModel, renderer: ChatRenderer, conversations: Sequence[Conversation], *, rows: int = 8
) -> dict[str, list[float]]:
    """Log π(a_t | s_t) - log μ(a_t | s_t) for every turn of conversations that another policy μ had, by conversation.

    μ is known where the log-probabilities were kept; people, and policies of which nothing is known, are taken for the
    reference, which was made to imitate them.

    Args:
        model: its ``policy`` variant is π.
        renderer: the model's chat template.
        conversations: of other policies, or of people.
        rows: conversations a forward pass.
    """
    if not conversations:
        return {}
    trees = [renderer.render(conversation).tree for conversation in conversations]
    own = action_logprobs(model, trees, POLICY, rows=rows)
    known = [[sum(s.logprobs) if (s := t.suggestion) and s.logprobs else None for t in c.turns] for c in conversations]
    unknown = [index for index, turns in enumerate(known) if None in turns]
    imitated = dict(
        zip(unknown, action_logprobs(model, [trees[i] for i in unknown], REFERENCE, rows=rows), strict=True)
    )
    found = {}
    for index, conversation in enumerate(conversations):
        behaviour = [imitated[index][turn] if value is None else value for turn, value in enumerate(known[index])]
        found[conversation.id] = [mine - other for mine, other in zip(own[index], behaviour, strict=True)]
    return found
