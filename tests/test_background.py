"""Work in a thread: its result, its error, and its end when nobody wants it any more."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from lightning_iterppo.background import Background, Cancelled


def test_the_result_is_waited_for() -> None:
    go_on = threading.Event()

    def work(moved: Callable[[], None]) -> int:
        assert go_on.wait(10)
        moved()
        return 7

    begun = Background(work)
    go_on.set()
    assert begun.result() == 7


def test_an_error_is_raised_where_the_result_is_asked_for() -> None:
    def work(moved: Callable[[], None]) -> int:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        Background(work).result()


def test_work_that_nobody_wants_ends_where_it_says_how_far_it_is() -> None:
    cancelled = threading.Event()
    reached: list[str] = []

    def work(moved: Callable[[], None]) -> int:
        assert cancelled.wait(10)
        reached.append("before")
        moved()
        reached.append("after")
        return 7

    begun = Background(work)
    begun.cancel()
    cancelled.set()
    with pytest.raises(Cancelled):
        begun.result()
    assert reached == ["before"]
