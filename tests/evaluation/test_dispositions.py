"""Metrics of dispositions, against their definitions."""

from __future__ import annotations

import pytest

from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.evaluation.dispositions import DispositionCounts


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
