"""Metrics of dispositions, against their definitions."""

from __future__ import annotations

import random

import pytest

from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.evaluation.dispositions import DispositionCounts, edit_distance, normalised_edit_distance


def by_table(first: str, second: str) -> int:
    """Levenshtein's recursion, row by row."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        before, row = row, [i]
        for j, right in enumerate(second, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right)))
    return row[-1]


def test_the_edit_distance_is_levenshteins() -> None:
    chance = random.Random(0)
    for _ in range(500):
        first, second = ("".join(chance.choices("abcß", k=chance.randrange(90))) for _ in range(2))
        assert edit_distance(first, second) == by_table(first, second) == edit_distance(second, first)
    assert edit_distance("kitten", "sitting") == 3


@pytest.mark.parametrize(
    ("first", "second", "distance"), [("", "", 0), ("ab", "ab", 0), ("", "abc", 1), ("ab", "abcd", 0.5)]
)
def test_the_normalised_one_is_a_share_of_the_longer_text(first: str, second: str, distance: float) -> None:
    assert normalised_edit_distance(first, second) == distance


def test_what_was_not_seen_is_not_known() -> None:
    counts = DispositionCounts()
    assert counts.to_json()["shares"]["accepted"] is None
    counts.add(Conversation("a", (Turn("", "x"),)))
    figures = counts.to_json()
    assert figures["acceptance_rate"] is figures["acceptance_ci95"] is figures["edit_distance"] is None
    assert figures["shares"] == {"accepted": 0.0, "edited": 0.0, "rejected": 0.0, "unassisted": 1.0}


def test_the_distance_is_that_of_the_edited_ones_only() -> None:
    made = [("abcd", "abcx", "edited"), ("abcd", "xxxx", "edited"), ("a", "zzz", "rejected"), ("a", "a", "accepted")]
    counts = DispositionCounts()
    for suggestion, sent, disposition in made:
        counts.add(Conversation("a", (Turn("", sent, Suggestion(suggestion), disposition),)))  # type: ignore[arg-type]
    figures = counts.to_json()
    assert figures["edit_distance"] == pytest.approx((0.25 + 1.0) / 2)
    assert figures["acceptance_rate"] == 0.25 and figures["suggestions"] == 4
