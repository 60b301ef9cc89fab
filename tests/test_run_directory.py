"""The run directory and the summary: where everything lies, and that it reads back as it was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.errors import RunDirectoryError
from lightning_iterppo.run_directory import RunDirectory
from lightning_iterppo.summary import IterationRecord, Rate, Summary, side_by_side


def a_summary() -> Summary:
    rate = Rate(0.25, (0.1, 0.5), 40, 0.3)
    record = IterationRecord(0, rate, held_out=rate)
    record.critic["brier"] = 0.2
    record.tokens["generated"] = 12
    return Summary(recipe="words", seed=3, before=rate, iterations=[record, IterationRecord(1, rate)])


def test_a_summary_reads_back_equal(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "a" / "run", "text")
    run.write_summary(a_summary())
    assert run.read_summary() == a_summary()
    written = json.loads(run.summary.read_text())
    assert written["schema"] == 1
    assert written["after"] is None and written["iterations"][1]["critic"]["brier"] is None
    assert "examples" not in written


def test_where_everything_lies(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "name: words\n")
    assert run.recipe.read_text() == "name: words\n"
    assert run.conversations(3) == run.path / "conversations" / "iteration-003.jsonl"
    assert run.conversations("before") == run.path / "conversations" / "before.jsonl"
    assert run.checkpoint(12) == run.path / "checkpoints" / "iteration-012"
    assert run.last_checkpoint == run.path / "checkpoints" / "last.ckpt"


def test_the_newest_checkpoint_is_the_latest_whole_one(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "")
    assert run.newest_checkpoint() is None
    for iteration in (0, 2, 10):
        (run.checkpoint(iteration) / "policy").mkdir(parents=True)
    run.checkpoint(11).mkdir()  # nothing in it
    assert run.newest_checkpoint() == run.checkpoint(10)


def test_a_summary_that_cannot_be_read(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "")
    with pytest.raises(RunDirectoryError, match=r"summary\.json cannot be read"):
        run.read_summary()
    run.summary.write_text('{"schema": 1}')
    with pytest.raises(RunDirectoryError, match=r"summary\.json cannot be read"):
        run.read_summary()


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", "")
    with pytest.raises(RunDirectoryError, match=r"already holds a run.*--resume"):
        RunDirectory.create(tmp_path / "run", "")
    assert RunDirectory.create(tmp_path / "empty", "").path.is_dir()


def talk(seed: int, outcome: float) -> Conversation:
    return Conversation(f"{seed}-{outcome}", (Turn("hi", "yo"),), outcome=outcome, seed=seed)


def test_the_pair_to_show_is_one_customer_lost_and_won() -> None:
    before, after = [talk(1, 0.0), talk(2, 0.0), talk(3, 1.0)], [talk(1, 0.0), talk(2, 1.0), talk(3, 1.0)]
    assert side_by_side(before, after) == (before[1], after[1])
    assert side_by_side(before[2:], after) == (before[2], after[1])
    assert side_by_side(before, [talk(1, 0.0)]) == (before[0], talk(1, 0.0))
    assert side_by_side([], []) == (None, None)
