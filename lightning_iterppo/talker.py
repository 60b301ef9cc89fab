"""Conversations under the policy as it is, shared out over the processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lightning_iterppo.background import Background
from lightning_iterppo.collection import Failure, collect, too_many
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.customers import Customer
from lightning_iterppo.delivery import Delivery
from lightning_iterppo.errors import CustomerError
from lightning_iterppo.generation.engine import Engine
from lightning_iterppo.generation.local import LocalEngine, speaking
from lightning_iterppo.machine import release_memory
from lightning_iterppo.mismatch import Mismatch, compare
from lightning_iterppo.models.language_model import ANCHOR, POLICY, LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.phase import PhaseTools
from lightning_iterppo.settings import LoopSettings
from lightning_iterppo.trainer import gather_lists, rank, world_size

# Where customers' seeds come from: training and evaluation never share one.
TRAINING_SEEDS, EVALUATION_SEEDS, HELD_OUT_SEEDS = 0, 2**31, 3 * 2**30
_SECONDS_A_RELEASE = 1.0


def _first_seed(kind: int, seed: int) -> int:
    """The first customer's seed of a run. All stay below 2³², which is as much as most random generators take."""
    return seed % 200 * 10_000_000 if kind == TRAINING_SEEDS else kind + seed % 1000 * 1_000_000


@dataclass(slots=True)
class Talked:
    """What one process's conversations came to.

    Args:
        conversations: those that went to their end.
        failures: the others.
        costs: what they cost, where customers count it.
        tokens: how many were sampled.
    """

    conversations: list[Conversation] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    costs: list[dict[str, float]] = field(default_factory=list)
    tokens: int = 0


class Talker:
    """Lets the policy talk with customers.

    Args:
        model: the language model, whose ``policy`` variant talks.
        renderer: its chat template.
        settings: sampling and how many conversations go on side by side.
        tools: progress and seeds.
        events: whether outcomes are of events; else they are amounts, of any size.
        delivery: gives the policy to a server, which talks in its place; None talks with the weights in memory.
        on_failures: told, with the conversations' prefix, which of them their customers broke off.
        on_usage: told, with the prefix, what the conversations cost, where customers count it.
        on_mismatch: told, with the prefix, how a server's log-probabilities differ from the trainer's.
    """

    def __init__(
        self,
        model: LanguageModel,
        renderer: ChatRenderer,
        settings: LoopSettings,
        tools: PhaseTools,
        *,
        events: bool = True,
        delivery: Delivery | None = None,
        on_failures: Callable[[str, Sequence[Failure]], None] | None = None,
        on_usage: Callable[[str, dict[str, float]], None] | None = None,
        on_mismatch: Callable[[str, dict[str, float | None]], None] | None = None,
    ) -> None:
        self.model = model
        self.renderer = renderer
        self.settings = settings
        self.tools = tools
        self.events = events
        self.delivery = delivery
        self.on_failures = on_failures
        self.on_usage = on_usage
        self.on_mismatch = on_mismatch
        self._ahead: tuple[str, Background[Talked]] | None = None

    def talk(
        self, customer: Callable[[], Customer], kind: int, count: int, version: str, prefix: str, *, after: int = 0
    ) -> list[Conversation]:
        """This process's share of the conversations, then everybody's, in the order of the seeds.

        Those that failed are left out. Those that `talk_ahead` began are waited for.

        Args:
            customer: makes a customer.
            kind: where the customers' seeds come from, one of this module's ``…_SEEDS``.
            count: how many conversations.
            version: the policy's, written into every suggestion.
            prefix: conversations are named ``prefix-SEED``, and their randomness comes from it.
            after: how many customers of the kind the run has met before.

        Raises:
            CustomerError: more customers failed, or broke their protocol, than may.
            EngineError: a server that talks in the policy's place failed.
        """
        ahead, variant = self._ahead, POLICY
        if ahead is not None and ahead[0] == prefix:
            self._ahead = None
            found = ahead[1].result()
            # What the server was given is π_k of the improvement that has been made since.
            variant = ANCHOR
            self.tools.progress.tokens = found.tokens
        else:
            if ahead is not None:
                ahead[1].wait()  # the server is about to be given other weights than those that talk there
            found = self._talk(customer, self._seeds(kind, count, after), count, version, prefix)
        failures: list[Failure] = sorted(gather_lists(found.failures), key=lambda failure: failure.seed)
        if failures:
            refused = too_many(failures[-1].error, len(failures), count, self.settings.failed_share)
            if refused is not None:
                raise CustomerError(refused)
            if self.on_failures is not None:
                self.on_failures(prefix, failures)
        paid: list[dict[str, float]] = gather_lists(found.costs)
        if paid and self.on_usage is not None:
            self.on_usage(prefix, {name: sum(each[name] for each in paid) for name in paid[0]})
        conversations = found.conversations
        if self.delivery is not None:
            conversations = self._compared(conversations, prefix, variant)
        gathered: list[Conversation] = gather_lists(conversations)
        return sorted(gathered, key=lambda conversation: conversation.seed or 0)

    def talk_ahead(
        self, customer: Callable[[], Customer], kind: int, count: int, version: str, prefix: str, *, after: int = 0
    ) -> None:
        """Begins conversations under the policy as it is, which go on beside whatever is done next; see `talk`."""
        assert self.delivery is not None, "the weights in memory are about to change"
        seeds = self._seeds(kind, count, after)
        engine = self._served(prefix)

        def work(moved: Callable[[], None]) -> Talked:
            return self._collected(customer, seeds, count, version, prefix, engine, lambda done, failed: moved())

        self._ahead = prefix, Background(work)

    def stop(self) -> None:
        """Ends what `talk_ahead` began and nobody has asked for."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead[1].cancel()

    def _seeds(self, kind: int, count: int, after: int) -> range:
        """This process's customers."""
        first = _first_seed(kind, self.tools.seed) + after
        return range(first, first + count)[rank() :: world_size()]

    def _moved(self, count: int) -> Callable[[int, int], None]:
        released = time.monotonic()

        def progressed(done: int, failed: int) -> None:
            nonlocal released
            # Caches of ever other sizes leave the heap in pieces; a small model has a turn sooner than this takes.
            if time.monotonic() - released > _SECONDS_A_RELEASE:
                release_memory()
                released = time.monotonic()
            progress = self.tools.progress
            progress.done, progress.failed = min(done * world_size(), count), failed
            self.tools.moved()

        return progressed

    def _talk(
        self,
        customer: Callable[[], Customer],
        seeds: range,
        count: int,
        version: str,
        prefix: str,
    ) -> Talked:
        moved = self._moved(count)
        if self.delivery is None:
            engine = self.engine(self._seed(prefix), keep=True)
            with speaking(self.model):
                return self._collected(customer, seeds, count, version, prefix, engine, moved)
        served = self._served(prefix)

        def counted(done: int, failed: int) -> None:
            self.tools.progress.tokens = served.generated_tokens
            moved(done, failed)

        return self._collected(customer, seeds, count, version, prefix, served, counted)

    def _collected(
        self,
        customer: Callable[[], Customer],
        seeds: range,
        count: int,
        version: str,
        prefix: str,
        engine: Engine,
        moved: Callable[[int, int], None],
    ) -> Talked:
        """Has this process's of ``count`` conversations; tells how many are over and how many of those failed."""
        found = Talked()
        found.conversations = collect(
            customer,
            seeds,
            engine=engine,
            renderer=self.renderer,
            sampling=self.settings.sampling,
            policy_version=version,
            prefix=prefix,
            seed=self._seed(prefix),
            batch=self.settings.batch,
            events=self.events,
            timeout=self.settings.customer_timeout,
            failed_share=self.settings.failed_share,
            among=count,
            on_progress=lambda done: moved(done, len(found.failures)),
            on_failure=found.failures.append,
            on_usage=found.costs.append,
        )
        found.tokens = engine.generated_tokens
        return found

    def _seed(self, prefix: str) -> int:
        return self.tools.seed_of(prefix)

    def _served(self, prefix: str) -> Engine:
        """An engine of the server's, which has the policy as it is."""
        assert self.delivery is not None
        return self.delivery.server.engine(self.delivery.deliver(), self._seed(prefix), self.renderer)

    def _compared(self, conversations: list[Conversation], prefix: str, variant: str) -> list[Conversation]:
        """With all log-probabilities, and how far a server's are from the trainer's is told."""
        found, own = compare(self.model, self.renderer, conversations, variant, rows=self.settings.batch)
        if self.on_mismatch is not None:
            parts: list[Mismatch] = gather_lists([own])
            self.on_mismatch(prefix, {**sum(parts, Mismatch()).figures(), "lag": float(variant == ANCHOR)})
        return found

    def engine(self, seed: int, *, keep: bool) -> LocalEngine:
        """An engine that samples from the policy and counts its tokens into the progress."""

        def counted(tokens: int, ended: int) -> None:
            self.tools.progress.tokens += tokens
            if self.tools.progress.unit == "responses":
                self.tools.progress.done += ended
                self.tools.moved()

        return LocalEngine(
            self.model,
            stop_token_id=self.renderer.stop_token_id,
            seed=seed,
            rows=max(self.settings.batch, 1),
            keep=keep,
            on_step=counted,
        )
