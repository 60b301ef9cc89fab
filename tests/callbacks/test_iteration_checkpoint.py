"""IterationCheckpoint: which checkpoints are kept, and that nothing else is ever deleted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_iterppo.callbacks import IterationCheckpoint


def run(callback: IterationCheckpoint, loop: Any, held_out: list[float | None], first: int = 0) -> None:
    for iteration, rate in enumerate(held_out, start=first):
        loop.finish_iteration(iteration, held_out=rate)
        callback.on_iteration_end(loop)


def on_disk(loop: Any) -> list[str]:
    return sorted(path.name for path in (loop.run_dir.path / "checkpoints").iterdir())


def test_keeps_the_newest(loop: Any) -> None:
    run(IterationCheckpoint(keep_last=2), loop, [None] * 4)
    assert on_disk(loop) == ["iteration-002", "iteration-003"]
    assert loop.saved == [0, 1, 2, 3]


def test_keeps_the_best_by_held_out_rate_however_old(loop: Any) -> None:
    callback = IterationCheckpoint(keep_last=1)
    run(callback, loop, [0.3, 0.6, 0.5, None, 0.4])
    assert on_disk(loop) == ["iteration-001", "iteration-004"]
    assert (callback.best_iteration, callback.best_outcome_rate, callback.kept) == (1, 0.6, [1, 4])


def test_a_new_best_lets_the_old_best_go(loop: Any) -> None:
    run(IterationCheckpoint(keep_last=1), loop, [0.5, 0.3, 0.6, 0.2])
    assert on_disk(loop) == ["iteration-002", "iteration-003"]


def test_of_two_equally_good_ones_the_earlier_is_the_best(loop: Any) -> None:
    callback = IterationCheckpoint(keep_last=1)
    run(callback, loop, [0.5, 0.5, 0.2])
    assert callback.best_iteration == 0
    assert on_disk(loop) == ["iteration-000", "iteration-002"]


def test_an_unmeasured_iteration_is_never_the_best(loop: Any) -> None:
    callback = IterationCheckpoint(keep_last=1)
    loop.finish_iteration(0, collected=0.99)
    callback.on_iteration_end(loop)
    assert callback.best_iteration is None
    run(callback, loop, [None], first=1)
    assert on_disk(loop) == ["iteration-001"]


def test_without_keep_best_only_the_newest_stay(loop: Any) -> None:
    run(IterationCheckpoint(keep_last=1, keep_best=False), loop, [0.9, 0.1, 0.1])
    assert on_disk(loop) == ["iteration-002"]


def test_never_deletes_what_it_did_not_write(loop: Any) -> None:
    foreign = loop.run_dir.checkpoint(0)
    foreign.mkdir(parents=True)
    (loop.run_dir.path / "checkpoints" / "mine").mkdir()
    run(IterationCheckpoint(keep_last=1), loop, [None, None], first=1)
    assert on_disk(loop) == ["iteration-000", "iteration-002", "mine"]


def test_a_link_in_the_place_of_a_checkpoint_is_left_alone(loop: Any, tmp_path: Path) -> None:
    callback = IterationCheckpoint(keep_last=1)
    run(callback, loop, [None])
    elsewhere = tmp_path / "elsewhere"
    loop.run_dir.checkpoint(0).rename(elsewhere)
    loop.run_dir.checkpoint(0).symlink_to(elsewhere)
    run(callback, loop, [None], first=1)
    assert loop.run_dir.checkpoint(0).is_symlink()
    assert (elsewhere / "policy" / "model.safetensors").read_bytes() == b"weights"


def test_other_ranks_save_but_delete_nothing(loop: Any) -> None:
    main = IterationCheckpoint(keep_last=1)
    run(main, loop, [0.5, 0.2])
    other = IterationCheckpoint(keep_last=1)
    loop.is_main = False
    run(other, loop, [None] * 3)
    assert loop.saved[-3:] == [0, 1, 2]
    assert on_disk(loop) == ["iteration-000", "iteration-001"]
    assert other.kept == [0, 2]


def test_a_resumed_run_goes_on_keeping_the_right_ones(loop: Any) -> None:
    first = IterationCheckpoint(keep_last=1)
    run(first, loop, [0.6, 0.3])
    resumed = IterationCheckpoint(keep_last=1)
    resumed.load_state_dict(first.state_dict())
    run(resumed, loop, [0.5, 0.5], first=2)
    assert on_disk(loop) == ["iteration-000", "iteration-003"]
    assert resumed.best_iteration == 0


def test_a_deletion_that_was_cut_short_is_finished_later(loop: Any) -> None:
    callback = IterationCheckpoint(keep_last=1)
    run(callback, loop, [None])
    loop.run_dir.checkpoint(0).rename(loop.run_dir.path / "checkpoints" / ".iteration-000.deleted")
    run(callback, loop, [None], first=1)
    assert on_disk(loop) == ["iteration-001"]


def test_a_deletion_that_fails_is_said_and_tried_again(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = IterationCheckpoint(keep_last=1)
    run(callback, loop, [None])

    def refuse(path: Path) -> None:
        raise PermissionError(f"busy: {path}")

    with monkeypatch.context() as patched, pytest.warns(UserWarning, match=r"could not delete .* iteration 0: busy"):
        patched.setattr(shutil, "rmtree", refuse)
        run(callback, loop, [None], first=1)
    assert callback.kept == [0, 1]
    run(callback, loop, [None], first=2)
    assert on_disk(loop) == ["iteration-002"]


@pytest.mark.parametrize("keep_last", [0, -1, 1.5, True, "2"])
def test_keep_last_must_be_a_positive_whole_number(keep_last: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"keep_last=….*whole number ≥ 1"):
        IterationCheckpoint(keep_last=keep_last)


def test_keep_best_must_be_a_boolean() -> None:
    with pytest.raises(MisconfigurationException, match="keep_best"):
        IterationCheckpoint(keep_best="yes")  # type: ignore[arg-type]


def test_a_loop_without_a_run_directory_is_refused_at_the_start(loop: Any) -> None:
    loop.run_dir = None
    with pytest.raises(MisconfigurationException, match="run directory"):
        IterationCheckpoint().on_run_start(loop)
