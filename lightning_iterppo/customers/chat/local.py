"""The customer without a server: the weights that are in memory anyway play it, with another adapter or with none.

A customer is made before the model is loaded, and one object a conversation; the model is one for all. So a
`LocalClient` says how to ask, and a `ModelHost`, which whoever loads the model gives to every customer that takes one,
is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from lightning_iterppo.conversation import Message
from lightning_iterppo.customers.chat.client import Answer, Usage
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.generation.engine import Response
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.randomness import mixed_seed
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer

_VARIANT = "customer"
#: By their `id`: customers are copied and pickled, and the model must not be.
_HOSTS: WeakValueDictionary[int, ModelHost] = WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class _Asked:
    prompt: list[int]
    sampling: Sampling
    seed: int
    answer: asyncio.Future[Response]


class ModelHost:
    """Lets a language model say what others than the policy say.

    Args:
        model: the one that is trained. Its weights as they are now play, with none of what it learns.
        renderer: its chat template.
    """

    def __init__(self, model: LanguageModel, renderer: ChatRenderer) -> None:
        self.model = model
        self.renderer = renderer.forgetful()
        self.renderer.window = self.renderer.limit = None  # of the policy's histories
        self._variants: dict[str | None, str] = {}
        self._asked: dict[str, list[_Asked]] = {}
        _HOSTS[id(self)] = self

    @property
    def plays(self) -> bool:
        """Whether anybody has asked for a variant."""
        return bool(self._variants)

    def variant(self, adapter: str | None) -> str:
        """The model's variant with the weights of a directory, or with those that it began with.

        Raises:
            ConfigError: the directory holds no weights of this model and adaptation, or all weights train in shards.
        """
        if adapter not in self._variants:
            if self.model.sharded and not self.model.lora:
                raise ConfigError(
                    "customer.client: with trainer.strategy fsdp and model.adaptation full the weights of one variant "
                    "are whole at a time, and policy and customer talk in turns: take ddp, lora, or customer=chat"
                )
            name = f"{_VARIANT}{len(self._variants)}"
            self.model.add(name)
            if adapter is not None:
                try:
                    self.model.load_variant(name, Path(adapter).expanduser())
                except (FileNotFoundError, ValueError) as error:
                    raise ConfigError(
                        f"customer.client.adapter: {error}; give the policy directory of a run with this recipe's model"
                    ) from error
            self._variants[adapter] = name
        return self._variants[adapter]

    async def say(self, variant: str, prompt: list[int], sampling: Sampling, seed: int) -> Response:
        """A variant's response. All that are asked for at once are sampled in one batch."""
        loop = asyncio.get_running_loop()
        waiting = self._asked.setdefault(variant, [])
        own = _Asked(prompt, sampling, seed, loop.create_future())
        waiting.append(own)
        if waiting == [own]:
            loop.call_soon(self._answer, variant)  # after all those that ask in this turn of the loop
        return await own.answer

    def _answer(self, variant: str) -> None:
        asked = [each for each in self._asked.pop(variant) if not each.answer.done()]
        try:
            for sampling in dict.fromkeys(each.sampling for each in asked):
                alike = [each for each in asked if each.sampling == sampling]
                stop = self.renderer.stop_token_id
                engine = LocalEngine(self.model, stop_token_id=stop, seed=0, variant=variant)
                prompts = [each.prompt for each in alike]
                # A customer's seeds count up with its turns, and are then its neighbour's: prompts tell them apart.
                seeds = [mixed_seed(each.seed, *each.prompt) for each in alike]
                responses = engine.generate(prompts, sampling, seeds=seeds)
                for each, response in zip(alike, responses, strict=True):
                    each.answer.set_result(response)
        except Exception as error:  # it belongs to those who wait, not to the event loop
            for each in asked:
                if not each.answer.done():
                    each.answer.set_exception(error)


@dataclass
class LocalClient:
    """Asks the model that is trained, as it was before the training.

    Args:
        adapter: a policy's directory, as a run's checkpoints have one, with the recipe's model and adaptation; None is
            the model without an adapter.
        temperature: higher is more varied; 0 always says the likeliest.
        top_p: sample only from the most likely tokens that hold this much probability.
        max_tokens: where an answer is cut.

    Raises:
        ValueError: a number is out of range.
    """

    adapter: str | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 48

    def __post_init__(self) -> None:
        self._sampling = Sampling(self.temperature, self.top_p, self.max_tokens)
        self._host, self._variant = 0, ""

    def bind(self, host: ModelHost) -> None:
        """Says which model is asked.

        Raises:
            ConfigError: it cannot have the adapter.
        """
        self._host, self._variant = id(host), host.variant(self.adapter)

    async def ask(
        self,
        messages: Sequence[Mapping[str, str]],
        usage: Usage,
        *,
        seed: int,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Answer:
        """The model's next message, see `ChatClient.ask`.

        Raises:
            ConfigError: it shall call tools, or nobody has said which model is asked.
            ValueError: it said nothing.
        """
        if tools:
            raise ConfigError("customer.outcome: a local client calls no tools; take SaidOutcome or JudgeOutcome")
        host = _HOSTS.get(self._host)
        if host is None:
            raise ConfigError("customer.client: a LocalClient asks the model of a run, and there is none here")
        told = [message["content"] for message in messages if message["role"] == "system"]
        said = [
            Message("agent" if message["role"] == "assistant" else "customer", message["content"])
            for message in messages
            if message["role"] != "system"
        ]
        renderer = host.renderer
        prompt = renderer.encode(renderer.prompt_text("\n".join(told) or None, said))
        response = await host.say(self._variant, prompt, self._sampling, seed)
        usage.requests += 1
        usage.prompt_tokens += len(prompt)
        usage.completion_tokens += len(response.token_ids)
        text = renderer.decode(response.token_ids)
        if not text:
            raise ValueError("the model said nothing")
        return Answer(text)
