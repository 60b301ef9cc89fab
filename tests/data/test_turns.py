"""Logged conversations as batches: whole conversations, known outcomes only, every one once."""

from __future__ import annotations

from collections import Counter

import pytest

from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.data.trees import LoggedTrees
from lightning_iterppo.data.turns import RandomBatches, TurnDataModule, split_conversations
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.scratch import make_scratch_tokenizer


@pytest.fixture
def renderer() -> ChatRenderer:
    return ChatRenderer(make_scratch_tokenizer(["hello", "red", "yes", "no"]))


def talk(name: str, outcome: float | None, turns: int = 2) -> Conversation:
    made = [Turn("hello", "red " * (index + 1)) for index in range(turns - 1)]
    return Conversation(name, (*made, Turn("yes", "no", reward=outcome or 0.0)), outcome=outcome)


def test_every_turn_has_its_return(renderer: ChatRenderer) -> None:
    (item,) = LoggedTrees([talk("a", 1.0, turns=3)], renderer, gamma=0.5)
    assert item.returns == [0.25, 0.5, 1.0]
    assert len(item.tree.actions) == 3


def test_turns_count_as_much_as_they_are_told(renderer: ChatRenderer) -> None:
    data = TurnDataModule([talk("a", 1.0), talk("b", 1.0)], renderer=renderer, weights={"b": [0.25, 0.5]})
    (batch,) = data.train_dataloader()
    assert sorted(weights.tolist() for weights in batch.weights.split(2)) == [[0.25, 0.5], [1.0, 1.0]]
    assert batch.returns.shape == batch.weights.shape == (4,)


def test_an_unknown_outcome_is_left_out_and_not_taken_for_a_zero(renderer: ChatRenderer) -> None:
    data = TurnDataModule([talk("a", None), talk("b", 0.0), talk("c", None)], [talk("d", None)], renderer=renderer)
    assert [item.returns for item in data.train_trees] == [[0.0, 0.0]]
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="known outcome"):
        TurnDataModule([talk("a", None)], renderer=renderer)


def test_conversations_are_split_whole_and_the_same_way_each_time() -> None:
    conversations = [talk(str(number), 1.0) for number in range(10)]
    train, held = split_conversations(conversations, 0.3, seed=5)
    assert (len(train), len(held)) == (7, 3)
    assert sorted(c.id for c in train + held) == sorted(c.id for c in conversations)
    assert split_conversations(conversations, 0.3, seed=5) == (train, held)
    assert split_conversations(conversations, 0.3, seed=6) != (train, held)


@pytest.mark.parametrize(("count", "fraction"), [(2, 0.2), (1, 0.5), (3, 0.9)])
def test_a_split_with_nothing_on_one_side(count: int, fraction: float) -> None:
    with pytest.raises(ValueError, match="hold out"):
        split_conversations([talk("a", 1.0)] * count, fraction, seed=0)


def test_every_item_comes_once_a_pass_in_random_batches() -> None:
    sampler = RandomBatches(22, 5, seed=1, passes=3)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 15
    assert Counter(index for batch in batches for index in batch) == dict.fromkeys(range(22), 3)
    assert max(map(len, batches)) == 5
    assert batches[:5] != batches[5:10]
    assert list(RandomBatches(22, 5, seed=1, passes=3)) == batches
    assert list(RandomBatches(22, 5, seed=2, passes=3)) != batches


def test_training_mixes_lengths_and_reading_does_not(renderer: ChatRenderer) -> None:
    talks = [talk(str(number), 1.0, turns=1 + number % 4) for number in range(16)]
    data = TurnDataModule(talks, renderer=renderer, batch_size=4, seed=1)
    read, trained = (
        [len({len(tree) for tree in batch.tree.trees}) for batch in loader]
        for loader in (data.reading_dataloader(), data.train_dataloader())
    )
    assert read == [1, 1, 1, 1]
    assert min(trained) > 1


def test_a_batch_holds_all_turns_of_its_conversations(renderer: ChatRenderer) -> None:
    conversations = [talk(str(number), number % 2, turns=1 + number % 3) for number in range(7)]
    data = TurnDataModule(conversations, conversations[:3], renderer=renderer, batch_size=4)
    batches = list(data.train_dataloader())
    assert [len(batch.tree.trees) for batch in batches] in ([4, 3], [3, 4])
    assert sum(len(batch.returns) for batch in batches) == sum(len(c.turns) for c in conversations)
    for batch in batches:
        assert len(batch.returns) == len(batch.tree.action_rows)
        by_row = [[] for _ in batch.tree.trees]  # type: ignore[var-annotated]
        for row, value in zip(batch.tree.action_rows.tolist(), batch.returns.tolist(), strict=True):
            by_row[row].append(value)
        expected = {id(item.tree): item.returns for item in data.train_trees}
        assert by_row == [expected[id(tree)] for tree in batch.tree.trees]
