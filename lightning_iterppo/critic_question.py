"""A question that the critic reads after every message: what a conversation comes to stands clearer in its words.

A language model that reads what was said has the next words in mind. Asked how the conversation will end, it has that
in mind while it reads the question, whose hidden states a linear head can then read. An answer is never sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_iterppo.models.tree import TreeBatch, collate_trees


@dataclass(frozen=True, slots=True)
class Asked:
    """Conversations with the question after each action, as a branch that nothing else sees.

    Args:
        batch: the rows; the actions are those of the rows without the question, in the same order.
        after: where the tokens of the question after each action stand in its row, (batch, question); None if there is
            no question.
        before: the same of the question in the state before it; None if it was not asked there.
    """

    batch: TreeBatch
    after: Tensor | None = None
    before: Tensor | None = None


def ask(batch: TreeBatch, question: Sequence[int], pad_token_id: int, *, states: bool = False) -> Asked:
    """Asks after every action.

    Args:
        batch: rows of conversations.
        question: its tokens; without any the rows stay as they are.
        pad_token_id: fills up rows.
        states: ask in the states before the actions too.
    """
    if not question:
        return Asked(batch)
    trees, after, before = [], [], []
    for tree in batch.trees:
        asked, stop = tree.copy(), len(tree)
        for action in tree.actions:
            asked.add(question, action)
            after.append(stop)
            stop += len(question)
            if states:
                asked.add(question, tree.segments[action].parent)
                before.append(stop)
                stop += len(question)
        trees.append(asked)
    device = batch.input_ids.device
    places = torch.arange(len(question), device=device)
    found = collate_trees(trees, pad_token_id, stand_ins=batch.stand_ins).to(device)
    return Asked(
        found,
        torch.tensor(after, dtype=torch.long, device=device)[:, None] + places,
        torch.tensor(before, dtype=torch.long, device=device)[:, None] + places if states else None,
    )
