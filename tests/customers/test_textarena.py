"""TextArena's games as customers."""

from __future__ import annotations

from functools import partial

import pytest

from lightning_iterppo.composition import compose
from lightning_iterppo.conversation import Message
from lightning_iterppo.customers import CustomerReply
from lightning_iterppo.customers.textarena import TextArenaCustomer
from lightning_iterppo.errors import ConfigError, CustomerError
from lightning_iterppo.targets import instantiate
from lightning_iterppo.testing import check_customer

pytest.importorskip("textarena")
GUESS = "GuessTheNumber-v0"
NUMBERS = [f"[{number}]" for number in range(1, 21)]


class Mover:
    """Makes the moves that it is given, and remembers what it was told."""

    def __init__(self, *moves: str) -> None:
        self.moves = moves

    def reset(self, seed: int) -> str:
        self.heard: list[str] = []
        return ""

    def reply(self, history: list[Message]) -> CustomerReply:
        self.heard.append(history[-1].content)
        return CustomerReply(self.moves[(len(self.heard) - 1) % len(self.moves)])


def test_a_game_is_a_customer() -> None:
    found = check_customer(partial(TextArenaCustomer, GUESS), messages=NUMBERS, seeds=range(6))
    assert all(c.system is not None and "Guess The Number" in c.system for c in found)
    assert found[0].turns[0].customer == ""  # the agent begins
    won = [c for c in found if c.outcome == 1.0]
    assert won and all("Congratulations" in c.closing for c in won)
    hints = {turn.customer for c in found for turn in c.turns[1:]}
    assert {"The target number is higher."} <= hints and len(hints) > 1


def test_games_side_by_side_do_not_change_each_other() -> None:
    """All games draw from the one generator of the process."""
    alone = TextArenaCustomer(GUESS)
    alone.reset(3)
    together, other = TextArenaCustomer(GUESS), TextArenaCustomer(GUESS)
    together.reset(3)
    other.reset(4)
    for number in ("[5]", "[12]"):
        move = [Message("agent", number)]
        other.reply(move)
        assert together.reply(move) == alone.reply(move)


def test_rules_and_rewards_are_as_the_recipe_wants_them() -> None:
    made = TextArenaCustomer(GUESS, rules="Guess.", low=0.5, high=1.0)
    made.reset(0)
    assert made.system == "Guess."
    nothing = TextArenaCustomer(GUESS, rules=False)
    nothing.reset(0)
    assert nothing.system is None
    # Two moves that are none end the game, without a reward above the half that earns nothing.
    first, second = (made.reply([Message("agent", "hello")]) for _ in range(2))
    assert "invalid move" in first.text and not first.done
    assert (second.reward, second.done) == (0.0, True) and second.text


def test_another_customer_plays_the_other_player() -> None:
    opponent = Mover("[4]", "[5]", "[6]")
    made = TextArenaCustomer("TicTacToe-v0", opponent=opponent, players=2, low=-1, high=1)
    assert made.reset(0) or made.system
    replies = [made.reply([Message("agent", move)]) for move in ("[0]", "[1]", "[2]")]
    assert [reply.done for reply in replies] == [False, False, True]
    assert replies[-1].reward == 1.0
    assert len(opponent.heard) == 2 and "[0]" in opponent.heard[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"game": "Guess-v9"}, r"customer\.game: TextArena has no game 'Guess-v9'; there are Guess"),
        ({"game": GUESS, "players": 2}, "say who the others are with customer.opponent"),
        ({"game": GUESS, "low": 1}, r"customer\.low 1 must be below customer\.high 1"),
    ],
)
def test_what_is_no_game_is_found_before_any_work(more: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TextArenaCustomer(**more)  # type: ignore[arg-type]


def test_a_game_for_another_number_of_players_is_named() -> None:
    with pytest.raises(CustomerError, match="not for 2 players"):
        TextArenaCustomer(GUESS, opponent=Mover("[1]"), players=2).reset(0)


def test_the_recipe_plays_a_game() -> None:
    config = compose("guess")
    check_customer(partial(instantiate, config.customer, "customer"), messages=NUMBERS, seeds=range(2))
