"""IterativePPOLoop: collect, evaluate, improve, again.

Lightning 2 has no public custom loop, so this is an object of its own. It makes a fresh Trainer for every phase, calls
the outer hooks of the callbacks, and writes what `--resume` needs after every phase: a run that was killed repeats at
most the phase it was in. Every phase takes its randomness from (seed, phase, iteration), so a repeated phase is the
same one.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import Logger

from lightning_iterppo.collection import collect
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.critic import QCritic
from lightning_iterppo.critic_head import ActionFeatures, cross_validate_head
from lightning_iterppo.customers import Customer
from lightning_iterppo.data.logs import read_conversations, write_conversations
from lightning_iterppo.data.turns import TurnBatch, TurnDataModule, split_conversations
from lightning_iterppo.errors import LogDataError
from lightning_iterppo.evaluation.rates import outcome_rate
from lightning_iterppo.generation.engine import Engine
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.improvement import RoundDataModule, RoundState
from lightning_iterppo.machine import describe_machine, peak_memory_bytes
from lightning_iterppo.models.language_model import ANCHOR, CRITIC, POLICY, REFERENCE, LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.policy import PPOPolicy
from lightning_iterppo.progress import FitProgress, Phase, Progress
from lightning_iterppo.run_directory import RunDirectory
from lightning_iterppo.settings import LoopSettings
from lightning_iterppo.snapshot import load_modules, module_state, save_checkpoint
from lightning_iterppo.summary import CRITIC_FIGURES, POLICY_FIGURES, IterationRecord, Rate, Summary, side_by_side
from lightning_iterppo.trainer import TrainerFactory, barrier, gather_lists, rank, world_size
from lightning_iterppo.warm_start import WarmStart

# Where customers' seeds come from: training and evaluation never share one.
_TRAINING_SEEDS, _EVALUATION_SEEDS, _HELD_OUT_SEEDS = 0, 2**31, 3 * 2**30


def _first_seed(kind: int, seed: int) -> int:
    """The first customer's seed of a run. All stay below 2³², which is as much as most random generators take."""
    return seed % 200 * 10_000_000 if kind == _TRAINING_SEEDS else kind + seed % 1000 * 1_000_000


class IterativePPOLoop:
    """Iterative PPO (Jiang et al. 2025): batch online policy iteration on conversations.

    Args:
        language_model: the weights that all parts share.
        policy: PPO on the language model's ``policy`` variant.
        critic: Q on its ``critic`` variant.
        renderer: the model's chat template.
        customer: makes a customer.
        settings: how often and how much.
        trainers: makes each phase's Trainer.
        logs: conversations to warm-start from; none skips the warm start.
        warm_start: the module that learns from them.
        held_out_customer: makes the customers of the second figure.
        callbacks: Lightning callbacks, which may have the outer hooks too.
        loggers: Lightning loggers.
        run_dir: where the run is kept; None keeps nothing, and cannot be resumed.
        name: the recipe's name.
        seed: same seed, same run.
    """

    def __init__(
        self,
        *,
        language_model: LanguageModel,
        policy: PPOPolicy,
        critic: QCritic,
        renderer: ChatRenderer,
        customer: Callable[[], Customer],
        settings: LoopSettings,
        trainers: TrainerFactory,
        logs: Sequence[Conversation] = (),
        warm_start: WarmStart | None = None,
        held_out_customer: Callable[[], Customer] | None = None,
        callbacks: Sequence[pl.Callback] = (),
        loggers: Sequence[Logger] = (),
        run_dir: RunDirectory | None = None,
        name: str = "run",
        seed: int = 1,
    ) -> None:
        self.language_model = language_model
        self.policy = policy
        self.critic = critic
        self.renderer = renderer
        self.customer = customer
        self.held_out_customer = held_out_customer
        self.settings = settings
        self.trainers = trainers
        self.logs = list(logs)
        self.warm_start = warm_start
        self.callbacks = list(callbacks)
        self.loggers = list(loggers)
        self.run_dir = run_dir
        self.seed = seed
        self.summary = Summary(recipe=name, seed=seed, machine=describe_machine())
        self.progress = Progress()
        self.conversations: list[Conversation] = []
        self.earlier: list[list[Conversation]] = []  # of the iterations before, the newest last
        self.evaluations: dict[int, Rate] = {}
        self.metrics: dict[str, float] = {}
        self.should_stop = False
        self.stop_reason: str | None = None
        self.steps = 0
        self._finished: list[str] = []  # names of phases that need not be done again
        self._current: IterationRecord | None = None
        self._samples: dict[str, list[Conversation]] = {}

    # -- what callbacks use --------------------------------------------------------------------------------------

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return rank() == 0

    def save_checkpoint(self, iteration: int) -> Any:
        """Writes the policy and the critic as they are now to the run's directory for that iteration.

        Raises:
            ValueError: the loop has no run directory.
        """
        if self.run_dir is None:
            raise ValueError("this loop has no run directory to write a checkpoint to")
        path = self.run_dir.checkpoint(iteration)
        if self.is_main:
            save_checkpoint(path, self.language_model, self.policy, self.critic)
        barrier()
        return path

    def hook(self, name: str) -> None:
        """Calls an outer hook on every callback that has it."""
        for callback in self.callbacks:
            method = getattr(callback, name, None)
            if method is not None:
                method(self)

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self) -> Summary:
        """Runs to the end, from wherever `load_state_dict` left it."""
        self._place()
        try:
            self.hook("on_run_start")
            self._phase("warm-start", self._warm_start)
            self._phase("before", lambda: self._measure("before"))
            for iteration in range(self.settings.iterations):
                if self.should_stop:
                    break
                self._iterate(iteration)
            self._phase("after", lambda: self._measure("after"))
            self._finish()
            self.hook("on_run_end")
        except BaseException:
            self.summary.status = "failed"
            self._write_summary()
            self.hook("on_run_exception")
            raise
        return self.summary

    def _iterate(self, iteration: int) -> None:
        self.progress.iteration = iteration
        if f"iteration-{iteration}" in self._finished:
            return
        if f"collect-{iteration}" not in self._finished:
            self.hook("on_iteration_start")
        self._phase(f"collect-{iteration}", lambda: self._collect(iteration), "on_collect_end")
        self._phase(f"evaluate-{iteration}", self._evaluate, "on_critic_fit_end")
        self._phase(f"improve-{iteration}", lambda: self._improve(iteration), "on_improve_end")
        every = self.settings.evaluate_every
        if every and (iteration + 1) % every == 0:
            self._phase(f"held-out-{iteration}", lambda: self._measure_iteration(iteration))
        self._end_iteration(iteration)

    def _phase(self, name: str, work: Callable[[], None], hook: str | None = None) -> None:
        """Does a phase and its hook unless they were done before, and saves that they were."""
        if name in self._finished:
            return
        pl.seed_everything(self._seed_of(name), verbose=False)
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        if name in ("before", "after") or name.startswith("held-out"):
            self.summary.evaluation_seconds += seconds
        else:
            self.summary.seconds += seconds
        kind, _, _ = name.partition("-")
        if self._current is not None and kind in ("collect", "evaluate", "improve"):
            self._current.seconds[kind] = seconds
        if hook is not None:
            self.hook(hook)
        self._finished.append(name)
        self.save()

    def _seed_of(self, name: str) -> int:
        return (self.seed * 1_000_003 + zlib.crc32(name.encode())) % 2**31

    def _moved(self) -> None:
        self.hook("on_progress")

    def _begin(self, phase: Phase, total: int = 0, unit: str = "") -> None:
        self.progress.begin(phase, total=total, unit=unit)
        self._moved()

    def _place(self) -> None:
        """Everything to this process's device, where it samples and scores."""
        for module in (self.policy, self.critic):
            module.to(self.trainers.device)

    def _fit(self, module: pl.LightningModule, data: pl.LightningDataModule, epochs: int, **options: Any) -> None:
        more = options.pop("callbacks", [])
        counter = FitProgress(self.progress, self.steps, self._moved)
        trainer = self.trainers.make(
            max_epochs=epochs, callbacks=[counter, *more, *self.callbacks], logger=self.loggers, **options
        )
        trainer.fit(module, datamodule=data)
        self._place()  # Lightning moves a fitted module off its device
        self.steps += trainer.global_step
        self.metrics.update({key: float(value) for key, value in trainer.callback_metrics.items() if key != "step"})

    # -- phases --------------------------------------------------------------------------------------------------

    def _warm_start(self) -> None:
        settings = self.settings
        if self.logs and self.warm_start is not None and settings.warm_start_epochs > 0:
            self._begin("warm-start")
            self.summary.logs = outcome_rate(self.logs)
            if self.run_dir is not None and self.is_main:
                write_conversations(self.run_dir.conversations("logs"), self.logs)
            # What people sent is to be imitated, not the suggestion that they put aside.
            sent = [conversation.as_sent() for conversation in self.logs]
            data = TurnDataModule(sent, renderer=self.renderer, batch_size=settings.warm_start_batch, seed=self.seed)
            self._fit(self.warm_start, data, settings.warm_start_epochs)
        if self.policy.kl_reference_coefficient > 0 or self.language_model.lora:
            self.language_model.copy(POLICY, REFERENCE)
        # The critic starts from the policy's trunk: one made from nothing fails on a few hundred conversations.
        self.language_model.copy(POLICY, CRITIC)

    def _collect(self, iteration: int) -> None:
        count = self.settings.conversations
        self._begin("collect", count, "conversations")
        first = _first_seed(_TRAINING_SEEDS, self.seed) + iteration * count
        name = f"iteration-{iteration:03d}"
        self.conversations = self._talk(self.customer, range(first, first + count), name, name)
        self._current = IterationRecord(iteration, outcome_rate(self.conversations))
        self._current.tokens["generated"] = self.progress.tokens
        self._current.tokens["trained"] = 0
        if self.run_dir is not None and self.is_main:
            write_conversations(self.run_dir.conversations(iteration), self.conversations)
        self.metrics["collect/outcome_rate"] = self._current.collected.outcome_rate

    def _talk(self, customer: Callable[[], Customer], seeds: range, version: str, prefix: str) -> list[Conversation]:
        """This process's share of the conversations, then everybody's."""
        own = list(seeds)[rank() :: world_size()]

        def progressed(done: int) -> None:
            self.progress.done = min(done * world_size(), len(seeds))
            self._moved()

        def engine() -> Engine:
            return self._engine(self._seed_of(f"{prefix}-{len(engines)}-{rank()}"), keep=True, engines=engines)

        engines: list[LocalEngine] = []
        found = collect(
            customer,
            own,
            engine=engine,
            renderer=self.renderer,
            sampling=self.settings.sampling,
            policy_version=version,
            prefix=prefix,
            batch=self.settings.batch,
            on_progress=progressed,
        )
        gathered: list[Conversation] = gather_lists(found)
        return sorted(gathered, key=lambda conversation: conversation.seed or 0)

    def _engine(self, seed: int, *, keep: bool, engines: list[LocalEngine] | None = None) -> LocalEngine:
        def counted(tokens: int) -> None:
            self.progress.tokens += tokens
            if self.progress.unit == "responses":
                self._moved()

        engine = LocalEngine(
            self.language_model,
            stop_token_id=self.renderer.stop_token_id,
            seed=seed,
            rows=max(self.settings.batch, 1),
            keep=keep,
            on_step=counted,
        )
        if engines is not None:
            engines.append(engine)
        return engine

    def _evaluate(self) -> None:
        """Fits Q on the iteration's conversations and some earlier ones; only the newest are held out."""
        settings = self.settings
        self._begin("evaluate")
        logs = self.logs if settings.critic_logs else []
        past = [*logs, *(c for part in self.earlier for c in part)]
        if settings.critic_epochs == 0:
            self._solve_head(past, self.conversations, measure=True)
        else:
            train, held = split_conversations(self.conversations, settings.validation_fraction, self.seed)
            if settings.critic_solve_head:
                self._solve_head(past, train)
            if logs and not self.summary.iterations:
                # The logs are of other people, whose outcomes come more or less often: they teach what matters, and the
                # newest conversations, which come last, how often it happens under π_k.
                self._fit_critic(logs, [])
            for conversations in self.earlier[len(self.earlier) - min(settings.history, len(self.earlier)) :]:
                train = [*train, *conversations]
            self._fit_critic(train, held)
        record = self._record
        for name in CRITIC_FIGURES:
            record.critic[name] = self.critic.figures.get(name)
        record.tokens["trained"] = (record.tokens["trained"] or 0) + self.progress.tokens
        self.metrics.update({f"critic/{k}": v for k, v in record.critic.items() if v is not None})

    def _solve_head(
        self, past: Sequence[Conversation], newest: Sequence[Conversation], *, measure: bool = False
    ) -> None:
        """The optimal linear head on the critic's trunk as it is; with ``measure`` cross-validated too."""
        settings = self.settings
        self.progress.step(len(past) + len(newest), "conversations read")
        found: list[ActionFeatures | None] = []
        for conversations in (past, newest):
            own = [c for c in conversations if c.outcome is not None][rank() :: world_size()]
            data = TurnDataModule(own, renderer=self.renderer, gamma=settings.gamma) if own else None
            gathered = gather_lists([self.critic.features(self._counted(data.train_dataloader()))] if data else [])
            found.append(ActionFeatures.join(gathered) if gathered else None)
        old, new = found
        if new is None:
            raise LogDataError(
                "none of the newest conversations has a known outcome, so the critic has nothing to learn from: "
                "give each conversation an `outcome`"
            )
        self.critic.fit_head(new, old, prior=settings.critic_head_prior)
        if measure:
            folds = max(2, round(1 / settings.validation_fraction))
            self.critic.figures = cross_validate_head(
                new, old, prior=settings.critic_head_prior, folds=folds, seed=self.seed
            )

    def _counted(self, batches: Iterable[TurnBatch]) -> Iterator[TurnBatch]:
        for batch in batches:
            yield batch
            self.progress.done += len(batch.tree.trees)
            self.progress.tokens += int(batch.tree.position_ids.numel())
            self._moved()

    def _fit_critic(self, train: Sequence[Conversation], held: Sequence[Conversation]) -> None:
        """Tunes the critic's trunk and head; measures them on the conversations held out, if there are any."""
        settings = self.settings
        data = self._critic_data(train, held)
        stop = EarlyStopping("critic/loss", patience=settings.critic_patience, check_on_train_epoch_end=False)
        self._fit(self.critic, data, settings.critic_epochs, callbacks=[stop] if held else [])

    def _critic_data(self, train: Sequence[Conversation], held: Sequence[Conversation]) -> TurnDataModule:
        settings = self.settings
        return TurnDataModule(
            train,
            held,
            renderer=self.renderer,
            gamma=settings.gamma,
            batch_size=settings.critic_batch,
            seed=self.seed,
        )

    def _improve(self, iteration: int) -> None:
        settings = self.settings
        self._begin("improve")
        self.language_model.copy(POLICY, ANCHOR)

        def score(states: Sequence[RoundState]) -> list[list[float]]:
            return self.critic.score([state.tree for state in states], on_batch=self._scored)

        rounds = RoundDataModule(
            self.policy,
            [*self.conversations, *self._log_states(iteration)],
            score,
            engine=lambda seed: self._engine(seed, keep=False),
            renderer=self.renderer,
            max_new_tokens=settings.sampling.max_new_tokens,
            samples_per_state=settings.samples_per_state,
            conversations_per_round=settings.conversations_per_round,
            logged_reward=settings.logged_reward,
            gamma=settings.gamma,
            ppo_epochs=settings.ppo_epochs,
            batch_size=settings.policy_batch,
            seed=self._seed_of(f"rounds-{iteration}"),
            on_stage=self._staged,
        )
        self._fit(self.policy, rounds, settings.rounds, rounds=True)
        rounds.measure()
        if not self.language_model.lora:
            self.language_model.discard(ANCHOR)
        record = self._record
        for name in POLICY_FIGURES:
            record.policy[name] = self.policy.figures.get(name)
        record.tokens["generated"] = (record.tokens["generated"] or 0) + rounds.generated_tokens
        record.tokens["trained"] = (record.tokens["trained"] or 0) + self.policy.trained_tokens
        self.metrics.update({f"policy/{k}": v for k, v in record.policy.items() if v is not None})

    def _log_states(self, iteration: int) -> list[Conversation]:
        """Logged conversations whose states join the collected ones: where the policy does not come by itself yet."""
        count = min(self.settings.log_conversations, len(self.logs))
        order = torch.randperm(
            len(self.logs), generator=torch.Generator().manual_seed(self._seed_of(f"logs-{iteration}"))
        )
        return [self.logs[index] for index in order[:count].tolist()]

    def _staged(self, stage: str, total: int) -> None:
        names = {"sample": "responses", "score": "conversations scored", "prepare": "conversations prepared"}
        if stage == "sample" and self.progress.unit:
            self.progress.round += 1
        self.progress.step(total, names.get(stage, "batches"))
        self._moved()

    def _scored(self, tokens: int) -> None:
        self._moved()

    @property
    def _record(self) -> IterationRecord:
        assert self._current is not None, "an iteration begins with collecting"
        return self._current

    def _measure_iteration(self, iteration: int) -> None:
        rate = self._rate(self.customer, self.settings.evaluation_conversations, _EVALUATION_SEEDS, "after")
        if rate is not None:
            self.evaluations[iteration] = rate
            self._record.held_out = rate

    def _measure(self, when: Phase) -> None:
        """The outcome rate on customers that training never meets, and on another kind of customer."""
        settings = self.settings
        rate = self._rate(self.customer, settings.evaluation_conversations, _EVALUATION_SEEDS, when)
        second = None
        if self.held_out_customer is not None:
            second = self._rate(self.held_out_customer, settings.held_out_conversations, _HELD_OUT_SEEDS, when)
        if when == "before":
            self.summary.before, self.summary.before_held_out = rate, second
        else:
            self.summary.after, self.summary.after_held_out = rate, second

    def _rate(self, customer: Callable[[], Customer], count: int, seeds: int, when: Phase) -> Rate | None:
        if count == 0:
            return None
        self._begin(when, count, "conversations")
        first = _first_seed(seeds, self.seed)
        kind = "" if seeds == _EVALUATION_SEEDS else "-held-out"
        found = self._talk(customer, range(first, first + count), when, f"{when}{kind}")
        if not kind:
            self._samples[when] = found
        if self.run_dir is not None and self.is_main:
            write_conversations(self.run_dir.conversations(f"{when}{kind}"), found)
        return outcome_rate(found)

    # -- parts of it alone ---------------------------------------------------------------------------------------

    def talk(self, conversations: int, name: str, *, training: bool) -> list[Conversation]:
        """Conversations under the policy as it is, with customers of the training seeds or of the evaluation ones."""
        self._place()
        self._begin("collect", conversations, "conversations")
        first = _first_seed(_TRAINING_SEEDS if training else _EVALUATION_SEEDS, self.seed)
        found = self._talk(self.customer, range(first, first + conversations), name, name)
        self.progress.begin("done")
        return found

    def fit_critic_only(
        self, logs: Sequence[Conversation], validation: Sequence[Conversation] | None
    ) -> dict[str, float | None]:
        """Fits Q on logs, some of them held out whole without validation conversations. Gives the held-out figures."""
        self._place()
        settings = self.settings
        self._begin("evaluate")
        if settings.critic_epochs == 0:
            self._solve_head([], logs, measure=validation is None)
            if validation is not None:
                trainer = self.trainers.make(max_epochs=1, callbacks=[], logger=self.loggers)
                trainer.validate(self.critic, datamodule=self._critic_data(logs, validation), verbose=False)
                self._place()
        else:
            if validation is None:
                logs, validation = split_conversations(logs, settings.validation_fraction, self.seed)
            if settings.critic_solve_head:
                self._solve_head([], logs)
            self._fit_critic(logs, validation)
        self.progress.begin("done")
        return dict(self.critic.figures)

    def improve_only(self, logs: Sequence[Conversation]) -> dict[str, float | None]:
        """One improvement from logged states against the critic as it is, with a checkpoint. Gives its figures."""
        self._place()
        self.conversations = list(logs)
        self._current = IterationRecord(0, outcome_rate(logs))
        self._phase("improve-0", lambda: self._improve(0), "on_improve_end")
        self._end_iteration(0)
        self._finish()
        return dict(self.summary.iterations[0].policy)

    # -- ends ----------------------------------------------------------------------------------------------------

    def _end_iteration(self, iteration: int) -> None:
        self.summary.iterations.append(self._record)
        self.earlier = [*self.earlier, self.conversations][-max(self.settings.history, 1) :]
        self._finished = [name for name in self._finished if not name.endswith(f"-{iteration}")]
        self._finished.append(f"iteration-{iteration}")
        self.hook("on_iteration_end")
        self.summary.stop_reason = self.stop_reason
        self.save()

    def _finish(self) -> None:
        last = len(self.summary.iterations) - 1
        if self.run_dir is not None and last >= 0 and not self.run_dir.checkpoint(last).exists():
            self.save_checkpoint(last)
        for name in ("before", "after"):
            if name not in self._samples and self.run_dir is not None and self.run_dir.conversations(name).exists():
                self._samples[name] = read_conversations(self.run_dir.conversations(name))
        self.summary.examples = side_by_side(self._samples.get("before", []), self._samples.get("after", []))
        self.progress.begin("done")
        self.summary.status = "finished"
        self._finished.append("done")
        self.save()

    # -- state ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on; plain values and tensors only.

        Every phase makes its own optimiser and seeds its own randomness, so between phases there is neither to keep.
        """
        return {
            "finished": list(self._finished),
            "summary": self.summary.to_json(),
            "current": None if self._current is None else asdict(self._current),
            "evaluations": {str(k): asdict(v) for k, v in self.evaluations.items()},
            "metrics": dict(self.metrics),
            "steps": self.steps,
            "should_stop": self.should_stop,
            "stop_reason": self.stop_reason,
            "conversations": [c.to_json() for c in self.conversations],
            "earlier": [[c.to_json() for c in part] for part in self.earlier],
            "callbacks": {callback.state_key: callback.state_dict() for callback in self.callbacks},
            "modules": module_state(self.language_model, self.policy, self.critic),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        self._finished = list(state["finished"])
        self.summary = Summary.from_json(state["summary"])
        self.summary.status = "running"
        self._current = None if state["current"] is None else IterationRecord.from_json(state["current"])
        self.evaluations = {int(k): Rate.from_json(v) for k, v in state["evaluations"].items()}
        self.metrics = dict(state["metrics"])
        self.steps = int(state["steps"])
        self.should_stop = bool(state["should_stop"])
        self.stop_reason = state["stop_reason"]
        self.conversations = [Conversation.from_json(record) for record in state["conversations"]]
        self.earlier = [[Conversation.from_json(record) for record in part] for part in state["earlier"]]
        for callback in self.callbacks:
            if callback.state_key in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.state_key])
        load_modules(state["modules"], self.language_model, self.policy, self.critic)

    def save(self) -> None:
        """Writes the state and `summary.json`."""
        if self.run_dir is not None and self.is_main:
            self.run_dir.save_state(self.state_dict())
        self._write_summary()
        barrier()

    def _write_summary(self) -> None:
        peak = peak_memory_bytes()
        if peak is not None:
            self.summary.peak_memory_bytes = max(peak, self.summary.peak_memory_bytes or 0)
        if self.run_dir is not None and self.is_main:
            self.run_dir.write_summary(self.summary)
