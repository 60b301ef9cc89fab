"""Steps of many conversations: one after the other, or all at once where customers wait for something."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

from lightning_iterppo.errors import CustomerError


class SideBySide:
    """Runs the steps of conversations; used as a context manager.

    What waits does so in an event loop of its own, on a thread of its own: a notebook's main thread has one running
    already, and a client's connections stay with the loop in which they were made.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> SideBySide:
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None

    def run(self, steps: Sequence[Coroutine[Any, Any, Any]], *, waiting: bool) -> list[CustomerError | None]:
        """Runs every step to its end; for each the customer's failure, or None.

        Args:
            steps: of different conversations.
            waiting: whether they may wait for something, and so shall run at once.
        """
        if waiting:
            future = asyncio.run_coroutine_threadsafe(_all([_failure(step) for step in steps]), self._started())
            return future.result()
        return [_now(_failure(step)) for step in steps]

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="customers", daemon=True)
            self._thread.start()
        return self._loop


async def _failure(step: Coroutine[Any, Any, Any]) -> CustomerError | None:
    try:
        await step
    except CustomerError as error:
        return error
    return None


async def _all(steps: Sequence[Coroutine[Any, Any, CustomerError | None]]) -> list[CustomerError | None]:
    return list(await asyncio.gather(*steps))


async def _cancel_others() -> None:
    """Ends what still waits after an interruption."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _now(step: Coroutine[Any, Any, CustomerError | None]) -> CustomerError | None:
    """Runs what waits for nothing, without an event loop."""
    try:
        step.send(None)
    except StopIteration as end:
        found: CustomerError | None = end.value
        return found
    step.close()
    raise RuntimeError("a customer that is not asynchronous waited for something")
