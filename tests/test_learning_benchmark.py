"""The learning benchmark: its three conversations are what they say they are, and every method runs to its end."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from types import ModuleType

import pytest

from lightning_iterppo.composition import compose
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.customers import Message
from lightning_iterppo.customers.scripted import play

HERE = Path(__file__).resolve().parents[1] / "benchmarks" / "learning"
TASKS = ("shop", "questions", "haggling")


@pytest.fixture(scope="module", autouse=True)
def beside_the_script() -> Iterator[None]:
    """Its modules import one another as a script's do."""
    sys.path.insert(0, str(HERE))
    yield
    sys.path.remove(str(HERE))


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"tasks.{request.param}")


def rate(conversations: list[Conversation]) -> float:
    return fmean(c.outcome or 0.0 for c in conversations)


def test_every_word_is_in_the_vocabulary_and_every_outcome_in_0_to_1(task: ModuleType) -> None:
    conversations = task.logs(300, seed=1)
    said = {word for c in conversations for t in c.turns for word in f"{t.customer} {t.message}".split()}
    assert said <= set(task.VOCABULARY)
    assert all(0.0 <= (c.outcome or 0.0) <= 1.0 for c in conversations)


def test_logs_are_the_same_for_a_seed_and_others_for_another(task: ModuleType) -> None:
    first, again, other = task.logs(20, seed=1), task.logs(20, seed=1), task.logs(20, seed=2)
    assert [c.turns for c in first] == [c.turns for c in again]
    assert [c.turns for c in first] != [c.turns for c in other]


@pytest.mark.parametrize(("name", "least"), [("shop", 0.99), ("questions", 1.0)])
def test_the_logs_leave_much_to_be_learnt(name: str, least: float) -> None:
    task = importlib.import_module(f"tasks.{name}")
    assert rate(task.logs(300, seed=1, skill=1.0)) >= least
    assert 0.05 < rate(task.logs(300, seed=1)) < 0.6


def test_asking_for_the_order_at_once_rarely_sells() -> None:
    task = importlib.import_module("tasks.shop")
    greedy = [play(task.Customer(), lambda *_: "shall i order it ?", seed, str(seed)) for seed in range(300)]
    assert rate(greedy) < 0.2


def test_a_guess_without_questions_is_rarely_right() -> None:
    task = importlib.import_module("tasks.questions")
    greedy = [play(task.Customer(), lambda *_: "is it the fox ?", seed, str(seed)) for seed in range(300)]
    assert rate(greedy) < 0.25


def test_haggling_earns_more_than_the_first_offer() -> None:
    task = importlib.import_module("tasks.haggling")

    def accept(system: str, history: list[Message]) -> str:
        return "deal"

    def wait_for_a_better_one(system: str, history: list[Message]) -> str:
        return "i want twelve" if len(history) == 1 else "deal"

    accepted, waited = (
        [play(task.Customer(), agent, seed, str(seed)) for seed in range(300)]
        for agent in (accept, wait_for_a_better_one)
    )
    assert rate(waited) > rate(accepted) + 0.05
    assert rate(task.logs(300, seed=1)) < rate(waited)


def test_every_variant_is_a_recipe() -> None:
    script = importlib.import_module("run")
    plain = compose(
        str(HERE / "learning.yaml"),
        script.recipe_overrides(script.Job("shop", "iterative-ppo", "few", 1, 1e-3, 1)),
    )
    for variant in script.VARIANTS:
        job = script.Job("shop", "iterative-ppo", "few", 1, 1e-3, 1, variant)
        changed = compose(str(HERE / "learning.yaml"), script.recipe_overrides(job))
        assert (changed.critic, changed.policy) != (plain.critic, plain.policy), variant


@pytest.mark.slow
@pytest.mark.parametrize("task_name", TASKS)
def test_every_method_runs_to_its_end(task_name: str) -> None:
    """With a model of a few weights and a few conversations: that it learns is what the benchmark itself shows."""
    command = [
        *(sys.executable, str(HERE / "run.py"), "--try", "--tasks", task_name, "--regimes", "few", "--seeds", "1"),
        *("--learning-rate", "1e-3", "--passes", "1"),
        *("logs.conversations=40", "loop.iterations=2", "loop.conversations=40", "loop.evaluation_conversations=20"),
        *("model.scratch.hidden_size=32", "model.scratch.layers=1", "warm_start.epochs=1", "critic.epochs=1"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"{task_name} few ")]
    methods = importlib.import_module("methods").METHODS
    assert [line.split()[2].rstrip(":") for line in lines] == list(methods)
    for line in lines:
        before, *curve, after = map(float, re.findall(r"[01]\.\d+", line.split(" in ")[0]))
        assert all(0.0 <= value <= 1.0 for value in (before, *curve, after))
        assert len(curve) == (0 if "offline" in line else 2), line
