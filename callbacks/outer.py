"""The outer hooks of the loop, as an optional base class that names, types and documents them.

`IterativePPOLoop` calls ``hook(loop)`` on every callback that has the hook, so a plain ``lightning.pytorch.Callback``
works just as well. Derive from `OuterCallback` to have the signatures checked and the order below at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lightning.pytorch import Callback

if TYPE_CHECKING:
    from lightning_iterppo.loop import IterativePPOLoop


class OuterCallback(Callback):
    """A Lightning callback with the loop's hooks, all of which do nothing here.

    The hooks come in the order in which they are written. Under several processes every rank calls them;
    ``loop.is_main`` says which one may write and print. Lightning's own hooks work too: the callbacks are given to the
    Trainer of every phase.

    Attributes:
        needs_run_directory: whether it makes no sense without one; commands that keep no run leave it out then.
    """

    needs_run_directory: ClassVar[bool] = False

    def on_run_start(self, loop: IterativePPOLoop) -> None:
        """The run begins, or goes on after ``--resume``; states are restored by now."""

    def on_iteration_start(self, loop: IterativePPOLoop) -> None:
        """An iteration begins; ``loop.progress.iteration`` says which."""

    def on_progress(self, loop: IterativePPOLoop) -> None:
        """``loop.progress`` has moved: after every turn of a batch of conversations and every training batch."""

    def on_collect_end(self, loop: IterativePPOLoop) -> None:
        """The iteration's conversations are in ``loop.conversations``."""

    def on_critic_fit_end(self, loop: IterativePPOLoop) -> None:
        """Q of this iteration is fitted; ``loop.metrics`` has its figures."""

    def on_improve_end(self, loop: IterativePPOLoop) -> None:
        """The policy of this iteration is improved; ``loop.metrics`` has its figures."""

    def on_iteration_end(self, loop: IterativePPOLoop) -> None:
        """The iteration's record is ``loop.summary.iterations[-1]``."""

    def on_run_end(self, loop: IterativePPOLoop) -> None:
        """The run is over and everything in ``loop.summary`` is known."""

    def on_run_exception(self, loop: IterativePPOLoop) -> None:
        """The run stops because of an exception, an interrupt included, which is raised again afterwards."""
