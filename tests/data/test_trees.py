"""Trees that are made when they are asked for: the same as those that are kept, and few at a time."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.data import trees as trees_module
from lightning_iterppo.data.conversation_file import ConversationFile
from lightning_iterppo.data.logs import write_conversations
from lightning_iterppo.data.trees import LoggedTree, LoggedTrees, Retargeted, token_lengths
from lightning_iterppo.data.turns import TurnDataModule, split_conversations
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.scratch import make_scratch_tokenizer
from lightning_iterppo.models.tree import TokenTree

WORDS = ["hello", "red", "yes", "no"]


@pytest.fixture
def renderer() -> ChatRenderer:
    return ChatRenderer(make_scratch_tokenizer(WORDS))


def talks(count: int) -> list[Conversation]:
    made = []
    for number in range(count):
        turns = [Turn(WORDS[number % 4], "red " * (1 + (number + turn) % 3)) for turn in range(1 + number % 3)]
        won = None if number % 10 == 9 else float(number % 2)
        turns[-1] = Turn("yes", "no", reward=won or 0.0)
        made.append(Conversation(str(number), tuple(turns), outcome=won))
    return made


def same(one: LoggedTree, other: LoggedTree) -> bool:
    return one.tree.segments == other.tree.segments and (one.returns, one.weights) == (other.returns, other.weights)


def test_trees_that_are_not_kept_are_the_same_trees(renderer: ChatRenderer) -> None:
    weights = {"3": [0.5], "17": [0.25, 0.5, 1.0]}
    kept, made = (LoggedTrees(talks(20), renderer, 0.5, weights=weights, keep=keep) for keep in (20, 4))
    assert len(kept) == len(made) == len(kept.kept) == 18 and len(made.kept) == 4
    assert all(same(one, other) for one, other in zip(kept, made, strict=True))
    assert made[3].tree is made[3].tree and made[4].tree is not made[4].tree
    assert made.lengths.tolist() == [len(item.tree) for item in made]
    assert same(made[-1], kept[17]) and [same(*pair) for pair in zip(made[2:6], kept[2:6], strict=True)] == [True] * 4
    with pytest.raises(IndexError):
        made[18]


def test_long_conversations_fill_what_is_kept_sooner(renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees_module, "KEPT_TOKENS", 100)
    made = LoggedTrees(talks(40), renderer, 1.0)
    assert 0 < len(made.kept) < 36
    assert sum(len(item.tree) for item in made.kept[:-1]) < 100


def test_other_targets_for_the_same_trees(renderer: ChatRenderer) -> None:
    items = LoggedTrees(talks(12), renderer, 1.0, weights={"2": [0.5, 0.5, 0.5]}, keep=2)
    found = Retargeted(items, ([0.25 * (index % 3)] * len(item.returns) for index, item in enumerate(items)))
    assert len(found) == len(items)
    for index, (item, other) in enumerate(zip(items, found, strict=True)):
        assert item.tree.segments == other.tree.segments and item.weights == other.weights
        assert other.returns == [0.25 * (index % 3)] * len(item.returns)
    assert found[1].tree is items[1].tree
    assert [item.returns for item in found[-2:]] == [found[9].returns, found[10].returns]


def test_lengths_are_known_without_rendering(renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    items = LoggedTrees(talks(30), renderer, 1.0, keep=3)
    expected = np.array([len(item.tree) for item in items])
    found = Retargeted(items, (item.returns for item in items))
    monkeypatch.setattr(ChatRenderer, "render", None)
    assert token_lengths(items).tolist() == token_lengths(found).tolist() == expected.tolist()
    assert token_lengths(found[1::2]).tolist() == expected[1::2].tolist()


def alive(kind: type) -> int:
    return sum(type(each) is kind for each in gc.get_objects())


def test_an_epoch_of_a_file_holds_a_batch_and_what_is_kept(renderer: ChatRenderer, tmp_path: Path) -> None:
    write_conversations(tmp_path / "logs.jsonl", talks(2000))
    gc.collect()
    conversations, trees = alive(Conversation), alive(TokenTree)
    train, held = split_conversations(ConversationFile(tmp_path / "logs.jsonl"), 0.2, seed=1)
    data = TurnDataModule(train, held, renderer=renderer, batch_size=16, keep=32)
    turns, most = 0, (0, 0)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for number, batch in enumerate(loader):
            turns += len(batch.returns)
            if number % 10:
                continue
            most = (
                max(most[0], alive(Conversation) - conversations),
                max(most[1], alive(TokenTree) - trees),
            )
    assert turns == sum(len(talk.turns) for talk in talks(2000) if talk.outcome is not None)
    assert most[0] <= 2  # a conversation is given up for its tree at once
    assert 64 <= most[1] <= 2 * 32 + 2 * 16  # kept ones of both parts, this batch, and the one before it
