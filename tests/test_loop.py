"""IterativePPOLoop: its phases, its hooks, and what a run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_iterppo import critic_fit
from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.customers import CustomerReply, Message
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.errors import CustomerError, LogDataError
from lightning_iterppo.evaluation.rates import outcome_rate
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.run_directory import RunDirectory

Make = Callable[..., IterativePPOLoop]
ITERATION = ["on_iteration_start", "on_collect_end", "on_critic_fit_end", "on_improve_end", "on_iteration_end"]
RATE = {"outcome_rate", "ci95", "conversations", "return_mean"}


class Watcher(Callback):
    """Everything that the loop says on its way."""

    def __init__(self) -> None:
        self.hooks: list[str] = []
        self.phases: list[str] = []
        self.units: list[tuple[str, str]] = []
        self.furthest: dict[tuple[str, int, str], tuple[int, int]] = {}
        self.tokens: dict[str, int] = {}
        self.batches: dict[str, int] = {}
        self.seen: dict[str, Any] = {}
        self.trees: list[int] = []

    def on_run_start(self, loop: IterativePPOLoop) -> None:
        self.hooks.append("on_run_start")

    def on_iteration_start(self, loop: IterativePPOLoop) -> None:
        self.hooks.append("on_iteration_start")
        self.seen.setdefault("starts", []).append((loop.progress.phase, loop.progress.iteration))

    def on_progress(self, loop: IterativePPOLoop) -> None:
        now = loop.progress
        if not self.phases or self.phases[-1] != now.phase:
            self.phases.append(now.phase)
        if (now.phase, now.unit) not in self.units:
            self.units.append((now.phase, now.unit))
        self.furthest[now.phase, now.iteration, now.unit] = (now.done, now.total)
        self.tokens[now.phase] = now.tokens

    def on_collect_end(self, loop: IterativePPOLoop) -> None:
        self.hooks.append("on_collect_end")
        self.seen["conversations"] = list(loop.conversations)

    def on_critic_fit_end(self, loop: IterativePPOLoop) -> None:
        self.hooks.append("on_critic_fit_end")
        self.seen["critic"] = dict(loop.metrics)

    def on_improve_end(self, loop: IterativePPOLoop) -> None:
        self.hooks.append("on_improve_end")
        self.seen["policy"] = dict(loop.metrics)

    def on_iteration_end(self, loop: IterativePPOLoop) -> None:
        self.hooks.append("on_iteration_end")
        assert loop.summary.iterations[-1].iteration == loop.progress.iteration
        assert all(value is not None for value in loop.summary.iterations[-1].seconds.values())

    def on_run_end(self, loop: IterativePPOLoop) -> None:
        self.hooks.append("on_run_end")
        assert loop.summary.status == "finished"

    def on_run_exception(self, loop: IterativePPOLoop) -> None:
        self.hooks.append("on_run_exception")
        assert loop.summary.status == "failed"

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.trees.append(len(getattr(data, "train_trees", [])))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *others: Any) -> None:
        name = type(pl_module).__name__
        self.batches[name] = self.batches.get(name, 0) + 1


@dataclass
class Run:
    """A finished run."""

    loop: IterativePPOLoop
    watcher: Watcher
    path: Path
    summary: dict[str, Any] = field(default_factory=dict)


def logs(count: int = 12) -> list[Conversation]:
    return [
        Conversation(f"log-{n}", (Turn("red ?", ("red", "no")[n % 2], reward=float(n % 2 == 0)),), outcome=1.0 - n % 2)
        for n in range(count)
    ]


@pytest.fixture(scope="module", params=["full", "lora"])
def run(make_loop: Make, word_customer: Any, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Run:
    """One undisturbed run with everything in it, looked at by many tests."""
    path = tmp_path_factory.mktemp("run") / "here"
    watcher = Watcher()
    loop = make_loop(
        request.param,
        settings={"evaluate_every": 2, "held_out_conversations": 6, "warm_start_epochs": 1},
        callbacks=[watcher],
        run_dir=RunDirectory.create(path, "recipe: text\n"),
        logs=logs(),
        held_out_customer=word_customer,
        name="words",
        seed=7,
    )
    loop.run()
    return Run(loop, watcher, path, json.loads((path / "summary.json").read_text()))


# -- what happens when -----------------------------------------------------------------------------------------------


def test_every_hook_is_called_once_and_in_order(run: Run) -> None:
    assert run.watcher.hooks == ["on_run_start", *ITERATION, *ITERATION, "on_run_end"]


def test_the_phases_come_in_order(run: Run) -> None:
    iteration = ["collect", "evaluate", "improve"]
    # The held-out rate after the second iteration is measured like the one at the end.
    assert run.watcher.phases == ["warm-start", "before", *iteration, *iteration, "after"]
    assert run.loop.progress.phase == "done"


def test_an_iteration_starts_in_its_own_first_phase(run: Run) -> None:
    assert run.watcher.seen["starts"] == [("collect", 0), ("collect", 1)]


def test_progress_counts_up_to_the_end_of_each_step(run: Run) -> None:
    furthest = run.watcher.furthest
    assert furthest["collect", 1, "conversations"] == (20, 20)
    assert furthest["before", 0, "conversations"] == (6, 6)  # the held-out customers come last
    assert furthest["warm-start", 0, "batches"] == (2, 2)
    assert furthest["evaluate", 0, "batches"][0] > 0
    assert furthest["improve", 1, "batches"] == (2, 2)
    units = [unit for phase, unit in run.watcher.units if phase == "improve"]
    assert units == ["", "responses", "conversations scored", "conversations prepared", "batches"]
    for unit in units[1:]:
        done, total = furthest["improve", 0, unit]
        assert done == total > 0
    assert all(run.watcher.tokens[phase] > 0 for phase in run.watcher.phases)


def test_callbacks_see_what_they_are_told_about(run: Run) -> None:
    seen = run.watcher.seen
    assert len(seen["conversations"]) == 20
    assert {"critic/brier", "critic/loss", "collect/outcome_rate"} <= set(seen["critic"])
    assert {"policy/kl_old", "policy/loss", "policy/reward_mean"} <= set(seen["policy"])
    # Lightning's own hooks fire too: one batch of warm start for 8 of 12 logs, and so on.
    assert run.watcher.batches["WarmStart"] == 2
    assert run.watcher.batches["PPOPolicy"] == 2 * 2 * 2
    assert run.watcher.batches["QCritic"] > 0


def test_the_critic_learns_from_the_newest_and_some_earlier_conversations(run: Run) -> None:
    # Warm start; then the 12 logs, 16 of 20 new ones; a round; 16 of 20 and the 20 of the iteration before; a round.
    assert run.watcher.trees == [12, 12, 16, 0, 16 + 20, 0]


@pytest.mark.parametrize(("history", "expected"), [(0, [16, 16]), (5, [16, 36])])
def test_history_is_a_number_of_iterations(make_loop: Make, history: int, expected: list[int]) -> None:
    watcher = Watcher()
    make_loop(settings={"history": history, "rounds": 1, "evaluation_conversations": 0}, callbacks=[watcher]).run()
    assert [count for count in watcher.trees if count] == expected


def test_earlier_turns_may_count_by_how_likely_the_policy_is_to_go_on_so(make_loop: Make) -> None:
    seen: list[list[list[float]]] = []

    class Looks(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append([t.weights for t in getattr(trainer.datamodule, "train_trees", [])])  # type: ignore[attr-defined]

    settings = {"history": 1, "history_weights": True, "evaluation_conversations": 0, "rounds": 1}
    make_loop(settings=settings, callbacks=[Looks()]).run()
    first, second = ([weights for weights in found if weights] for found in seen if found)
    assert first == []
    assert len(second) == 20  # those of the iteration before
    assert all(0 < weight <= 1 for weights in second for weight in weights)
    assert all(weights[-1] == 1.0 for weights in second)  # nothing comes after the last turn


# -- what it leaves behind -------------------------------------------------------------------------------------------


def test_the_summary_has_the_keys_of_its_schema(run: Run) -> None:
    summary = run.summary
    promised = {
        *("schema", "recipe", "seed", "status", "seconds", "peak_memory_bytes", "before", "after", "iterations"),
    }
    added = {"evaluation_seconds", "before_held_out", "after_held_out", "logs", "stop_reason", "machine"}
    added |= {"histories_cut", "estimate", "failed", "usage", "engine", "start"}
    assert set(summary) == promised | added
    assert (summary["schema"], summary["recipe"], summary["seed"], summary["status"]) == (1, "words", 7, "finished")
    assert summary["seconds"] > 0 and summary["peak_memory_bytes"] > 1_000_000
    for name in ("before", "after", "before_held_out", "after_held_out", "logs"):
        assert set(summary[name]) == RATE
        low, high = summary[name]["ci95"]
        assert 0 <= low <= summary[name]["outcome_rate"] <= high <= 1
    assert [record["iteration"] for record in summary["iterations"]] == [0, 1]
    for record in summary["iterations"]:
        assert set(record) == {
            "iteration",
            "collected",
            "critic",
            "policy",
            "seconds",
            "tokens",
            "held_out",
            "suggestions",
        }
        assert set(record["collected"]) == RATE
        assert set(record["critic"]) == {"auroc", "brier", "ece", "explained_variance", "turns", "brier_constant"}
        assert set(record["policy"]) == {
            *("kl_old", "kl_reference", "clip_fraction", "entropy", "reward_mean", "reward_gain"),
        }
        assert set(record["seconds"]) == {"collect", "evaluate", "improve"}
        assert set(record["tokens"]) == {"generated", "trained"}
        assert min(record["tokens"].values()) > 0
        assert record["critic"]["turns"] >= 4
    first, second = run.summary["iterations"]
    assert first["held_out"] is None and set(second["held_out"]) == RATE
    assert run.loop.evaluations.keys() == {1}


def test_what_was_not_computed_is_null(make_loop: Make, tmp_path: Path) -> None:
    loop = make_loop(
        settings={"iterations": 1, "evaluation_conversations": 0}, run_dir=RunDirectory.create(tmp_path / "run", "")
    )
    loop.run()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name in ("before", "after", "before_held_out", "after_held_out", "logs", "stop_reason"):
        assert summary[name] is None
    assert summary["iterations"][0]["policy"]["kl_reference"] is None
    assert summary["iterations"][0]["held_out"] is None


def test_the_run_directory_is_laid_out_as_promised(run: Run) -> None:
    names = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    talks = {f"conversations/{name}.jsonl" for name in ("logs", "before", "after", "iteration-000", "iteration-001")}
    assert {"recipe.yaml", "summary.json", "checkpoints/last.ckpt", *talks} <= names
    # No callback kept a checkpoint, so the last policy is written at the end: there is always something to export.
    weights = "adapter_model.safetensors" if run.loop.language_model.lora else "model.safetensors"
    assert {f"checkpoints/iteration-001/{part}/{weights}" for part in ("policy", "critic")} <= names
    assert not [name for name in names if ".tmp" in name or ".old" in name]


def test_collected_conversations_are_those_of_the_summary(run: Run) -> None:
    for iteration in (0, 1):
        found = read_conversations(run.path / "conversations" / f"iteration-00{iteration}.jsonl")
        assert len(found) == len({talk.id for talk in found}) == 20
        assert {talk.policy_version for talk in found} == {f"iteration-00{iteration}"}
        rate = outcome_rate(found)
        assert run.loop.summary.iterations[iteration].collected == rate
        for turn in (turn for talk in found for turn in talk.turns):
            assert turn.suggestion is not None
            assert len(turn.suggestion.token_ids) == len(turn.suggestion.logprobs) > 0
    assert run.loop.summary.after == outcome_rate(read_conversations(run.path / "conversations" / "after.jsonl"))


def test_training_and_evaluation_never_meet_the_same_customer(run: Run) -> None:
    def seeds(name: str) -> set[int | None]:
        return {talk.seed for talk in read_conversations(run.path / "conversations" / f"{name}.jsonl")}

    before, after = seeds("before"), seeds("after")
    assert before == after and len(before) == 10  # the same customers, so that the two rates are comparable
    parts = [seeds("iteration-000"), seeds("iteration-001"), before, seeds("before-held-out")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 20 + 20 + 10 + 6
    assert seeds("after-held-out") == seeds("before-held-out")


def test_two_conversations_are_kept_to_show(run: Run) -> None:
    before, after = run.loop.summary.examples
    assert before is not None and after is not None
    assert before.id.startswith("before-") and after.id.startswith("after-")


# -- options of a run ------------------------------------------------------------------------------------------------


def comparable(loop: IterativePPOLoop) -> dict[str, Any]:
    record = loop.summary.to_json()
    for key in ("seconds", "evaluation_seconds", "peak_memory_bytes"):
        record.pop(key)
    for iteration in record["iterations"]:
        iteration.pop("seconds")
    return record


def test_a_run_without_a_directory_is_the_same_run_and_leaves_nothing(
    make_loop: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = make_loop(settings={"iterations": 1})
    first.run()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no run directory"):
        first.save_checkpoint(0)
    kept = make_loop(settings={"iterations": 1}, run_dir=RunDirectory.create(tmp_path / "run", ""))
    torch.manual_seed(123)  # a run takes its randomness from its seed alone
    kept.run()
    assert comparable(kept) == comparable(first)
    other = make_loop(settings={"iterations": 1}, seed=2)
    other.run()
    assert {**comparable(other), "seed": 1} != comparable(first)


def test_a_callback_may_stop_the_run(make_loop: Make) -> None:
    class Enough(Watcher):
        def on_iteration_end(self, loop: IterativePPOLoop) -> None:
            super().on_iteration_end(loop)
            loop.should_stop, loop.stop_reason = True, "enough"

    watcher = Enough()
    loop = make_loop(settings={"iterations": 5}, callbacks=[watcher])
    summary = loop.run()
    assert watcher.hooks == ["on_run_start", *ITERATION, "on_run_end"]
    assert (len(summary.iterations), summary.stop_reason, summary.status) == (1, "enough", "finished")
    assert summary.after is not None


@pytest.mark.parametrize("when", ["on_run_start", "on_critic_fit_end", "on_train_batch_end", "on_progress"])
def test_an_exception_is_told_and_raised(make_loop: Make, tmp_path: Path, when: str) -> None:
    class Breaks(Watcher):
        pass

    def fail(self: Watcher, *given: Any) -> None:
        raise RuntimeError("boom")

    setattr(Breaks, when, fail)
    watcher = Breaks()
    loop = make_loop(callbacks=[watcher], run_dir=RunDirectory.create(tmp_path / "run", ""))
    with pytest.raises(RuntimeError, match="boom"):
        loop.run()
    assert watcher.hooks[-1] == "on_run_exception"
    assert watcher.hooks.count("on_run_exception") == 1
    assert "on_run_end" not in watcher.hooks
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_without_logs_there_is_no_warm_start(make_loop: Make) -> None:
    watcher = Watcher()
    make_loop(settings={"iterations": 1, "evaluation_conversations": 0}, callbacks=[watcher]).run()
    assert "WarmStart" not in watcher.batches
    assert watcher.phases == ["collect", "evaluate", "improve"]


def test_what_people_sent_is_imitated_and_not_what_they_rejected(make_loop: Make) -> None:
    rejected = [replace(talk, turns=(_rejected(talk.turns[0]),)) for talk in logs()]
    trees: list[list[int]] = []

    class Looks(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            for item in trainer.datamodule.train_trees:  # type: ignore[attr-defined]
                trees.extend(list(item.tree.segments[action].token_ids) for action in item.tree.actions)
            raise RuntimeError("seen")

    loop = make_loop(callbacks=[Looks()], logs=rejected)
    with pytest.raises(RuntimeError, match="seen"):
        loop.run()
    assert {loop.renderer.decode(ids) for ids in trees} == {"red", "no"}


def _rejected(turn: Turn) -> Turn:
    return replace(turn, suggestion=Suggestion("blue"), disposition="rejected")


def test_the_critic_starts_from_the_warm_started_policy(make_loop: Make) -> None:
    class Looks(Callback):
        same = False
        moved = False

        def on_iteration_start(self, loop: IterativePPOLoop) -> None:
            policy, critic, base = (loop.language_model.variant_tensors(v) for v in ("policy", "critic", "anchor"))
            self.same = all(torch.equal(policy[key], critic[key]) for key in policy)
            self.moved = any(not torch.equal(policy[key], base[key]) for key in policy)
            loop.should_stop = True

    looks = Looks()
    make_loop("lora", settings={"iterations": 1, "evaluation_conversations": 0}, callbacks=[looks], logs=logs()).run()
    assert looks.same and looks.moved


def test_a_critic_that_is_solved_for_and_not_tuned_is_measured_all_the_same(make_loop: Make) -> None:
    watcher = Watcher()
    loop = make_loop(settings={"iterations": 1, "critic_epochs": 0, "evaluation_conversations": 0}, callbacks=[watcher])
    loop.run()
    assert "QCritic" not in watcher.batches
    assert loop.summary.iterations[0].critic["brier"] is not None
    assert loop.critic.head.linear.weight.abs().max() > 0
    assert loop.language_model.active == "policy"


def test_a_trunk_that_is_not_tuned_reads_no_conversation_twice(
    make_loop: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"iterations": 3, "critic_epochs": 0, "evaluation_conversations": 0, "warm_start_epochs": 0}

    def run() -> tuple[list[int], IterativePPOLoop]:
        watcher = Watcher()
        loop = make_loop(settings=settings, callbacks=[watcher], logs=logs())
        loop.run()
        return [watcher.furthest["evaluate", i, "conversations read"][0] for i in range(3)], loop

    read, loop = run()
    known = sum(talk.outcome is not None for talk in logs())
    assert read == [known + 20, 20, 20]
    monkeypatch.setattr(critic_fit.CriticFit, "_seen_before", lambda self, group: None)
    all_read, forgetful = run()
    assert all_read == [known + 20, known + 40, known + 40]
    assert torch.equal(loop.critic.head.linear.weight, forgetful.critic.head.linear.weight)
    assert [i.critic for i in loop.summary.iterations] == [i.critic for i in forgetful.summary.iterations]


def test_frozen_layers_read_the_logs_once_for_warm_start_and_critic(
    make_loop: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"iterations": 1, "critic_epochs": 0, "evaluation_conversations": 0, "warm_start_epochs": 1}

    def run() -> tuple[int, IterativePPOLoop]:
        loop = make_loop("lora", layers=2, top_layers=1, settings=settings, logs=logs())
        rows = []

        def count(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if loop.progress.phase == "evaluate":
                rows.append(inputs[0].shape[0])

        loop.language_model.trunk.layers[0].register_forward_hook(count)  # type: ignore[index,union-attr]
        loop.run()
        return sum(rows), loop

    rows, loop = run()
    monkeypatch.setattr(critic_fit.CriticFit, "take_over", lambda self, trees: None)
    all_rows, forgetful = run()
    assert (rows, all_rows) == (20, 20 + len(logs()))
    assert loop.critic_fit._frozen == {}
    torch.testing.assert_close(loop.critic.head.linear.weight, forgetful.critic.head.linear.weight)


def test_states_of_the_logs_join_an_improvement(make_loop: Make) -> None:
    used: list[set[str]] = []

    class Looks(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            if hasattr(data, "conversations"):
                used.append({talk.id for talk in data.conversations})

    settings = {"log_conversations": 5, "evaluation_conversations": 0, "warm_start_epochs": 0}
    make_loop(settings=settings, callbacks=[Looks()], logs=logs()).run()
    assert [len(names) for names in used] == [25, 25]
    first, second = ({name for name in names if name.startswith("log-")} for names in used)
    assert len(first) == len(second) == 5 and first != second


@pytest.mark.parametrize(("history", "expected"), [(0, [20, 20, 20]), (1, [20, 40, 40]), (9, [20, 40, 60])])
def test_earlier_conversations_join_an_improvement(make_loop: Make, history: int, expected: list[int]) -> None:
    used: list[int] = []

    class Looks(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            used.append(len(getattr(trainer.datamodule, "conversations", [])))  # type: ignore[attr-defined]

    settings = {"policy_history": history, "iterations": 3, "evaluation_conversations": 0, "critic_epochs": 1}
    make_loop(settings={**settings, "rounds": 1, "history": 0}, callbacks=[Looks()]).run()
    assert [count for count in used if count] == expected


def test_fresh_responses_may_count_as_much_as_q_explains(make_loop: Make) -> None:
    seen: list[tuple[float | None, float]] = []

    class Looks(Callback):
        def on_improve_end(self, loop: IterativePPOLoop) -> None:
            seen.append((loop.critic.figures["explained_variance"], loop.policy.fresh_weight))

    class LikesTalk:
        """Buys from whoever says anything, as an untrained model does half the time: Q has something to explain."""

        def reset(self, seed: int) -> str:
            return ("red ?", "blue ?")[seed % 2]

        def reply(self, history: list[Message]) -> CustomerReply:
            return CustomerReply("yes", reward=float(len(history[-1].content) > 0), done=True)

    settings = {"fresh_weight": None, "logged_reward": "return", "iterations": 1, "evaluation_conversations": 0}
    settings = {**settings, "conversations": 80}
    make_loop(settings=settings, customer=LikesTalk, callbacks=[Looks()]).run()
    ((explained, weight),) = seen
    assert explained is not None and weight == max(0.0, explained) < 1
    fixed = make_loop(settings={**settings, "fresh_weight": 0.3}, customer=LikesTalk, callbacks=[Looks()])
    fixed.run()
    assert fixed.policy.fresh_weight == 0.3


@pytest.mark.parametrize(("use", "expected"), [(True, [12, 16]), (False, [16])])
def test_the_critic_reads_the_logs_only_if_told(make_loop: Make, use: bool, expected: list[int]) -> None:
    watcher = Watcher()
    settings = {"critic_logs": use, "iterations": 1, "evaluation_conversations": 0, "warm_start_epochs": 0}
    make_loop(settings=settings, callbacks=[watcher], logs=logs()).run()
    assert [count for count in watcher.trees if count] == expected


def test_a_customer_that_fails_costs_its_conversation_and_is_counted(make_loop: Make, tmp_path: Path) -> None:
    from named_in_recipes import DroppingCustomer  # type: ignore[import-not-found]

    path = tmp_path / "run"
    loop = make_loop(
        settings={"iterations": 1, "failed_share": 0.3},
        customer=DroppingCustomer,
        run_dir=RunDirectory.create(path, ""),
    )
    loop.run()
    summary = json.loads((path / "summary.json").read_text())
    assert {name: found["conversations"] for name, found in summary["failed"].items()} == {
        "before": 2,
        "iteration-000": 4,
        "after": 2,
    }
    assert "(seed 10000001): reply raised ConnectionError: hung up" in summary["failed"]["iteration-000"]["first"]
    # No zero outcome stands for them: they are in no rate and in no file.
    assert summary["iterations"][0]["collected"]["conversations"] == 16
    assert summary["before"]["conversations"] == summary["after"]["conversations"] == 8
    kept = read_conversations(path / "conversations" / "iteration-000.jsonl")
    assert len(kept) == 16 and all((c.seed or 0) % 5 != 1 for c in kept)
    resumed = make_loop(settings={"iterations": 1}, customer=DroppingCustomer)
    resumed.load_state_dict(loop.state_dict())
    assert resumed.summary.failed == loop.summary.failed


def test_too_many_failures_stop_the_run(make_loop: Make) -> None:
    from named_in_recipes import DroppingCustomer

    loop = make_loop(settings={"failed_share": 0.1}, customer=DroppingCustomer)
    with pytest.raises(CustomerError, match=r"hung up .*; 2 of 10 failed, and loop\.failed_share=0\.1 allows 1"):
        loop.run()


def test_a_customer_that_is_won_by_one_word_is_learnt(make_loop: Make) -> None:
    """The whole method on the smallest problem: the outcome rate rises, and the rise is not chance."""

    loop = make_loop(
        settings={
            **{"iterations": 2, "conversations": 64, "evaluation_conversations": 100, "batch": 100},
            **{"critic_epochs": 6, "rounds": 4, "ppo_epochs": 2, "conversations_per_round": 32, "samples_per_state": 4},
        },
        policy={"learning_rate": 1e-2, "warmup_steps": 1},
        customer=_Once,
    )
    summary = loop.run()
    assert summary.before is not None and summary.after is not None
    assert summary.after.ci95[0] > summary.before.ci95[1]
    assert summary.after.outcome_rate > 0.8


def offline_loop(make_loop: Make, **more: Any) -> IterativePPOLoop:
    torch.manual_seed(0)
    talks = [
        Conversation(f"log-{n}", (Turn("red ?", ("yes", "no")[n % 2], reward=float(n % 2 == 0)),), outcome=1.0 - n % 2)
        for n in range(64)
    ]
    return make_loop(
        settings={
            **{"iterations": 1, "warm_start_epochs": 12, "critic_epochs": 4, "rounds": 4, "ppo_epochs": 2},
            **{"conversations_per_round": 32, "samples_per_state": 4},
        },
        policy={"learning_rate": 1e-2, "warmup_steps": 1},
        customer=None,
        logs=talks,
        **more,
    )


def test_without_a_customer_everything_is_learnt_from_the_logs(make_loop: Make, tmp_path: Path) -> None:
    """What won in the logs becomes likelier, and no rate is claimed that nobody measured."""
    loop = offline_loop(make_loop, run_dir=RunDirectory.create(tmp_path / "run", ""))
    summary = loop.run()
    (iteration,) = summary.iterations
    assert summary.before is None and summary.after is None and iteration.collected is None
    assert summary.logs is not None and summary.logs.outcome_rate == 0.5
    assert iteration.critic["auroc"] is not None and iteration.critic["auroc"] > 0.9
    assert iteration.policy["reward_gain"] is not None and iteration.policy["reward_gain"] > 0
    loop.customer = lambda: _Once()
    won = outcome_rate(loop.talk(100, "try", training=False))
    assert won.ci95[0] > 0.6, "half of the messages in the logs won"
    assert (tmp_path / "run" / "checkpoints" / "iteration-000" / "policy").is_dir()


class _Once:
    """Bought by "yes"."""

    def reset(self, seed: int) -> str:
        return "red ?"

    def reply(self, history: list[Message]) -> CustomerReply:
        return CustomerReply("", float("yes" in history[-1].content.split()), done=True)


def test_a_run_from_logs_alone_resumes(make_loop: Make, tmp_path: Path) -> None:
    class Broken(Callback):
        def on_improve_end(self, loop: IterativePPOLoop) -> None:
            raise RuntimeError("here")

    whole = offline_loop(make_loop).run()
    run = RunDirectory.create(tmp_path / "run", "")
    with pytest.raises(RuntimeError):
        offline_loop(make_loop, callbacks=[Broken()], run_dir=run).run()
    state = RunDirectory.open(run.path).load_state()
    assert state is not None and state["conversations"] == []
    resumed = offline_loop(make_loop)
    resumed.load_state_dict(state)
    assert resumed.run().iterations[0].policy == pytest.approx(whole.iterations[0].policy)


# -- parts of it alone -----------------------------------------------------------------------------------------------


def test_talking_needs_no_training(make_loop: Make) -> None:
    loop = make_loop()
    training = loop.talk(12, "try", training=True)
    evaluation = loop.talk(12, "try", training=False)
    assert len({talk.seed for talk in training + evaluation}) == 24
    assert {talk.policy_version for talk in training} == {"try"}
    assert loop.talk(12, "try", training=True) == training


def test_the_critic_alone(make_loop: Make) -> None:
    loop = make_loop()
    talks = loop.talk(20, "try", training=True)
    figures = loop.fit_critic_only(talks[:15], talks[15:])
    assert figures["turns"] == sum(len(talk.turns) for talk in talks[15:])
    assert figures["brier"] is not None
    held = make_loop().fit_critic_only(talks, None)
    assert held["turns"] is not None and 4 <= held["turns"] <= 8  # a fifth of the conversations, whole


def test_the_critic_alone_on_the_trunk_as_it_is(make_loop: Make) -> None:
    loop = make_loop(settings={"critic_epochs": 0})
    talks = loop.talk(20, "try", training=True)
    trunk = {key: value.clone() for key, value in loop.language_model.variant_tensors("critic").items()}
    figures = loop.fit_critic_only(talks, None)
    assert figures["turns"] == sum(len(talk.turns) for talk in talks)  # each conversation is held out once
    figures = loop.fit_critic_only(talks[:15], talks[15:])
    assert figures["turns"] == sum(len(talk.turns) for talk in talks[15:])
    assert all(torch.equal(loop.language_model.variant_tensors("critic")[k], v) for k, v in trunk.items())


def test_a_critic_of_no_known_outcome_is_refused(make_loop: Make) -> None:
    for epochs in (0, 2):
        loop = make_loop(settings={"critic_epochs": epochs})
        talks = [replace(talk, outcome=None) for talk in loop.talk(10, "try", training=True)]
        with pytest.raises(LogDataError, match="none of the conversations has a known outcome"):
            loop.fit_critic_only(talks, None)
        assert loop.summary.status == "failed"


def test_held_out_conversations_of_no_known_outcome_are_refused(make_loop: Make) -> None:
    loop = make_loop()
    talks = loop.talk(10, "try", training=True)
    held = [replace(talk, outcome=None) for talk in talks[8:]]
    with pytest.raises(LogDataError, match=r"none of the 2 held-out conversations .*: raise critic\.validation"):
        loop.critic_fit._tune(talks[:8], held)


def test_a_part_alone_has_the_hooks_of_a_run(make_loop: Make) -> None:
    class Heard(Callback):
        def __init__(self) -> None:
            self.hooks: list[str] = []

        def on_run_start(self, loop: IterativePPOLoop) -> None:
            self.hooks.append("start")

        def on_run_end(self, loop: IterativePPOLoop) -> None:
            self.hooks.append("end")

        def on_run_exception(self, loop: IterativePPOLoop) -> None:
            self.hooks.append("exception")

    heard = Heard()
    loop = make_loop(callbacks=[heard])
    talks = loop.talk(10, "try", training=True)
    loop.fit_critic_only(talks, None)
    loop.improve_only([replace(talk, outcome=None) for talk in talks])
    assert loop.summary.iterations[0].collected is None
    assert heard.hooks == ["start", "end"] * 3
    with pytest.raises(ValueError):
        loop.improve_only([])
    assert heard.hooks[-2:] == ["start", "exception"]


def test_an_improvement_alone(make_loop: Make, tmp_path: Path) -> None:
    loop = make_loop("lora", run_dir=RunDirectory.create(tmp_path / "run", ""))
    torch.nn.init.normal_(loop.critic.head.linear.weight)  # a critic with opinions
    before = {key: value.clone() for key, value in loop.language_model.variant_tensors("policy").items()}
    figures = loop.improve_only(loop.talk(20, "try", training=True))
    assert figures["reward_mean"] is not None
    assert any(not torch.equal(loop.language_model.variant_tensors("policy")[k], v) for k, v in before.items())
    assert (tmp_path / "run" / "checkpoints" / "iteration-000" / "policy" / "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


def test_a_fit_that_is_over_holds_no_optimiser_states_and_no_gradients(make_loop: Make) -> None:
    loop = make_loop("full", settings={"iterations": 1})
    loop.run()
    for module in (loop.policy, loop.critic):
        assert all(not optimizer.state for optimizer in module.trainer.optimizers)
        assert all(parameter.grad is None for parameter in module.parameters())
