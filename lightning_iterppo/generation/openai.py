"""Servers that speak the OpenAI completions protocol sample from the policy: vLLM, SGLang, llama.cpp, transformers.

What such servers have in common is the request for a completion. How they are given new weights, whether prompts may be
tokens, and whether the answer names the sampled tokens and how likely they were differs; recipes ``engine/vllm``,
``engine/sglang`` and ``engine/transformers`` say it for three of them.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urljoin

from lightning_iterppo.errors import ConfigError, EngineError
from lightning_iterppo.extras import need
from lightning_iterppo.generation.engine import PolicyFiles, Response
from lightning_iterppo.generation.randomness import seeds_in_turn
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models.rendering import ChatRenderer

_PURPOSE = "to sample from a server"
#: Seconds between two questions to a server that is starting.
_PATIENCE = 1.0


@dataclass(frozen=True)
class OpenAIServer:
    """A server, and how it is given weights.

    Args:
        base_url: as ``http://localhost:8000/v1``. It must see the files of the run under the same paths.
        model: the model's name in a request; ``{name}`` stands for the loaded policy's, ``{path}`` for its directory.
        load_path: where to post ``{"lora_name": …, "lora_path": …}`` to load an adapter, relative to ``base_url``. None
            for a server that loads a model when a request names it, or is started anew by ``restart``.
        unload_path: where to post ``{"lora_name": …}`` when another adapter is in use; None never does.
        restart: a command that starts the server with the weights in ``{path}``, and returns. Nothing of a shell is
            understood in it: write a script for that.
        start_timeout: seconds that a server may take until it answers after ``restart``.
        api_key: the *name* of the environment variable that holds the key. A server of one's own needs none.
        token_prompts: whether prompts are sent as tokens; as text else, which the server must take apart in the same
            way.
        logprobs: whether to ask how likely the sampled tokens were. They are computed by the trainer's weights if not.
        stop_token_ids: whether the server takes that field of a request; else it stops where its model's own
            configuration says.
        concurrency: requests at the same time.
        retries: how often a request is made again after a failure of the connection or of the server.
        timeout: seconds for one attempt.
        options: more fields of the request, as they are.

    Raises:
        ConfigError: the package ``openai`` is not installed, or both ``load_path`` and ``restart`` are given.
    """

    base_url: str
    model: str = "{name}"
    load_path: str | None = None
    unload_path: str | None = None
    restart: str | None = None
    start_timeout: float = 600.0
    api_key: str = "OPENAI_API_KEY"
    token_prompts: bool = True
    logprobs: bool = True
    stop_token_ids: bool = False
    concurrency: int = 32
    retries: int = 4
    timeout: float = 120.0
    options: Mapping[str, Any] = field(default_factory=dict)
    _client: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.load_path is not None and self.restart is not None:
            raise ConfigError("engine.load_path and engine.restart are two ways to do the same: make one of them null")
        client = need("openai", _PURPOSE, "chat").OpenAI(
            base_url=self.base_url,
            api_key=os.environ.get(self.api_key) or "none",
            max_retries=self.retries,
            timeout=self.timeout,
        )
        object.__setattr__(self, "_client", client)

    @property
    def takes(self) -> Literal["adapter", "merged"]:
        """Adapters where there is an address to post them to; else whole models."""
        return "merged" if self.load_path is None else "adapter"

    def load(self, policy: PolicyFiles, before: PolicyFiles | None) -> None:
        """Takes a policy into use, see `PolicyServer.load`."""
        if self.load_path is not None:
            if policy.name not in self._models():
                self._post(self.load_path, {"lora_name": policy.name, "lora_path": str(policy.path)})
            if self.unload_path is not None and before is not None:
                self._post(self.unload_path, {"lora_name": before.name})
        elif self.restart is not None:
            self._restart(self.restart.format(name=policy.name, path=shlex.quote(str(policy.path))))

    def engine(self, policy: PolicyFiles, seed: int, renderer: ChatRenderer) -> OpenAIEngine:
        """Samples from the policy that was loaded last."""
        return OpenAIEngine(self, self.model.format(name=policy.name, path=policy.path), seed, renderer)

    def complete(self, model: str, prompt: Sequence[int] | str, sampling: Sampling, seed: int, stop: int) -> Any:
        """The server's completion of one prompt, as it is.

        Raises:
            EngineError: the server refused, or did not answer in spite of all attempts.
        """
        openai = need("openai", _PURPOSE, "chat")
        more = {**({"stop_token_ids": [stop]} if self.stop_token_ids else {}), **self.options}
        try:
            found = self._client.completions.create(
                model=model,
                prompt=prompt if isinstance(prompt, str) else list(prompt),
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=seed,
                **({"logprobs": 1} if self.logprobs else {}),
                extra_body=more or None,
            )
        except openai.OpenAIError as error:
            raise self._failed(error) from error
        if not found.choices:
            raise EngineError(f"the engine at {self.base_url} answered without choices: {found!r:.200}")
        return found.choices[0]

    def _models(self) -> set[str]:
        openai = need("openai", _PURPOSE, "chat")
        try:
            return {each.id for each in self._client.models.list()}
        except openai.OpenAIError as error:
            raise self._failed(error) from error

    def _post(self, place: str, body: Mapping[str, Any]) -> None:
        openai = need("openai", _PURPOSE, "chat")
        address = urljoin(self.base_url.rstrip("/") + "/", place)
        try:
            self._client.post(address, body=dict(body), cast_to=str)
        except openai.OpenAIError as error:
            raise self._failed(error, address) from error

    def _restart(self, command: str) -> None:
        try:
            done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
        except OSError as error:
            raise EngineError(f"engine.restart: {command}: {error.strerror}") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip().rpartition("\n")[2]
            raise EngineError(f"engine.restart: {command} ended with {done.returncode}: {said:.200}")
        until = time.monotonic() + self.start_timeout
        while True:
            try:
                self._models()
                return
            except EngineError as error:
                if time.monotonic() > until:
                    raise EngineError(
                        f"engine.restart: {command} was done {self.start_timeout:g} s ago, but {error}"
                    ) from error
                time.sleep(_PATIENCE)

    def _failed(self, error: Exception, address: str | None = None) -> EngineError:
        # Not every server puts its reason where the client looks for it.
        said = " ".join(f"{error} {getattr(error, 'body', None) or ''}".split())
        return EngineError(f"the engine at {address or self.base_url} failed: {type(error).__name__}: {said:.200}")


class OpenAIEngine:
    """Samples responses, many requests at a time.

    Args:
        server: whom it asks.
        model: under which name.
        seed: the randomness of responses that are asked for without a seed of their own: the same seed and the same
            calls ask for the same samples. Servers promise little.
        renderer: the model's chat template and tokenizer.
    """

    def __init__(self, server: OpenAIServer, model: str, seed: int, renderer: ChatRenderer) -> None:
        self.server = server
        self.model = model
        self.renderer = renderer
        self._seed = seed
        self._asked = 0
        self._generated = 0

    @property
    def generated_tokens(self) -> int:
        """How many tokens were sampled so far."""
        return self._generated

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Sequence[int] | None = None
    ) -> list[Response]:
        """One response a prompt, in order. The seeds are those of the requests.

        Raises:
            EngineError: the server failed, or said what cannot be.
        """
        own = seeds_in_turn(self._seed, self._asked, len(prompts)) if seeds is None else seeds
        self._asked += len(prompts)

        def asked(number: int) -> Response:
            prompt: Sequence[int] | str = prompts[number]
            if not self.server.token_prompts:
                prompt = str(self.renderer.tokenizer.decode(list(prompts[number]), skip_special_tokens=False))
            stop = self.renderer.stop_token_id
            # Servers take what fits into 32 bits.
            return self._response(self.server.complete(self.model, prompt, sampling, own[number] % 2**31, stop))

        with ThreadPoolExecutor(max(1, min(self.server.concurrency, len(prompts)))) as pool:
            found = list(pool.map(asked, range(len(prompts))))
        self._generated += sum(len(response.token_ids) for response in found)
        return found

    def _response(self, choice: Any) -> Response:
        """What the server said, in tokens: by their numbers where it gives them, else its text taken apart."""
        finished = choice.finish_reason == "stop"
        said, logprobs = _token_ids(choice), _logprobs(choice)
        ids = self.renderer.encode(choice.text) if said is None else list(said)
        if finished and ids[-1:] != [self.renderer.stop_token_id]:
            ids.append(self.renderer.stop_token_id)
        if not ids:
            raise EngineError(f"the engine at {self.server.base_url} answered with nothing, and did not end there")
        if max(ids) >= len(self.renderer.tokenizer):
            raise EngineError(f"the engine at {self.server.base_url} has another tokenizer: it said token {max(ids)}")
        known = said is not None and len(logprobs) == len(ids)
        return Response(tuple(ids), tuple(logprobs) if known else (), finished)


def _token_ids(choice: Any) -> list[int] | None:
    """The sampled tokens' numbers: ``token_ids`` of vLLM, or its ``token_id:7`` in the place of tokens' texts."""
    ids = getattr(choice, "token_ids", None)
    if ids is not None:
        return [int(each) for each in ids]
    texts = (choice.logprobs.tokens if choice.logprobs is not None else None) or []
    if texts and all(text.startswith("token_id:") for text in texts):
        return [int(text.removeprefix("token_id:")) for text in texts]
    return None


def _logprobs(choice: Any) -> list[float]:
    found = (choice.logprobs.token_logprobs if choice.logprobs is not None else None) or []
    return [] if any(each is None for each in found) else [float(each) for each in found]
