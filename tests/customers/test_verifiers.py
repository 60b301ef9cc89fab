"""Environments of verifiers as customers."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lightning_iterppo.composition import compose
from lightning_iterppo.conversation import Message, Suggestion
from lightning_iterppo.errors import ConfigError, CustomerError
from lightning_iterppo.side_by_side import SideBySide
from lightning_iterppo.talk import Talk, waits
from lightning_iterppo.targets import instantiate
from lightning_iterppo.testing import check_customer

vf = pytest.importorskip("verifiers", reason="environments of verifiers need the extra `verifiers`")
if not hasattr(vf, "MultiTurnEnv"):
    pytest.skip("this release of verifiers has no MultiTurnEnv", allow_module_level=True)

from lightning_iterppo.customers.verifiers import VerifiersCustomer  # noqa: E402

NAME = "colour-environment"
ANSWERS = ["red", "blue", "green"]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    yield


def environment(**arguments: Any) -> partial[VerifiersCustomer]:
    return partial(VerifiersCustomer, NAME, arguments)


def talk(customer: VerifiersCustomer, *messages: str, seed: int = 0) -> Talk:
    """What the agent says, one after the other, until the customer fails or ends it."""
    running = Talk(customer, seed)  # type: ignore[arg-type]
    with SideBySide() as side_by_side:
        steps = [running.open(), *(running.answer(Suggestion(text, (), (), "test")) for text in messages)]
        for number, step in enumerate(steps):
            (error,) = side_by_side.run([step], waiting=True)
            if error is not None or running.done:
                for left in steps[number + 1 :]:
                    left.close()
                if error is not None:
                    raise error
                break
    return running


def test_an_environment_is_a_customer() -> None:
    found = check_customer(environment(), messages=ANSWERS, seeds=range(6))
    assert waits(environment()())
    assert all(c.system == "say a colour" and c.turns[0].customer == "which ?" for c in found)
    at_once = [c for c in found if c.outcome == 1.0]
    later = [c for c in found if c.outcome == 0.5]
    assert at_once and later
    assert all(c.closing == "yes !" and len(c.turns) == 1 for c in at_once)
    assert all(c.turns[1].customer == "no 1" and len(c.turns) == 2 for c in later)


def test_turns_that_run_out_end_it_without_a_reward() -> None:
    running = talk(environment()(), "green", "green", "green")
    assert [turn.customer for turn in running.turns] == ["which ?", "no 1", "no 2"]
    assert running.done and running.closing == "" and sum(turn.reward for turn in running.turns) == 0


def test_one_that_only_asks_and_judges_is_a_conversation_of_one_turn() -> None:
    found = check_customer(environment(kind="single"), messages=ANSWERS, seeds=range(6))
    assert all(len(c.turns) == 1 for c in found)
    assert {c.outcome for c in found} == {0.0, 1.0}


def test_the_seed_chooses_the_row() -> None:
    def answer(seed: int) -> str:
        return "red" if talk(environment()(), "red", seed=seed).done else "blue"

    drawn = [answer(seed) for seed in range(12)]
    assert set(drawn) == {"red", "blue"}
    assert [answer(seed) for seed in range(12)] == drawn


def test_the_rubrics_reward_is_brought_between_low_and_high() -> None:
    def reward(low: float, high: float) -> float:
        running = talk(VerifiersCustomer(NAME, {"rows": 1}, low=low, high=high), "green", "red")
        return sum(turn.reward for turn in running.turns)

    assert [reward(0, 1), reward(0, 0.5), reward(0.25, 0.75), reward(0.75, 1)] == [0.5, 1.0, 0.5, 0.0]


def test_evaluation_rows_are_others() -> None:
    customer = VerifiersCustomer(NAME, {"split": "eval_dataset"}, split="eval")
    assert talk(customer, "red", "blue").done
    with pytest.raises(ConfigError, match=r"has no train rows; say customer\.split=eval"):
        VerifiersCustomer(NAME, {"split": "eval_dataset"})
    with pytest.raises(ConfigError, match=r"has no eval rows; say customer\.split=train"):
        VerifiersCustomer(NAME, split="eval")


def test_conversations_side_by_side_do_not_change_each_other() -> None:
    seeds = range(8)
    alone = [talk(environment()(), "green", "red", "blue", seed=seed).turns for seed in seeds]
    talks = [Talk(environment()(), seed) for seed in seeds]  # type: ignore[arg-type]
    with SideBySide() as side_by_side:
        assert side_by_side.run([each.open() for each in talks], waiting=True) == [None] * len(talks)
        for text in ("green", "red", "blue"):
            steps = [each.answer(Suggestion(text, (), (), "test")) for each in talks if not each.done]
            assert side_by_side.run(steps, waiting=True) == [None] * len(steps)
    assert [each.turns for each in talks] == alone


@pytest.mark.parametrize(
    ("kind", "message", "said"),
    [
        ("failing", "blue", r"environment colour-environment: InfraError: the machine is gone \(.*colour_environment"),
        ("failing", "red", r"reply raised KeyError: 'colour' \(.*colour_environment"),
        ("forgetful", "red", "changes what was said before"),
        ("started", "red", "is over before the agent's first message"),
        ("shown", "red", "says something as assistant"),
        ("picture", "red", "type 'image_url': a policy reads text alone"),
        ("row-tools", "red", "needs the tool 'lamp': a policy speaks, and calls no tools"),
    ],
)
def test_what_is_no_conversation_is_one_line(kind: str, message: str, said: str) -> None:
    with pytest.raises(CustomerError, match=said) as error:
        talk(environment(kind=kind)(), message)
    assert "\n" not in str(error.value)


def test_a_conversation_that_nobody_waits_for_is_given_up() -> None:
    async def slow(customer: VerifiersCustomer) -> None:
        await customer.reset(0)
        assert customer._rollout is not None
        customer._agent.answers = asyncio.Queue()  # the environment waits for another answer
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(customer.reply([Message("agent", "red")]), 0.2)
        for _ in range(100):
            if customer._rollout.cancelled():
                return
            await asyncio.sleep(0.01)
        pytest.fail("the environment still waits")

    asyncio.run(slow(environment()()))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"environment": "no-such-thing"}, r"customer\.environment: 'no-such-thing': Could not import"),
        ({"arguments": {"size": 3}}, r"'colour-environment': .*unexpected keyword argument 'size'"),
        ({"arguments": {"kind": "tools"}}, r"needs tools \(lamp\), and a policy calls none; take one that only talks"),
        ({"arguments": {"kind": "group"}}, "has a rubric that compares several conversations"),
        ({"split": "test"}, "customer.split must be train or eval, found 'test'"),
        ({"low": 1}, r"customer\.low 1 must be below customer\.high 1"),
    ],
)
def test_what_cannot_be_played_is_found_before_any_work(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        VerifiersCustomer(**{"environment": NAME, **more})
    assert "\n" not in str(error.value)


def test_a_release_without_such_environments_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = ModuleType("verifiers")
    newer.__version__ = "0.4.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "verifiers", newer)
    with pytest.raises(ConfigError, match=r"verifiers 0\.4\.0 has no MultiTurnEnv .*pip install"):
        VerifiersCustomer("not-loaded-yet")


def test_an_environment_does_not_take_over_interruptions() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    VerifiersCustomer(NAME, {"rows": 5})
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_all_environments_have_one_event_loop() -> None:
    talk(environment()(), "red", "blue")
    talk(environment()(), "red", "blue")
    assert [thread.name for thread in threading.enumerate()].count("verifiers") == 1


def test_the_recipe_takes_a_name_and_arguments() -> None:
    config = compose("probe", ["customer=verifiers", f"customer.environment={NAME}", "customer.arguments.kind=single"])
    check_customer(partial(instantiate, config.customer, "customer"), messages=ANSWERS, seeds=range(2))
    with pytest.raises(ConfigError, match=r"needs environment; give customer\.environment="):
        instantiate(compose("probe", ["customer=verifiers"]).customer, "customer")
