"""The conformance kit for customers: ours pass it, and each promise that is broken is found."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lightning_iterppo.composition import compose
from lightning_iterppo.conversation import Message
from lightning_iterppo.customers import CustomerReply
from lightning_iterppo.errors import CustomerError
from lightning_iterppo.targets import instantiate
from lightning_iterppo.testing import check_customer


class Good:
    """Draws from its seed, ends after three messages, and pays for a question."""

    def reset(self, seed: int) -> str:
        self.random = random.Random(seed)
        return self.random.choice(["hello", "hi"])

    def reply(self, history: list[Message]) -> CustomerReply:
        said = [m.content for m in history if m.role == "agent"]
        done = len(said) == 3
        return CustomerReply(f"{self.random.random()}", reward=float(done and "?" in said[-1]), done=done)


class GoodAndSlow(Good):
    async def reset(self, seed: int) -> str:  # type: ignore[override]
        return super().reset(seed)

    async def reply(self, history: list[Message]) -> CustomerReply:  # type: ignore[override]
        return super().reply(history)


class Unseeded(Good):
    def reset(self, seed: int) -> str:
        super().reset(seed)
        self.random = random.Random()
        return "hello"


class Remembering(Good):
    """Does not begin anew."""

    def __init__(self) -> None:
        self.talks = 0

    def reset(self, seed: int) -> str:
        self.talks += 1
        return super().reset(seed) + "!" * (self.talks > 1)


class Shared(Good):
    """Counts all conversations of all objects."""

    talks: ClassVar[int] = 0

    def reset(self, seed: int) -> str:
        Shared.talks += 1
        super().reset(seed)
        return f"number {Shared.talks}"


class Unpicklable(Good):
    def __init__(self) -> None:
        self.secret = lambda: None


class Forgetful(Good):
    def __reduce__(self) -> Any:
        return Other, ()


class Other(Good):
    def reset(self, seed: int) -> str:
        super().reset(seed)
        return "somebody else"


class Endless(Good):
    def reply(self, history: list[Message]) -> CustomerReply:
        return CustomerReply("go on")


class OtherAndSlow(GoodAndSlow):
    async def reply(self, history: list[Message]) -> CustomerReply:  # type: ignore[override]
        return CustomerReply("no", done=True)


def test_a_good_one_passes_and_its_conversations_are_given() -> None:
    found = check_customer(Good, asynchronous=GoodAndSlow)
    assert [c.seed for c in found] == list(range(8)) and {len(c.turns) for c in found} == {3}
    assert {c.outcome for c in found} == {0.0, 1.0}
    check_customer(GoodAndSlow)


@pytest.mark.parametrize("recipe", ["shop", "probe", "ladder"])
def test_ours_pass(recipe: str) -> None:
    config = compose(recipe)
    check_customer(partial(instantiate, config.customer, "customer"), seeds=range(4))
    if config.held_out_customer:
        check_customer(partial(instantiate, config.held_out_customer, "held_out_customer"), seeds=range(4))


def test_the_example_passes() -> None:
    path = Path(__file__).resolve().parents[1] / "examples" / "own_customer" / "booking.py"
    spec = importlib.util.spec_from_file_location("booking", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(AssertionError, match="Guest cannot be pickled"):
        check_customer(module.Guest)  # a module that nobody can import


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Unseeded, r"Unseeded \(seed 0\): a new object answers otherwise: turn 2"),
        (Remembering, r"Remembering \(seed 1\): an object that had another conversation answers otherwise: turn 1"),
        (Shared, r"Shared \(seed 0\): a new object answers otherwise: turn 1: \('number 1'.*\('number 2'"),
        (Unpicklable, "Unpicklable cannot be pickled, which other processes need"),
        (Forgetful, "Forgetful: a pickled copy answers otherwise"),
    ],
)
def test_a_broken_promise_is_named(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_customer(make)


def test_a_broken_protocol_is_the_protocols_own_line() -> None:
    with pytest.raises(CustomerError, match=r"customer Endless \(seed 0\) did not end after 64 turns"):
        check_customer(Endless)


@pytest.mark.parametrize(
    ("form", "said"), [(Good, "Good has no async def method"), (OtherAndSlow, "asynchronous form")]
)
def test_the_asynchronous_form_has_to_say_the_same(form: Callable[[], Any], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_customer(Good, asynchronous=form)
