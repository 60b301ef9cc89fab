"""Log-probabilities in chunks: the same numbers and gradients as all at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_iterppo.models import logprobs as module
from lightning_iterppo.models.logprobs import response_logprobs
from lightning_iterppo.models.tree import ROOT, TokenTree, TreeBatch, collate_trees

VOCABULARY, HIDDEN = 11, 4


def a_batch() -> TreeBatch:
    first, second = TokenTree(), TokenTree()
    first.add([1, 2], first.add([5, 6, 7], ROOT), action=True)
    first.add([3, 4, 5, 6], 0, action=True)
    second.add([9], second.add([8], ROOT), action=True)
    return collate_trees([first, second], pad_token_id=0)


def with_gradients(batch: TreeBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, batch.input_ids.shape[1], HIDDEN, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).requires_grad_()
    found, entropies, _ = response_logprobs(hidden, batch, lambda states: states @ weight.T)
    (found.sum() + 0.3 * entropies.sum()).backward()
    assert hidden.grad is not None and weight.grad is not None
    return found.detach(), entropies.detach(), hidden.grad, weight.grad


def test_they_are_the_log_softmax_at_the_tokens() -> None:
    batch = a_batch()
    hidden = torch.randn(2, batch.input_ids.shape[1], HIDDEN, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(1))
    found, entropies, predicting = response_logprobs(hidden, batch, lambda states: states @ weight.T)
    table = (hidden @ weight.T).log_softmax(-1)
    # First row: state at 0-2, a response at 3-4, another at 5-8. Second row: state at 0, a response at 1.
    where = [[(0, 2, 1), (0, 3, 2)], [(0, 2, 3), (0, 5, 4), (0, 6, 5), (0, 7, 6)], [(1, 0, 9)]]
    for index, tokens in enumerate(where):
        for place in range(4):
            if place >= len(tokens):
                assert found[index, place] == 0
                assert entropies[index, place] == 0
                continue
            row, position, token = tokens[place]
            torch.testing.assert_close(found[index, place], table[row, position, token])
            expected = -(table[row, position].exp() * table[row, position]).sum()
            torch.testing.assert_close(entropies[index, place], expected)
            assert torch.equal(predicting[index, place], hidden[row, position])


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_the_size_of_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    batch = a_batch()
    whole = with_gradients(batch)
    monkeypatch.setattr(module, "CHUNK", chunk)
    for one, other in zip(whole, with_gradients(batch), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("words", [1, 4, 100])
@pytest.mark.parametrize("entropy", [True, False])
def test_a_frozen_head_gives_the_same_numbers_and_gradients(
    monkeypatch: pytest.MonkeyPatch, chunk: int, words: int, entropy: bool
) -> None:
    monkeypatch.setattr(module, "FROZEN_CHUNK", chunk)
    monkeypatch.setattr(module, "VOCABULARY_CHUNK", words)
    batch = a_batch()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, batch.input_ids.shape[1], HIDDEN, generator=generator)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    found = []
    for head in (weight, None):
        hidden = start.clone().requires_grad_()
        logprobs, entropies, _ = response_logprobs(
            hidden, batch, lambda states: states @ weight.T, frozen_head=head, entropy_gradient=entropy
        )
        factors = torch.arange(logprobs.numel(), dtype=logprobs.dtype).reshape(logprobs.shape)
        ((factors * logprobs).sum() + (0.3 * factors * entropies).sum() * entropy).backward()
        assert hidden.grad is not None
        found.append((logprobs.detach(), entropies.detach(), hidden.grad))
    for frozen, plain in zip(*found, strict=True):
        torch.testing.assert_close(frozen, plain, rtol=1e-5, atol=1e-5)


def test_without_an_entropy_gradient_there_is_none_to_mistake() -> None:
    batch = a_batch()
    hidden = torch.randn(2, batch.input_ids.shape[1], HIDDEN).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN)
    _, entropies, _ = response_logprobs(
        hidden, batch, lambda states: states @ weight.T, frozen_head=weight, entropy_gradient=False
    )
    assert not entropies.requires_grad


def test_no_more_than_a_chunk_of_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = a_batch()
    monkeypatch.setattr(module, "CHUNK", 3)
    sizes: list[int] = []

    def logits(states: Tensor) -> Tensor:
        sizes.append(len(states))
        return states.repeat(1, 3)

    response_logprobs(torch.zeros(2, batch.input_ids.shape[1], HIDDEN), batch, logits)
    assert sizes == [3, 3, 1]  # seven response tokens; states and padding are never scored


def test_rows_without_a_response() -> None:
    tree = TokenTree()
    tree.add([1, 2], ROOT)
    batch = collate_trees([tree], pad_token_id=0)
    found, entropies, _ = response_logprobs(torch.zeros(1, 2, HIDDEN), batch, lambda states: states)
    assert found.numel() == 0
    assert entropies.numel() == 0
