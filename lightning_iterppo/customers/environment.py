"""A text environment with Gymnasium's methods as a customer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning_iterppo.conversation import Message
from lightning_iterppo.customers import CustomerReply
from lightning_iterppo.errors import CustomerError
from lightning_iterppo.targets import resolve


class EnvironmentCustomer:
    """An environment whose actions and observations are text: ``reset(seed=…)``, ``step(action)``, as in Gymnasium.

    The first observation opens the conversation, the agent's message is the action, and what comes back is the next
    observation. ``terminated`` and ``truncated`` both end it. Gymnasium itself is not needed.

    Args:
        make: what makes the environment, or its import path: ``customer.make=my_module.MyEnv``, or
            ``customer.make=gymnasium.make customer.arguments.id=NAME`` for a registered one.
        arguments: arguments of it.
        text: where an observation is a dictionary, the key of its text.
        scale: what rewards are multiplied with. Where the outcome is an event, those of a conversation must add up to
            0 to 1.

    Raises:
        ConfigError: there is nothing at the import path.
    """

    def __init__(
        self,
        make: str | Callable[..., Any],
        arguments: Mapping[str, Any] | None = None,
        text: str | None = None,
        scale: float = 1.0,
    ) -> None:
        maker = resolve(make, "customer.make") if isinstance(make, str) else make
        self.environment = maker(**dict(arguments or {}))
        self.text = text
        self.scale = scale

    def reset(self, seed: int) -> str:
        """The first observation.

        Raises:
            CustomerError: it is no text, or ``reset`` returns something else than two things.
        """
        observation, _ = self._parts(self.environment.reset(seed=seed), "reset", "observation, info")
        return self._said(observation)

    def reply(self, history: list[Message]) -> CustomerReply:
        """Takes the agent's last message as an action.

        Raises:
            CustomerError: the observation is no text, or ``step`` returns something else than five things.
        """
        names = "observation, reward, terminated, truncated, info"
        found = self._parts(self.environment.step(history[-1].content), "step", names)
        observation, reward, terminated, truncated, _ = found
        done = bool(terminated or truncated)
        return CustomerReply(self._said(observation), reward=self.scale * float(reward), done=done)

    def _parts(self, found: Any, method: str, names: str) -> tuple[Any, ...]:
        if not isinstance(found, tuple) or len(found) != names.count(",") + 1:
            raise CustomerError(
                f"environment {type(self.environment).__name__}: {method} must return ({names}), found {found!r:.200}"
            )
        return found

    def _said(self, observation: Any) -> str:
        if self.text is not None and isinstance(observation, Mapping):
            observation = observation.get(self.text)
        if not isinstance(observation, str):
            more = ""
            if isinstance(observation, Mapping):
                more = f" with {', '.join(map(str, observation))}: say customer.text=KEY"
            raise CustomerError(
                f"environment {type(self.environment).__name__}: an observation must be text, found "
                f"{type(observation).__name__}{more}"
            )
        return observation
