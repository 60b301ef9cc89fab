"""Measures outcome rates on customers that training never meets, the same ones before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.customers import Customer
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.evaluation.rates import outcome_rate
from lightning_iterppo.phase import PhaseTools
from lightning_iterppo.progress import Phase
from lightning_iterppo.run_directory import RunDirectory
from lightning_iterppo.settings import LoopSettings
from lightning_iterppo.summary import Rate, side_by_side
from lightning_iterppo.talker import EVALUATION_SEEDS, HELD_OUT_SEEDS, Talker


class Measurement:
    """Outcome rates of the policy as it is, on evaluation customers and on held-out ones.

    Args:
        talker: has the conversations.
        settings: how many.
        tools: progress.
        keep: writes conversations down, by a name.
    """

    def __init__(
        self,
        talker: Talker,
        settings: LoopSettings,
        tools: PhaseTools,
        keep: Callable[[str, Sequence[Conversation]], None],
    ) -> None:
        self.talker = talker
        self.settings = settings
        self.tools = tools
        self.keep = keep
        #: The newest conversations with evaluation customers, by when they were held.
        self.samples: dict[str, list[Conversation]] = {}

    def evaluation(self, customer: Callable[[], Customer] | None, when: Phase) -> Rate | None:
        """With customers of training's kind; None when there are none, or the settings want none."""
        found = self._talk(customer, EVALUATION_SEEDS, self.settings.evaluation_conversations, when, when)
        if found:
            self.samples[when] = found
        return outcome_rate(found) if found else None

    def held_out(self, customer: Callable[[], Customer] | None, when: Phase) -> Rate | None:
        """With customers of another kind; None when there are none, or the settings want none."""
        found = self._talk(customer, HELD_OUT_SEEDS, self.settings.held_out_conversations, when, f"{when}-held-out")
        return outcome_rate(found) if found else None

    def examples(self, run_dir: RunDirectory | None) -> tuple[Conversation | None, Conversation | None]:
        """One from before and one from after to show; read again if another process had them before a resume."""
        before, after = (self._held(when, run_dir) for when in ("before", "after"))
        return side_by_side(before, after)

    def _held(self, when: str, run_dir: RunDirectory | None) -> list[Conversation]:
        held = self.samples.get(when)
        if held is None and run_dir is not None and run_dir.conversations(when).exists():
            held = read_conversations(run_dir.conversations(when))
        return held or []

    def _talk(
        self, customer: Callable[[], Customer] | None, seeds: int, count: int, when: Phase, name: str
    ) -> list[Conversation]:
        if customer is None or count == 0:
            return []
        self.tools.begin(when, count, "conversations")
        found = self.talker.talk(customer, seeds, count, when, name)
        self.keep(name, found)
        return found
