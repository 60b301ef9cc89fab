"""Conversations under the policy as it is, shared out over the processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_iterppo.collection import Failure, collect
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.customers import Customer
from lightning_iterppo.generation.local import LocalEngine, speaking
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.phase import PhaseTools
from lightning_iterppo.settings import LoopSettings
from lightning_iterppo.trainer import gather_lists, rank, world_size

# Where customers' seeds come from: training and evaluation never share one.
TRAINING_SEEDS, EVALUATION_SEEDS, HELD_OUT_SEEDS = 0, 2**31, 3 * 2**30


def _first_seed(kind: int, seed: int) -> int:
    """The first customer's seed of a run. All stay below 2³², which is as much as most random generators take."""
    return seed % 200 * 10_000_000 if kind == TRAINING_SEEDS else kind + seed % 1000 * 1_000_000


class Talker:
    """Lets the policy talk with customers.

    Args:
        model: the language model, whose ``policy`` variant talks.
        renderer: its chat template.
        settings: sampling and how many conversations go on side by side.
        tools: progress and seeds.
        events: whether outcomes are of events; else they are amounts, of any size.
        on_failures: told, with the conversations' prefix, which of them their customers broke off.
        on_usage: told, with the prefix, what the conversations cost, where customers count it.
    """

    def __init__(
        self,
        model: LanguageModel,
        renderer: ChatRenderer,
        settings: LoopSettings,
        tools: PhaseTools,
        *,
        events: bool = True,
        on_failures: Callable[[str, Sequence[Failure]], None] | None = None,
        on_usage: Callable[[str, dict[str, float]], None] | None = None,
    ) -> None:
        self.model = model
        self.renderer = renderer
        self.settings = settings
        self.tools = tools
        self.events = events
        self.on_failures = on_failures
        self.on_usage = on_usage

    def talk(
        self, customer: Callable[[], Customer], kind: int, count: int, version: str, prefix: str, *, after: int = 0
    ) -> list[Conversation]:
        """This process's share of the conversations, then everybody's, in the order of the seeds.

        Those that failed are left out.

        Args:
            customer: makes a customer.
            kind: where the customers' seeds come from, one of this module's ``…_SEEDS``.
            count: how many conversations.
            version: the policy's, written into every suggestion.
            prefix: conversations are named ``prefix-SEED``, and their randomness comes from it.
            after: how many customers of the kind the run has met before.

        Raises:
            CustomerError: more customers failed, or broke their protocol, than may.
        """
        first = _first_seed(kind, self.tools.seed) + after
        own = range(first, first + count)[rank() :: world_size()]

        def progressed(done: int) -> None:
            self.tools.progress.done = min(done * world_size(), count)
            self.tools.moved()

        failures: list[Failure] = []
        costs: list[dict[str, float]] = []

        def failed(failure: Failure) -> None:
            failures.append(failure)
            self.tools.progress.failed = len(failures)

        with speaking(self.model):
            found = collect(
                customer,
                own,
                engine=self.engine(self.tools.seed_of(f"{prefix}-0-{rank()}"), keep=True),
                renderer=self.renderer,
                sampling=self.settings.sampling,
                policy_version=version,
                prefix=prefix,
                batch=self.settings.batch,
                events=self.events,
                timeout=self.settings.customer_timeout,
                failed_share=self.settings.failed_share,
                on_progress=progressed,
                on_failure=failed,
                on_usage=costs.append,
            )
        everyones: list[Failure] = gather_lists(failures)
        if everyones and self.on_failures is not None:
            self.on_failures(prefix, everyones)
        paid: list[dict[str, float]] = gather_lists(costs)
        if paid and self.on_usage is not None:
            self.on_usage(prefix, {name: sum(each[name] for each in paid) for name in paid[0]})
        gathered: list[Conversation] = gather_lists(found)
        return sorted(gathered, key=lambda conversation: conversation.seed or 0)

    def engine(self, seed: int, *, keep: bool) -> LocalEngine:
        """An engine that samples from the policy and counts its tokens into the progress."""

        def counted(tokens: int) -> None:
            self.tools.progress.tokens += tokens
            if self.tools.progress.unit == "responses":
                self.tools.moved()

        return LocalEngine(
            self.model,
            stop_token_id=self.renderer.stop_token_id,
            seed=seed,
            rows=max(self.settings.batch, 1),
            keep=keep,
            on_step=counted,
        )
