"""Packed trees: what a response gets in a shared row is what it would get in a row of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.logprobs import response_logprobs
from lightning_iterppo.models.tree import ROOT, Segment, TokenTree, collate_trees

Make = Callable[..., LanguageModel]


def a_branching_tree() -> TokenTree:
    """Two turns; the first state has three responses, the second hangs on one of them and has two."""
    tree = TokenTree()
    state = tree.add([3, 6, 7, 8], ROOT)
    sent = tree.add([9, 10, 1], state, action=True)
    tree.add([11], state, action=True)
    tree.add([12, 13, 14, 15, 1], state, action=True)
    following = tree.add([3, 20, 4], sent)
    tree.add([21, 1], following, action=True)
    tree.add([22, 23, 24], following, action=True)
    return tree


def a_short_tree() -> TokenTree:
    tree = TokenTree()
    state = tree.add([3, 30], ROOT)
    tree.add([31, 1], state, action=True)
    tree.add([32, 33, 1], state, action=True)
    return tree


def a_chain() -> TokenTree:
    tree = TokenTree()
    state = tree.add([3, 6, 7], ROOT)
    action = tree.add([9, 10], state, action=True)
    following = tree.add([1, 3, 20], action)
    tree.add([21, 22, 23, 1], following, action=True)
    return tree


@torch.no_grad()
def plain_hidden(model: LanguageModel, token_ids: list[int]) -> Tensor:
    """Last hidden states of one row by itself, (tokens, hidden)."""
    hidden: Tensor = model.trunk(input_ids=torch.tensor([token_ids])).last_hidden_state
    return hidden[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_response_of_a_packed_row_is_as_in_a_row_of_its_own(make_language_model: Make, attention: str) -> None:
    model = make_language_model()
    model.causal_lm.set_attn_implementation(attention)
    trees = [a_short_tree(), a_branching_tree()]
    batch = collate_trees(trees, pad_token_id=0)
    with torch.no_grad():
        hidden = model.hidden(batch)
        logprobs, _, predicting = response_logprobs(hidden, batch, model.logits)
    responses = [(row, tree, segment) for row, tree in enumerate(trees) for segment in tree.actions]
    assert batch.action_rows.tolist() == [row for row, _, _ in responses]
    for index, (row, tree, segment) in enumerate(responses):
        path = tree.path(segment)
        tokens = list(tree.segments[segment].token_ids)
        count, start = len(tokens), len(path) - len(tokens)
        alone = plain_hidden(model, path)
        own = hidden[row, batch.action_positions[index, :count]]
        torch.testing.assert_close(own, alone[start:], atol=1e-5, rtol=0)
        torch.testing.assert_close(predicting[index, :count], alone[start - 1 : -1], atol=1e-5, rtol=0)
        torch.testing.assert_close(hidden[row, batch.last_positions[index]], alone[-1], atol=1e-5, rtol=0)
        expected = model.logits(alone[start - 1 : -1]).log_softmax(-1)[torch.arange(count), torch.tensor(tokens)]
        torch.testing.assert_close(logprobs[index, :count], expected.detach(), atol=1e-5, rtol=0)
        assert batch.action_tokens[index, :count].tolist() == tokens
        assert batch.action_mask[index].tolist() == [True] * count + [False] * (5 - count)
        assert (logprobs[index, count:] == 0).all()


def test_a_chain_needs_no_mask_and_computes_the_same_with_one(make_language_model: Make) -> None:
    model = make_language_model()
    shorter = TokenTree([Segment((3, 6), ROOT), Segment((7, 1), 0, action=True)])
    chains = collate_trees([a_chain(), shorter], pad_token_id=0)
    assert chains.attention_mask is None
    width = chains.input_ids.shape[1]
    mask = torch.ones(width, width, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    with torch.no_grad():
        without = response_logprobs(model.hidden(chains), chains, model.logits)[0]
        masked = response_logprobs(model.hidden(replace(chains, attention_mask=mask)), chains, model.logits)[0]
        beside_a_tree = collate_trees([a_chain(), shorter, a_branching_tree()], pad_token_id=0)
        assert beside_a_tree.attention_mask is not None
        packed = response_logprobs(model.hidden(beside_a_tree), beside_a_tree, model.logits)[0]
    torch.testing.assert_close(without, masked, atol=1e-5, rtol=0)
    torch.testing.assert_close(packed[:3, :4], without, atol=1e-5, rtol=0)


def test_padding_is_nobodys(make_language_model: Make) -> None:
    model = make_language_model()
    batch = collate_trees([a_short_tree(), a_branching_tree()], pad_token_id=0)
    other = replace(batch, input_ids=batch.input_ids.clone())
    other.input_ids[0, len(a_short_tree()) :] = 40
    with torch.no_grad():
        first, second = model.hidden(batch), model.hidden(other)
    assert torch.isfinite(first).all()
    short = len(a_short_tree())
    torch.testing.assert_close(first[0, :short], second[0, :short], atol=0, rtol=0)


def test_positions_count_along_the_path() -> None:
    batch = collate_trees([a_branching_tree()], pad_token_id=0)
    expected = [0, 1, 2, 3, 4, 5, 6, 4, 4, 5, 6, 7, 8, 7, 8, 9, 10, 11, 10, 11, 12]
    assert batch.position_ids[0].tolist() == expected


def test_a_token_looks_at_its_own_path_only() -> None:
    batch = collate_trees([a_short_tree()], pad_token_id=0)
    assert batch.attention_mask is not None
    # state 0-1, first response 2-3, second 4-6
    assert batch.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 1, 1, 1],
    ]


def test_paths_and_actions_in_order() -> None:
    tree = a_branching_tree()
    assert tree.actions == [1, 2, 3, 5, 6]
    assert tree.path(5) == [3, 6, 7, 8, 9, 10, 1, 3, 20, 4, 21, 1]
    assert tree.path(2) == [3, 6, 7, 8, 11]
    assert len(tree) == 21
    assert not tree.chain
    assert a_chain().chain


def test_a_copy_grows_alone_and_computes_anew() -> None:
    tree = a_short_tree()
    tree.features = (1, torch.zeros(7, 2))
    other = tree.copy()
    other.add([40], 0, action=True)
    assert len(tree.segments) == 3
    assert len(other.segments) == 4
    assert other.features is None


def test_a_batch_moves_whole() -> None:
    batch = collate_trees([a_short_tree()], pad_token_id=0).to("meta")
    tensors = [batch.input_ids, batch.position_ids, batch.attention_mask, batch.action_rows, batch.action_mask]
    assert all(tensor is not None and tensor.device.type == "meta" for tensor in tensors)


@pytest.mark.parametrize(
    ("token_ids", "parent", "action"), [([], ROOT, False), ([1], 5, False), ([1], -2, False), ([1], ROOT, True)]
)
def test_what_cannot_be_a_segment(token_ids: list[int], parent: int, action: bool) -> None:
    tree = TokenTree([Segment((1,), ROOT)])
    with pytest.raises(ValueError, match=r"segment|response"):
        tree.add(token_ids, parent, action=action)


def test_a_batch_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one tree"):
        collate_trees([], pad_token_id=0)


def test_what_leads_to_no_response_is_pruned() -> None:
    tree = TokenTree()
    state = tree.add([1, 2], ROOT)
    tree.add([3], state)  # said, but nothing asks how good it was
    edited = tree.add([4, 5], state)
    later = tree.add([6], edited)
    tree.add([7], later, action=True)
    tree.add([8], tree.add([9], later))
    found = tree.pruned()
    assert found.segments == [Segment((1, 2), ROOT), Segment((4, 5), 0), Segment((6,), 1), Segment((7,), 2, True)]
    assert found.path(3) == tree.path(4)
    assert len(tree.segments) == 7
