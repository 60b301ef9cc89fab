"""Games of TextArena (package ``textarena``) as conversations: the game is the customer, a move is a message."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from lightning_iterppo.conversation import Message
from lightning_iterppo.customers import Customer, CustomerReply
from lightning_iterppo.errors import ConfigError, CustomerError
from lightning_iterppo.extras import need

_AGENT = 0  # the player that the policy is


class TextArenaCustomer:
    """A game for one player, or for several of whom others are customers too.

    The rules are what the agent is told beforehand, and what the game says after a move is what it hears. The policy is
    the first player.

    Args:
        game: a registered name, as ``GuessTheNumber-v0``.
        opponent: a customer that plays every other player: what the game says to it is the agent's message for it, and
            its reply is its move. ``reward`` and ``done`` of its replies do not matter.
        players: how many there are in all.
        rules: whether the agent is told the game's own rules; a text in their place, or False for nothing.
        low: the game's reward that earns 0; below it nothing is earned either.
        high: the game's reward that earns 1, and the most.

    Raises:
        ConfigError: the package is not installed, there is no such game, several players have no opponent, or ``low``
            is not below ``high``.
    """

    def __init__(
        self,
        game: str,
        opponent: Customer | None = None,
        players: int = 1,
        rules: bool | str = True,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        registered = need("textarena.envs.registration", "to play its games", "textarena").ENV_REGISTRY
        # Without the wrappers that would make one text of all that was said: a conversation has its history by itself.
        names = [name for name in (f"{game}-raw", game) if name in registered]
        if not names:
            alike = sorted(name for name in registered if name.lower().startswith(game.lower()[:4]))[:5]
            more = f"; there are {', '.join(alike)}" if alike else ""
            raise ConfigError(f"customer.game: TextArena has no game {game!r}{more}")
        if players > 1 and opponent is None:
            raise ConfigError(f"customer.players is {players}: say who the others are with customer.opponent")
        if not low < high:
            raise ConfigError(f"customer.low {low:g} must be below customer.high {high:g}")
        self.game = names[0]
        self.opponent = opponent
        self.players = players
        self.rules = rules
        self.low, self.high = low, high
        self.system: str | None = None

    def reset(self, seed: int) -> str:
        """Begins a game, and plays to the agent's first move.

        Raises:
            CustomerError: it ended before that, or is none for so many players.
        """
        self._state: tuple[Any, Any] | None = None
        self._told: dict[int, list[Message]] = {}
        with self._own_chance(seed):
            self._environment = need("textarena", "to play its games", "textarena").make(self.game)
            try:
                self._environment.reset(num_players=self.players, seed=seed)
            except AssertionError as error:
                raise CustomerError(f"game {self.game}: not for {self.players} players: {error}") from error
            rules, said, done = self._play_on(False)
        if done:
            raise CustomerError(f"game {self.game} (seed {seed}) is over before the agent's first move")
        self.system = self.rules if isinstance(self.rules, str) else rules if self.rules else None
        return said

    def reply(self, history: list[Message]) -> CustomerReply:
        """Makes the agent's move, and plays on to its next one."""
        with self._own_chance(None):
            done, _ = self._environment.step(action=history[-1].content)
            _, said, done = self._play_on(done)
            if not done:
                return CustomerReply(said)
            rewards, info = self._environment.close()
        reason = str((info or {}).get(_AGENT, {}).get("reason") or "")
        earned = float((rewards or {}).get(_AGENT, self.low))
        share = (earned - self.low) / (self.high - self.low)
        return CustomerReply(said or reason, reward=min(1.0, max(0.0, share)), done=True)

    def _play_on(self, done: bool) -> tuple[str, str, bool]:
        """Lets the others move until it is the agent's turn: rules, what the agent hears, and whether it is over."""
        rules: list[str] = []
        said: list[str] = []
        while not done:
            player, observed = self._environment.get_observation()
            heard: list[str] = []
            for sender, text, kind in observed:
                if sender == player:
                    continue
                if player == _AGENT:
                    (rules if kind.name == "PROMPT" else said).append(text)
                else:
                    heard.append(text)
            if player == _AGENT:
                break
            done, _ = self._environment.step(action=self._opponents_move(player, "\n".join(heard)))
        return "\n".join(rules).strip(), "\n".join(said).strip(), bool(done)

    def _opponents_move(self, player: int, heard: str) -> str:
        assert self.opponent is not None, "several players have an opponent"
        told = self._told.setdefault(player, [])
        if not told:
            self.opponent.reset(player)
        told.append(Message("agent", heard))
        move = self.opponent.reply(list(told)).text
        told.append(Message("customer", move))
        return move

    @contextmanager
    def _own_chance(self, seed: int | None) -> Iterator[None]:
        """Games draw from the one generator of the process: each gets its own, or they would change each other's."""
        before = random.getstate(), np.random.get_state()
        try:
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed % 2**32)
            elif self._state is not None:
                random.setstate(self._state[0])
                np.random.set_state(self._state[1])
            yield
            self._state = random.getstate(), np.random.get_state()
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])

    def __getstate__(self) -> Mapping[str, Any]:
        # A game that is being played cannot go to another process; a customer that has not begun can.
        return {key: value for key, value in self.__dict__.items() if key not in ("_environment", "_state")}
