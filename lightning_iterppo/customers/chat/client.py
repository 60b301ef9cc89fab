"""Asks a server that speaks the OpenAI chat protocol: concurrently, again after a failure, and never the same twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from lightning_iterppo.errors import ConfigError
from lightning_iterppo.extras import need
from lightning_iterppo.files import write_json_atomically

#: A client's connections and its queue belong to the event loop in which they were made.
_OPEN: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, tuple[Any, asyncio.Semaphore]]] = WeakKeyDictionary()


@dataclass(slots=True)
class Usage:
    """What conversations cost.

    Args:
        requests: answers that were asked for.
        cached: of these, those that the cache had.
        prompt_tokens: tokens read by the server, by its own count.
        completion_tokens: tokens written by it.
        cost: by the client's prices.
    """

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said.

    Args:
        text: its message; empty if it only called tools.
        calls: the tools that it called, and their arguments.
    """

    text: str
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()


class Client(Protocol):
    """Whoever can be asked for a model's next message."""

    async def ask(
        self,
        messages: Sequence[Mapping[str, str]],
        usage: Usage,
        *,
        seed: int,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Answer:
        """The model's next message, see `ChatClient.ask`."""


@dataclass(frozen=True)
class ChatClient:
    """How to reach a model.

    Args:
        model: its name on the server.
        base_url: the server, as ``http://localhost:8000/v1``; None is OpenAI's.
        api_key: the *name* of the environment variable that holds the key. A server of one's own needs none.
        temperature: higher is more varied; 0 always says the likeliest.
        max_tokens: where an answer is cut.
        retries: how often a request is made again after a failure of the connection or of the server, waiting longer
            every time.
        timeout: seconds for one attempt.
        concurrency: requests at the same time.
        cache: a directory that keeps every answer under what was asked: a request that was made before costs nothing,
            and a repeated run is the same run. None keeps nothing.
        price_in: of a million tokens read, in whatever currency.
        price_out: of a million tokens written.
        options: more fields of the request, as they are.

    Raises:
        ConfigError: the package ``openai`` is not installed, or there is no key.
    """

    model: str
    base_url: str | None = None
    api_key: str = "OPENAI_API_KEY"
    temperature: float = 1.0
    max_tokens: int = 200
    retries: int = 4
    timeout: float = 60.0
    concurrency: int = 16
    cache: str | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        need("openai", "to talk with a chat server", "chat")
        if self.base_url is None and not os.environ.get(self.api_key):
            raise ConfigError(
                f"the environment has no {self.api_key}: set it to your key, or name a server of your own (base_url)"
            )

    async def ask(
        self,
        messages: Sequence[Mapping[str, str]],
        usage: Usage,
        *,
        seed: int,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Answer:
        """The model's next message.

        Args:
            messages: the conversation, in OpenAI's form.
            usage: what this costs is added to it.
            seed: of the sampling, for servers that take one.
            tools: what the model may call, in OpenAI's form.

        Raises:
            openai.OpenAIError: the server refused, or did not answer in spite of all attempts.
            ValueError: its answer holds neither text nor a call.
        """
        length = "max_completion_tokens" if self.base_url is None else "max_tokens"
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "temperature": self.temperature,
            length: self.max_tokens,
            "seed": seed,
            **({"tools": [dict(tool) for tool in tools]} if tools else {}),
        }
        usage.requests += 1
        place = self._place(request)
        if place is not None and place.is_file():
            usage.cached += 1
            kept = json.loads(place.read_text(encoding="utf-8"))["answer"]
            return Answer(kept["text"], tuple((name, given) for name, given in kept["calls"]))
        client, queue = self._opened()
        async with queue:
            found = await client.chat.completions.create(**request, extra_body=dict(self.options) or None)
        if found.usage is not None:
            usage.prompt_tokens += found.usage.prompt_tokens
            usage.completion_tokens += found.usage.completion_tokens
            paid = self.price_in * found.usage.prompt_tokens + self.price_out * found.usage.completion_tokens
            usage.cost += paid / 1e6
        answer = _answer(found)
        if place is not None:
            write_json_atomically(place, {"request": {**request, **self.options}, "answer": asdict(answer)})
        return answer

    def _place(self, request: Mapping[str, Any]) -> Path | None:
        """Where the cache keeps the answer: under a digest of everything that was asked, and of whom."""
        if self.cache is None:
            return None
        asked = json.dumps({"server": self.base_url, **request, "options": dict(self.options)}, sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()
        return Path(self.cache).expanduser() / digest[:2] / f"{digest}.json"

    def _opened(self) -> tuple[Any, asyncio.Semaphore]:
        """This event loop's connections to the server; one of everything, whoever asks."""
        here = _OPEN.setdefault(asyncio.get_running_loop(), {})
        name = repr((self.base_url, self.api_key, self.retries, self.timeout, self.concurrency))
        if name not in here:
            made = need("openai", "to talk with a chat server", "chat").AsyncOpenAI(
                base_url=self.base_url,
                api_key=os.environ.get(self.api_key) or "none",
                max_retries=self.retries,
                timeout=self.timeout,
            )
            here[name] = made, asyncio.Semaphore(self.concurrency)
        return here[name]


def _answer(found: Any) -> Answer:
    if not found.choices:
        raise ValueError(f"the server's answer has no choices: {found!r:.200}")
    message = found.choices[0].message
    calls = []
    for call in message.tool_calls or ():
        try:
            given = json.loads(call.function.arguments or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f"the model called {call.function.name} with {call.function.arguments!r:.200}") from error
        if not isinstance(given, dict):
            raise ValueError(f"the model called {call.function.name} with {call.function.arguments!r:.200}")
        calls.append((call.function.name, given))
    text = (message.content or "").strip()
    if not text and not calls:
        raise ValueError("the model said nothing")
    return Answer(text, tuple(calls))
