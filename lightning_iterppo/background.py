"""Work that goes on beside the rest, in a thread of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cancelled(Exception):
    """Raised in work that nobody wants any more, when it next says how far it is."""


class Background(Generic[T]):
    """Work that has begun.

    Args:
        work: what is done; it is given a function to call whenever it has come further, where it can be ended.
    """

    def __init__(self, work: Callable[[Callable[[], None]], T]) -> None:
        self._unwanted = threading.Event()
        self._found: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="iterppo-background", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[Callable[[], None]], T]) -> None:
        def moved() -> None:
            if self._unwanted.is_set():
                raise Cancelled

        try:
            self._found.append(work(moved))
        except BaseException as error:  # is raised where the result is asked for
            self._error = error

    def wait(self) -> None:
        """Waits for the work's end."""
        self._thread.join()

    def result(self) -> T:
        """Waits for the work's end, and gives what it found or raises what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._found[0]

    def cancel(self) -> None:
        """Lets the work end where it next says how far it is."""
        self._unwanted.set()
