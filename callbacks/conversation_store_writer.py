"""Writes every conversation that a run collects, and the figures of its iterations, into a store."""

from __future__ import annotations

import uuid
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_iterppo.callbacks.outer import OuterCallback
from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.errors import ConfigError

if TYPE_CHECKING:
    from lightning_iterppo.data.store import ConversationStore
    from lightning_iterppo.loop import IterativePPOLoop


class ConversationStoreWriter(OuterCallback):
    """Adds an iteration's conversations to a store, and, when the iteration is over, its figures.

    Runs with one seed call their conversations alike, and every run has an ``iteration-000``. In the store the ids and
    the policies' versions therefore begin with the run's name: ``RUN/iteration-000-17``, ``RUN/iteration-000``.

    Conversations are written when Q is fitted to them, and not at once: by then the loop has saved them, so that a run
    that was stopped and goes on writes the very same ones, which the store knows. A collection that is repeated may be
    another one. What is evaluated with is not written.

    Hooks: ``on_run_start`` (the run's name), ``on_collect_end`` (there is something to write), ``on_critic_fit_end``
    (conversations), ``on_iteration_end`` (figures), ``on_run_end`` and ``on_run_exception`` (close).

    Args:
        url: the store's: a path, which is a SQLite file, or ``postgresql://…``. It is made if it is not there.
        run: the run's name in the store; None makes one of the recipe's name, the date and some letters.

    Raises:
        ConfigError: the URL is none, the store is of another form, or the extra ``store`` is not installed.
        StoreError: the database cannot be reached.
    """

    needs_run_directory = True

    def __init__(self, url: str, run: str | None = None) -> None:
        for name, value in (("url", url), ("run", run)):
            if not (isinstance(value, str) and value) and not (name == "run" and value is None):
                raise MisconfigurationException(f"ConversationStoreWriter({name}=…) must be text, found {value!r}")
        # Not above: the packages that it needs are those of an extra.
        from lightning_iterppo.data.store import ConversationStore

        # Made now, so that a wrong URL is found before any work.
        self.store: ConversationStore = ConversationStore(url)
        self.run = run
        self._waiting: int | None = None  # the iteration whose conversations are yet to be written
        self._talked: int | None = None  # the newest in which there were any
        self._resumed = False

    def on_run_start(self, loop: IterativePPOLoop) -> None:
        """Names the run.

        Raises:
            ConfigError: another run has the name that was given.
        """
        if not loop.is_main:
            return
        if self.run is None:
            today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
            self.run = f"{loop.summary.recipe}-{today}-{uuid.uuid4().hex[:8]}"
        elif not self._resumed and self._taken(self.run):
            raise ConfigError(f"{self.store} has a run {self.run!r} already: give this one another name, or none")

    def on_collect_end(self, loop: IterativePPOLoop) -> None:
        """Remembers, together with the conversations that the loop saves now, that they are to be written."""
        self._waiting = self._talked = loop.progress.iteration

    def on_critic_fit_end(self, loop: IterativePPOLoop) -> None:
        """Writes them; in a run that learns from logs alone there are none."""
        if self._waiting is None:
            return
        if loop.is_main:
            self.store.add(map(self._own, loop.conversations), run=self.run, iteration=self._waiting)
        self._waiting = None

    def on_iteration_end(self, loop: IterativePPOLoop) -> None:
        """Writes the iteration's figures, as `summary.json` has them."""
        if not loop.is_main:
            return
        record = loop.summary.iterations[-1]
        assert self.run is not None, "the run was named when it began"
        talked = record.iteration == self._talked  # else it learnt from logs
        version = self._named(f"iteration-{record.iteration:03d}") if talked else None
        self.store.add_iteration(self.run, record.iteration, asdict(record), policy_version=version)

    def on_run_end(self, loop: IterativePPOLoop) -> None:
        """Closes the store."""
        self.store.close()

    def on_run_exception(self, loop: IterativePPOLoop) -> None:
        """Closes the store."""
        self.store.close()

    def state_dict(self) -> dict[str, Any]:
        """The run's name, what is yet to be written, and in which iteration the policy has talked."""
        return {"run": self.run, "waiting": self._waiting, "talked": self._talked}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.run = state_dict["run"]
        self._waiting, self._talked = state_dict["waiting"], state_dict["talked"]
        self._resumed = True

    def _taken(self, run: str) -> bool:
        return bool(self.store.iterations(run)) or next(self.store.conversations(run=run), None) is not None

    def _named(self, name: str) -> str:
        return f"{self.run}/{name}"

    def _own(self, conversation: Conversation) -> Conversation:
        """The conversation under the names that it has in the store."""
        version = conversation.policy_version
        return replace(
            conversation,
            id=self._named(conversation.id),
            policy_version=None if version is None else self._named(version),
            turns=tuple(map(self._own_turn, conversation.turns)),
        )

    def _own_turn(self, turn: Turn) -> Turn:
        made = turn.suggestion
        if made is None or made.policy_version is None:
            return turn
        return replace(turn, suggestion=replace(made, policy_version=self._named(made.policy_version)))
