"""ChatCustomer: a language model plays the customer, with a persona and a goal that the agent does not know."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence

from lightning_iterppo.conversation import Message
from lightning_iterppo.customers import CustomerReply
from lightning_iterppo.customers.chat.client import Client, Usage
from lightning_iterppo.customers.chat.local import LocalClient, ModelHost
from lightning_iterppo.customers.chat.outcomes import Outcome
from lightning_iterppo.errors import ConfigError

_BEGIN = "(The conversation begins. Write your first message.)"


class ChatCustomer:
    """A customer of the asynchronous form: all conversations of a batch wait for the server together.

    Args:
        client: how to reach the model.
        system: what the model is told: who it is, what it wants, how it decides, and how it ends the conversation. A
            template: ``{name}`` is what ``persona`` says of it.
        outcome: how the conversation ends and what it earned.
        persona: for every name in the template what it can be; each conversation draws one of each, by its seed.
        openings: first messages, of which the seed draws one; templates too. None lets the model open.
        agent: what the agent is told, as a system message; a template.
        max_turns: agent messages after which the conversation is over, whatever was said.
        host: whom a `LocalClient` asks; a run gives it.

    Raises:
        ConfigError: the template has a name that ``persona`` does not, or ``max_turns`` is below 1.
    """

    def __init__(
        self,
        client: Client,
        system: str,
        outcome: Outcome,
        persona: Mapping[str, Sequence[str]] | None = None,
        openings: Sequence[str] | None = None,
        agent: str | None = None,
        max_turns: int = 8,
        host: ModelHost | None = None,
    ) -> None:
        if max_turns < 1:
            raise ConfigError(f"customer.max_turns must be at least 1, found {max_turns}")
        self.client = client
        self.outcome = outcome
        self.persona = {name: [str(each) for each in options] for name, options in (persona or {}).items()}
        self.openings = list(openings or [])
        self.max_turns = max_turns
        self._system, self._agent = system, agent
        self.usage = Usage()
        for asked in (client, getattr(outcome, "client", None)):
            if host is not None and isinstance(asked, LocalClient):
                asked.bind(host)
        for what, text in (("system", system), ("agent", agent or ""), *(("openings", each) for each in self.openings)):
            self._check(what, text)
        if empty := [name for name, options in self.persona.items() if not options]:
            raise ConfigError(f"customer.persona.{empty[0]} has nothing to draw from")

    def _check(self, what: str, text: str) -> None:
        try:
            names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        except ValueError as error:
            raise ConfigError(f"customer.{what}: {error}; a brace of the text itself is written twice") from error
        for name in sorted(names - set(self.persona)):
            raise ConfigError(f"customer.{what} has {{{name}}}, but customer.persona has no {name}")

    async def reset(self, seed: int) -> str:
        """Draws who this is, and opens."""
        drawn = random.Random(seed)
        traits = {name: drawn.choice(options) for name, options in sorted(self.persona.items())}
        self.seed = seed
        self.usage = Usage()
        self.told = self._system.format_map(traits)
        self.system = None if self._agent is None else self._agent.format_map(traits)
        if self.openings:
            return drawn.choice(self.openings).format_map(traits)
        answer = await self.client.ask([*self._messages([])], self.usage, seed=seed)
        return self.outcome.heard(answer).text

    async def reply(self, history: list[Message]) -> CustomerReply:
        """Asks the model, and reads what its answer means."""
        turn = sum(message.role == "agent" for message in history)
        answer = await self.client.ask(
            self._messages(history), self.usage, seed=self.seed + turn, tools=self.outcome.tools
        )
        heard = self.outcome.heard(answer)
        if not heard.done and turn < self.max_turns:
            return CustomerReply(heard.text)
        whole = [*history, *([Message("customer", heard.text)] if heard.text else [])]
        reward = await self.outcome.earned(whole, heard, self.usage, self.seed)
        return CustomerReply(heard.text, reward=reward, done=True)

    def _messages(self, history: Sequence[Message]) -> list[dict[str, str]]:
        """The conversation as the model sees it: it is the assistant, and the agent is the user."""
        told = [{"role": "system", "content": self.told}]
        if not history or history[0].role == "customer":
            told.append({"role": "user", "content": _BEGIN})
        roles = {"customer": "assistant", "agent": "user"}
        return [*told, *({"role": roles[message.role], "content": message.content} for message in history)]
