"""Functions and environments as customers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from lightning_iterppo.conversation import Message
from lightning_iterppo.customers import CustomerReply
from lightning_iterppo.customers.environment import EnvironmentCustomer
from lightning_iterppo.customers.function import FunctionCustomer
from lightning_iterppo.errors import ConfigError, CustomerError
from lightning_iterppo.targets import instantiate
from lightning_iterppo.testing import check_customer


def guess(history: list[Message], seed: int) -> CustomerReply:
    """A number to guess, in three messages."""
    if not history:
        return CustomerReply(f"guess my number, number {seed}")
    said = [message.content for message in history if message.role == "agent"]
    right = said[-1] == str(seed)
    return CustomerReply("yes" if right else "no", reward=float(right), done=right or len(said) == 3)


class Hallway:
    """Three steps to the east are the way out; one reward of 2 at the end."""

    def __init__(self, steps: int = 3) -> None:
        self.steps = steps

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.at, self.turns = 0, 0
        return f"hallway {seed}", {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at += action == "east"
        self.turns += 1
        out = self.at == self.steps
        return f"you are at {self.at}", 2.0 * out, out, self.turns == 5, {}


class Labelled(Hallway):
    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return {"said": super().reset(seed=seed)[0], "room": 1}, {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        said, *more = super().step(action)
        return {"said": said, "room": 1}, *more  # type: ignore[return-value]


class OldStyle(Hallway):
    def step(self, action: str) -> Any:
        return "here", 0.0, False, {}


def test_a_function_is_a_customer() -> None:
    found = check_customer(partial(FunctionCustomer, guess), messages=["1", "2", "3"], seeds=[2, 9])
    assert [(c.turns[0].customer, [t.message for t in c.turns], c.outcome) for c in found] == [
        ("guess my number, number 2", ["3", "1", "2"], 1.0),
        ("guess my number, number 9", ["1", "2", "3"], 0.0),
    ]


def test_a_recipe_names_it_by_its_path() -> None:
    name = "lightning_iterppo.customers.function.FunctionCustomer"
    made = instantiate({"_target_": name, "function": f"{__name__}.guess"}, "customer")
    assert made.reset(4) == "guess my number, number 4"
    with pytest.raises(ConfigError, match=r"customer\.function: .* has no guest; did you mean guess"):
        instantiate({"_target_": name, "function": f"{__name__}.guest"}, "customer")


def test_a_function_has_to_open() -> None:
    with pytest.raises(CustomerError, match=r"customer function .*<lambda> \(seed 1\): to an empty history"):
        FunctionCustomer(lambda history, seed: "hello").reset(1)  # type: ignore[arg-type,return-value]
    with pytest.raises(CustomerError, match="neither earns nor ends"):
        FunctionCustomer(lambda history, seed: CustomerReply("bye", done=True)).reset(1)


def test_a_function_that_waits_is_refused() -> None:
    async def later(history: list[Message], seed: int) -> CustomerReply:
        return CustomerReply("hello")

    with pytest.raises(ConfigError, match="write a class with async def reset and reply"):
        FunctionCustomer(later)  # type: ignore[arg-type]


def test_an_environment_is_a_customer() -> None:
    found = check_customer(partial(EnvironmentCustomer, Hallway, scale=0.5), messages=["east", "west"], seeds=[0, 1])
    heard = [turn.customer for turn in found[0].turns]
    assert heard == ["hallway 0", "you are at 1", "you are at 1", "you are at 2", "you are at 2"]
    assert (found[0].closing, found[0].outcome) == ("you are at 3", 1.0)
    assert (found[1].closing, found[1].outcome) == ("you are at 2", 0.0)  # truncated


def test_its_arguments_and_the_text_of_its_observations_are_the_recipes() -> None:
    spec = {
        "_target_": "lightning_iterppo.customers.environment.EnvironmentCustomer",
        "make": f"{__name__}.Labelled",
        "arguments": {"steps": 1},
        "text": "said",
    }
    made = instantiate(spec, "customer")
    assert made.reset(5) == "hallway 5"
    assert made.reply([Message("agent", "east")]) == CustomerReply("you are at 1", reward=2.0, done=True)


@pytest.mark.parametrize(
    ("customer", "said"),
    [
        (partial(EnvironmentCustomer, Labelled), "must be text, found dict with said, room: say customer.text=KEY"),
        (partial(EnvironmentCustomer, OldStyle), r"OldStyle: step must return \(observation, reward, terminated"),
    ],
)
def test_what_is_no_text_environment_is_named(customer: Any, said: str) -> None:
    made = customer()
    with pytest.raises(CustomerError, match=said):
        made.reset(0)
        made.reply([Message("agent", "east")])
