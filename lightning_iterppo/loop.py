"""IterativePPOLoop: collect, evaluate, improve, again.

Lightning 2 has no public custom loop, so this is an object of its own. It makes a fresh Trainer for every phase, calls
the outer hooks of the callbacks, and writes what `--resume` needs after every phase: a run that was killed repeats at
most the phase it was in. Every phase takes its randomness from (seed, phase, iteration), so a repeated phase is the
same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.critic import QCritic
from lightning_iterppo.critic_fit import CriticFit
from lightning_iterppo.customers import Customer
from lightning_iterppo.data.logs import write_conversations
from lightning_iterppo.delivery import Delivery
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.evaluation.rates import known_rate, outcome_rate
from lightning_iterppo.imitation import imitate
from lightning_iterppo.loop_state import restore, state_of
from lightning_iterppo.machine import describe_machine, peak_memory_bytes
from lightning_iterppo.measurement import Measurement
from lightning_iterppo.models.language_model import CRITIC, POLICY, REFERENCE, LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.phase import PhaseTools
from lightning_iterppo.policy import PPOPolicy
from lightning_iterppo.policy_improvement import PolicyImprovement
from lightning_iterppo.progress import Progress
from lightning_iterppo.run_directory import RunDirectory
from lightning_iterppo.run_record import RunRecord
from lightning_iterppo.settings import LoopSettings
from lightning_iterppo.snapshot import save_checkpoint
from lightning_iterppo.summary import Rate, Summary
from lightning_iterppo.talker import EVALUATION_SEEDS, TRAINING_SEEDS, Talker
from lightning_iterppo.trainer import TrainerFactory, barrier, rank
from lightning_iterppo.warm_start import WarmStart


class IterativePPOLoop:
    """Iterative PPO (Jiang et al. 2025): batch online policy iteration on conversations.

    Args:
        language_model: the weights that all parts share.
        policy: PPO on the language model's ``policy`` variant.
        critic: Q on its ``critic`` variant.
        renderer: the model's chat template.
        customer: makes a customer; None learns from the logs alone.
        settings: how often and how much.
        trainers: makes each phase's Trainer.
        logs: conversations to warm-start from; none skips the warm start.
        warm_start: the module that learns from them.
        held_out_customer: makes the customers of the second figure.
        delivery: gives the policy to a server, which collects in its place; None collects with the weights in memory.
        estimate: what logs say the policy would earn, asked at the end: for ``summary.estimate``.
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
        customer: Callable[[], Customer] | None,
        settings: LoopSettings,
        trainers: TrainerFactory,
        logs: Sequence[Conversation] = (),
        warm_start: WarmStart | None = None,
        held_out_customer: Callable[[], Customer] | None = None,
        delivery: Delivery | None = None,
        estimate: Callable[[IterativePPOLoop], dict[str, Any]] | None = None,
        callbacks: Sequence[pl.Callback] = (),
        loggers: Sequence[Logger] = (),
        run_dir: RunDirectory | None = None,
        name: str = "run",
        seed: int = 1,
    ) -> None:
        self.language_model = language_model
        language_model.precision = trainers.autocast
        self.policy = policy
        self.critic = critic
        self.renderer = renderer
        self.customer = customer
        self.held_out_customer = held_out_customer
        self.estimate = estimate
        self.settings = settings
        self.logs = list(logs)
        self.warm_start = warm_start
        self.callbacks = list(callbacks)
        self.run_dir = run_dir
        self.seed = seed
        self.tools = PhaseTools(
            trainers,
            (policy, critic),
            moved=lambda: self.hook("on_progress"),
            callbacks=self.callbacks,
            loggers=list(loggers),
            seed=seed,
        )
        self.record = RunRecord(Summary(recipe=name, seed=seed, machine=describe_machine()), self.tools.metrics)
        self.talker = Talker(
            language_model,
            renderer,
            settings,
            self.tools,
            events=critic.objective.probability,
            delivery=delivery,
            on_failures=self.record.failed,
            on_usage=self.record.used,
            on_mismatch=self.record.mismatched,
        )
        self.measurement = Measurement(self.talker, settings, self.tools, self._keep)
        self.critic_fit = CriticFit(critic, renderer, settings, self.tools)
        self.improvement = PolicyImprovement(policy, critic, self.talker, settings, self.tools)
        self.conversations: list[Conversation] = []
        self.earlier: list[list[Conversation]] = []  # of the iterations before, the newest last
        self.evaluations: dict[int, Rate] = {}
        self.should_stop = False
        self.stop_reason: str | None = None
        self.finished: list[str] = []  # names of phases that need not be done again

    # -- what callbacks use --------------------------------------------------------------------------------------

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return rank() == 0

    @property
    def summary(self) -> Summary:
        """What the run found out so far."""
        return self.record.summary

    @property
    def progress(self) -> Progress:
        """Where the run is."""
        return self.tools.progress

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of every metric."""
        return self.tools.metrics

    @property
    def steps(self) -> int:
        """Optimiser steps so far."""
        return self.tools.steps

    def save_checkpoint(self, iteration: int) -> Any:
        """Writes the policy and the critic as they are now to the run's directory for that iteration.

        Raises:
            ValueError: the loop has no run directory.
        """
        if self.run_dir is None:
            raise ValueError("this loop has no run directory to write a checkpoint to")
        path = self.run_dir.checkpoint(iteration)
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
        with self.running():
            self._phase("warm-start", self._warm_start)
            self._phase("before", lambda: self._measure("before"))
            for iteration in range(self.settings.iterations):
                if self.should_stop:
                    break
                self._iterate(iteration)
            self.talker.stop()
            self._phase("after", lambda: self._measure("after"))
            self._finish()
        return self.summary

    @contextmanager
    def running(self) -> Iterator[None]:
        """Begins and ends with the hooks of a run, whatever happens in between: for a part of one alone, too."""
        self.tools.place()
        try:
            self.hook("on_run_start")
            yield
            self.hook("on_run_end")
        except BaseException:
            self.summary.status = "failed"
            self._write_summary()
            self.hook("on_run_exception")
            raise
        finally:
            self.talker.stop()

    def _iterate(self, iteration: int) -> None:
        self.progress.iteration = iteration
        if f"iteration-{iteration}" in self.finished:
            return
        if self.customer is None:
            self._take_logs(iteration)
        else:
            if f"collect-{iteration}" not in self.finished:
                # Not the last iteration's improvement, which would be seen to begin again.
                self.progress.begin("collect")
                self.hook("on_iteration_start")
            self._phase(f"collect-{iteration}", lambda: self._collect(iteration), "on_collect_end")
            self._collect_ahead(iteration)
        self._phase(f"evaluate-{iteration}", self._evaluate, "on_critic_fit_end")
        self._phase(f"improve-{iteration}", lambda: self._improve(iteration), "on_improve_end")
        every = self.settings.evaluate_every
        if every and (iteration + 1) % every == 0:
            self._phase(f"held-out-{iteration}", lambda: self._measure_iteration(iteration))
        self._end_iteration(iteration)

    def _phase(self, name: str, work: Callable[[], None], hook: str | None = None) -> None:
        """Does a phase and its hook unless they were done before, and saves that they were."""
        if name in self.finished:
            return
        pl.seed_everything(self.tools.seed_of(name), verbose=False)
        started = time.perf_counter()
        work()
        self.record.spent(name, time.perf_counter() - started)
        if hook is not None:
            self.hook(hook)
        self.finished.append(name)
        self.save()

    # -- phases --------------------------------------------------------------------------------------------------

    def _warm_start(self) -> None:
        if self.logs and self.warm_start is not None and self.settings.warm_start_epochs > 0:
            self.tools.begin("warm-start")
            self.summary.logs = known_rate(self.logs)
            self._keep("logs", self.logs)
            trees = imitate(self.warm_start, self.logs, self.renderer, self.settings, self.tools)
            self.critic_fit.take_over(trees)
        self.start_from_policy()

    def _collect(self, iteration: int) -> None:
        count = self.settings.conversations
        self.tools.begin("collect", count, "conversations")
        name = f"iteration-{iteration:03d}"
        assert self.customer is not None, "without a customer there is nothing to collect"
        self.conversations = self.talker.talk(self.customer, TRAINING_SEEDS, count, name, name, after=iteration * count)
        rate = outcome_rate(self.conversations)
        self.record.begin(iteration, rate, self.conversations)
        self.record.count("generated", self.progress.tokens)
        self._keep(iteration, self.conversations)
        self.metrics["collect/outcome_rate"] = rate.outcome_rate

    def _collect_ahead(self, iteration: int) -> None:
        """Begins the next iteration's conversations, by the policy that had this one's."""
        if not self.settings.overlap or f"improve-{iteration}" in self.finished:
            return
        count, following = self.settings.conversations, iteration + 1
        if self.customer is not None and following < self.settings.iterations:
            version, name = f"iteration-{iteration:03d}", f"iteration-{following:03d}"
            self.talker.talk_ahead(self.customer, TRAINING_SEEDS, count, version, name, after=following * count)

    def _take_logs(self, iteration: int) -> None:
        """Nobody to talk to: the logs are what there is."""
        self.conversations = self.logs
        if self.record.current is None or self.record.current.iteration != iteration:
            self.record.begin(iteration, None, self.conversations)
            self.progress.begin("evaluate")
            self.hook("on_iteration_start")

    def _evaluate(self) -> None:
        self.tools.begin("evaluate")
        if self.customer is None:
            self.critic_fit.logs(self.logs, None)
        else:
            logs = self.logs if self.settings.critic_logs else []
            self.critic_fit.iteration(self.conversations, self.earlier, logs)
        self.record.critic(self.critic.figures)
        self.record.count("trained", self.progress.tokens)

    def _improve(self, iteration: int) -> None:
        self.tools.begin("improve")
        people = [] if self.customer is None else self.logs  # whose logs those conversations are already
        generated = self.improvement.iteration(iteration, self.conversations, self.earlier, people)
        self.record.policy(self.policy.figures)
        self.record.count("generated", generated)
        self.record.count("trained", self.policy.trained_tokens)

    def _measure_iteration(self, iteration: int) -> None:
        rate = self.measurement.evaluation(self.customer, "after")
        if rate is not None:
            self.evaluations[iteration] = rate
            self.record.running.held_out = rate

    def _measure(self, when: Literal["before", "after"]) -> None:
        """The outcome rate on customers that training never meets, and on another kind of customer."""
        rate = self.measurement.evaluation(self.customer, when)
        second = self.measurement.held_out(self.held_out_customer, when)
        self.summary.measured(when, rate, second)
        if when == "after" and self.estimate is not None:
            self.tools.begin("score")
            self.summary.estimate = self.estimate(self)

    def _keep(self, name: int | str, conversations: Sequence[Conversation]) -> None:
        if self.run_dir is not None and self.is_main:
            write_conversations(self.run_dir.conversations(name), conversations)

    # -- parts of it alone ---------------------------------------------------------------------------------------

    def talk(self, conversations: int, name: str, *, training: bool) -> list[Conversation]:
        """Conversations under the policy as it is, with customers of the training seeds or of the evaluation ones."""
        with self.running():
            if self.customer is None:
                raise ConfigError("nobody to talk to: choose a customer (customer=shop) or name a class")
            self.tools.begin("collect", conversations, "conversations")
            seeds = TRAINING_SEEDS if training else EVALUATION_SEEDS
            found = self.talker.talk(self.customer, seeds, conversations, name, name)
            self._done()
        return found

    def start_from_policy(self) -> None:
        """Makes the policy as it is the reference, and the critic's trunk."""
        if self.policy.kl_reference_coefficient > 0 or self.language_model.lora or self.settings.log_actions:
            self.language_model.copy(POLICY, REFERENCE)
        # The critic starts from the policy's trunk: one made from nothing fails on a few hundred conversations.
        self.language_model.copy(POLICY, CRITIC)
        self.critic_fit.forget()

    def fit_critic_only(
        self, logs: Sequence[Conversation], validation: Sequence[Conversation] | None
    ) -> dict[str, float | None]:
        """Fits Q on logs, some of them held out whole without validation conversations. Gives the held-out figures."""
        with self.running():
            self.tools.begin("evaluate")
            self.critic_fit.logs(logs, validation)
            self._done()
        cut = {} if self.renderer.window is None else {"histories_cut": self.renderer.cuts.share}
        return {**self.critic.figures, **cut}

    def improve_only(self, logs: Sequence[Conversation]) -> dict[str, float | None]:
        """One improvement from logged states against the critic as it is, with a checkpoint. Gives its figures."""
        with self.running():
            self.conversations = list(logs)
            self.record.begin(0, known_rate(logs), logs)
            self._phase("improve-0", lambda: self._improve(0), "on_improve_end")
            self._end_iteration(0)
            self._finish()
        return dict(self.summary.iterations[0].policy)

    # -- ends ----------------------------------------------------------------------------------------------------

    def _end_iteration(self, iteration: int) -> None:
        self.record.end(self.renderer.cuts.share)
        kept = max(self.settings.history, self.settings.policy_history, 1)
        if self.customer is not None:
            self.earlier = [*self.earlier, self.conversations][-kept:]
        self.finished = [*(n for n in self.finished if not n.endswith(f"-{iteration}")), f"iteration-{iteration}"]
        self.hook("on_iteration_end")
        self.summary.stop_reason = self.stop_reason
        self.save()

    def _finish(self) -> None:
        last = len(self.summary.iterations) - 1
        if self.run_dir is not None and last >= 0 and not self.run_dir.checkpoint(last).exists():
            self.save_checkpoint(last)
        self.summary.examples = self.measurement.examples(self.run_dir)
        self._done()
        self.finished.append("done")
        self.save()

    def _done(self) -> None:
        self.progress.begin("done")
        self.summary.status = "finished"

    # -- state ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on, see `loop_state.state_of`."""
        return state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        restore(self, state)

    def save(self) -> None:
        """Writes the state and `summary.json`."""
        if self.run_dir is not None:
            # Weights in shards are put together by all for the first one.
            state = self.state_dict() if self.is_main or self.language_model.sharded else {}
            if self.is_main:
                self.run_dir.save_state(state)
        self._write_summary()
        barrier()

    def _write_summary(self) -> None:
        self.summary.peak_memory_bytes = max(peak_memory_bytes() or 0, self.summary.peak_memory_bytes or 0) or None
        if self.run_dir is not None and self.is_main:
            self.run_dir.write_summary(self.summary)
