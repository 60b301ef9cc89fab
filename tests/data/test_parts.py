"""A batch in parts, one a process: everybody's parts are the batch, and equally large."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lightning_iterppo.data import parts
from lightning_iterppo.data.parts import Parts, load_parts, part_of
from lightning_iterppo.models.tree import ROOT, TokenTree, collate_trees


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 9])
def test_every_item_counts_on_one_process(world: int, count: int) -> None:
    batch = list(range(10, 10 + count))
    found = [part_of(batch, rank, world) for rank in range(world)]
    counted = [item for part in found for item in part.items[: len(part.items) - part.stand_ins]]
    assert sorted(counted) == batch
    assert {len(part.items) for part in found} == {-(-count // world)}
    assert all(set(part.items) <= set(batch) and 0 <= part.stand_ins <= 1 for part in found)


def test_a_dataloader_gives_the_parts_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "rank", lambda: 1)
    monkeypatch.setattr(parts, "world_size", lambda: 2)
    batches = [[0, 1, 2], [3, 4], [5]]

    def collate(items: Sequence[str], stand_ins: int) -> tuple[str, int]:
        return "".join(items), stand_ins

    loader = load_parts("abcdef", batches, collate)
    assert len(loader) == len(Parts(batches)) == 3
    assert list(loader) == [("ba", 1), ("e", 0), ("f", 1)]


def test_rows_that_stand_in_count_nothing() -> None:
    trees = []
    for responses in (1, 2, 3):
        tree = TokenTree()
        state = tree.add([3, 4], ROOT)
        for _ in range(responses):
            tree.add([5, 1], state, action=True)
        trees.append(tree)
    batch = collate_trees(trees, 0, stand_ins=1)
    assert batch.counted.tolist() == [True] * 3 + [False] * 3
    assert batch.counted_mask.sum() == 6
    assert batch.counted_tokens == len(trees[0]) + len(trees[1])
    assert batch.to("cpu").stand_ins == 1
    groups = [batch.rows(0, 2), batch.rows(2, 3), batch.rows(1, 3)]
    assert [group.stand_ins for group in groups] == [0, 1, 1]
    assert groups[2].counted.tolist() == [True] * 2 + [False] * 3
    assert collate_trees(trees, 0).counted.all()
