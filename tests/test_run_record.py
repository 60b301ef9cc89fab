"""What a run writes down of itself."""

from __future__ import annotations

import pytest

from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.run_record import RunRecord
from lightning_iterppo.summary import IterationRecord, Summary


def test_what_people_did_with_suggestions_is_written_down_and_a_metric() -> None:
    turns = (
        Turn("hi", "blue hat", Suggestion("blue cap"), "edited"),
        Turn("?", "yes", Suggestion("yes"), "accepted"),
        Turn("?", "bye", None, "unassisted"),
    )
    metrics: dict[str, float] = {}
    record = RunRecord(Summary(recipe="words", seed=1), metrics)
    record.begin(0, None, [Conversation("a", turns, outcome=1.0)])
    assert record.running.suggestions == {"acceptance_rate": 0.5, "edit_distance": pytest.approx(2 / 8)}
    assert metrics == {"collect/acceptance_rate": 0.5, "collect/edit_distance": pytest.approx(2 / 8)}
    record.end(None)
    assert Summary.from_json(record.summary.to_json()).iterations == record.summary.iterations


def test_where_nothing_was_suggested_nothing_is_known() -> None:
    metrics: dict[str, float] = {}
    record = RunRecord(Summary(recipe="words", seed=1), metrics)
    record.begin(0, None, [Conversation("a", (Turn("hi", "hello", None, "unassisted"),), outcome=0.0)])
    assert record.running == IterationRecord(0, None) and not metrics
