"""A policy as the model that verifiers evaluates: `Environment.evaluate` asks it in place of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_iterppo.composition import load_recipe
from lightning_iterppo.config import TrainerConfig
from lightning_iterppo.conversation import Message, Role
from lightning_iterppo.customers.verifiers_messages import answer, library, said
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.extras import need
from lightning_iterppo.generation.engine import Response
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.loading import load_language_model
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer, longest_text
from lightning_iterppo.models.window import Window
from lightning_iterppo.operations import load_policy
from lightning_iterppo.run_directory import RunDirectory
from lightning_iterppo.trainer import TrainerFactory

_ROLES: dict[str, Role] = {"user": "customer", "assistant": "agent"}  # of verifiers, and ours
#: What verifiers asks for, by our name. The log-probabilities come in any case.
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
}
_HARMLESS = {"n": (None, 1), "extra_body": (None, {}), "logprobs": (None, True, False)}


@dataclass
class _Request:
    prompt: list[int]
    sampling: Sampling
    response: asyncio.Future[Response]


class PolicyClient:
    """Answers for a model of ours what verifiers asks a client, from the weights in memory.

    ::

        environment = verifiers.load_environment("NAME")
        results = environment.evaluate_sync(PolicyClient.of_run("runs/shop/1"), "policy", num_examples=20)

    Requests that wait at the same time are sampled together, so that with a temperature the answers depend on what else
    was asked; at temperature 0 they do not. It is used from one event loop at a time.

    Args:
        model: the model, whose ``policy`` variant answers.
        renderer: its chat template; None takes the tokenizer's own.
        sampling: how it answers where ``sampling_args`` say nothing else.
        seed: the randomness.
        rows: how many answers are sampled side by side.

    Raises:
        ConfigError: verifiers is not installed, or is a release without clients.
    """

    def __init__(
        self,
        model: LanguageModel,
        renderer: ChatRenderer | None = None,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        rows: int = 64,
    ) -> None:
        # verifiers takes objects of a class of its own; of that class's methods it calls only those below.
        library().Client.register(type(self))
        self.model = model
        self.renderer = renderer or ChatRenderer(model.tokenizer)
        self.sampling = sampling or Sampling()
        self.engine = LocalEngine(model, stop_token_id=self.renderer.stop_token_id, seed=seed, rows=rows)
        self._waiting: list[_Request] = []
        self._sampler: asyncio.Task[None] | None = None

    @classmethod
    def of_run(cls, run: str | Path, policy: str | Path | None = None) -> PolicyClient:
        """The policy of a run.

        Args:
            run: a run's directory: its recipe says which model, and how it is sampled.
            policy: a policy's directory; None takes the newest checkpoint's.

        Raises:
            RunDirectoryError: it is no run, it has no checkpoint yet, or the policy is of another model.
        """
        config = load_recipe(RunDirectory.open(Path(run)).recipe)
        model = load_language_model(config)
        load_policy(model, Path(run if policy is None else policy), option="policy")
        model.to(TrainerFactory(TrainerConfig(devices=1)).device)
        window = None if config.model.window is None else Window(config.model.window, config.model.window_first)
        wanted = config.sampling
        return cls(
            model,
            ChatRenderer(model.tokenizer, config.model.system, window),
            Sampling(wanted.temperature, wanted.top_p, wanted.max_new_tokens),
            seed=config.seed,
            rows=config.loop.batch,
        )

    async def get_response(
        self,
        prompt: Any,
        model: str,
        sampling_args: Mapping[str, Any] | None = None,
        tools: Any = None,
        state: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> Any:
        """The policy's next message.

        Args:
            prompt: messages of verifiers.
            model: the name that the response has.
            sampling_args: temperature, top_p and max_tokens.
            tools: what may be called, which a policy cannot.
            state: the rollout's state: its trajectory has the tokens that were sampled before.

        Raises:
            ConfigError: there are tools, or other sampling arguments.
            CustomerError: a message holds more than text.
            verifiers.OverlongPromptError: the prompt with the longest answer is longer than the model's context.
        """
        if tools:
            raise ConfigError(f"the environment has the tool {tools[0].name!r}: a policy speaks, and calls no tools")
        answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        tokens = self._read(prompt, (state or {}).get("trajectory") or ())
        request = _Request(tokens, self._sampled(sampling_args or {}), answered)
        limit = longest_text(self.model.causal_lm.config)
        if limit is not None and len(request.prompt) + request.sampling.max_new_tokens > limit:
            raise library().OverlongPromptError(f"{len(request.prompt)} tokens and an answer; it reads {limit}")
        self._waiting.append(request)
        if self._sampler is None or self._sampler.done():
            self._sampler = asyncio.create_task(self._sample())
        response = await request.response
        types = need("verifiers.types", "for its environments", "verifiers")
        read, made = len(request.prompt), len(response.token_ids)
        return answer(
            self.renderer.decode(response.token_ids),
            model,
            finished=response.finished,
            tokens=types.ResponseTokens(
                prompt_ids=request.prompt,
                prompt_mask=[0] * read,
                completion_ids=list(response.token_ids),
                completion_mask=[1] * made,
                completion_logprobs=list(response.logprobs),
            ),
            usage=types.Usage(prompt_tokens=read, reasoning_tokens=0, completion_tokens=made, total_tokens=read + made),
        )

    async def close(self) -> None:
        """There is nothing to close."""

    def _read(self, prompt: Any, steps: Sequence[Mapping[str, Any]]) -> list[int]:
        """The prompt's tokens: behind the last step's own, where it goes on from there, as in a run of ours."""
        messages = said(prompt)
        system = "\n\n".join(text for role, text in messages if role == "system") or None
        spoken = [(role, text) for role, text in messages if role != "system"]
        for role, _ in spoken:
            if role not in _ROLES:
                raise ConfigError(f"the environment says something as {role}: a policy hears a user, and a system")
        history = [Message(_ROLES[role], text) for role, text in spoken]
        if steps and (tokens := steps[-1]["tokens"]) and not tokens["is_truncated"]:
            before = said([*steps[-1]["prompt"], *steps[-1]["completion"]])
            new = messages[len(before) :]
            if messages[: len(before)] == before and all(role == "user" for role, _ in new):
                ended = tokens["completion_ids"][-1] == self.renderer.stop_token_id
                more = self.renderer.continuation(system, history, ended=ended)
                if more is not None:
                    return [*tokens["prompt_ids"], *tokens["completion_ids"], *more]
        return self.renderer.encode(self.renderer.prompt_text(system, history))

    def _sampled(self, wanted: Mapping[str, Any]) -> Sampling:
        found = {name: getattr(self.sampling, name) for name in set(_SAMPLING.values())}
        for key, value in wanted.items():
            if key in _SAMPLING:
                found[_SAMPLING[key]] = found[_SAMPLING[key]] if value is None else value
            elif value not in _HARMLESS.get(key, (None,)):
                raise ConfigError(f"sampling_args has {key}={value!r}; a policy takes {', '.join(_SAMPLING)}")
        try:
            return Sampling(**found)
        except ValueError as error:
            raise ConfigError(f"sampling_args: {error}") from error

    async def _sample(self) -> None:
        """Answers all that wait, until nobody does."""
        while self._waiting:
            await asyncio.sleep(0)  # others that are ready to ask do so first
            sampling = self._waiting[0].sampling
            now = [each for each in self._waiting if each.sampling == sampling]
            self._waiting = [each for each in self._waiting if each.sampling != sampling]
            found: list[Response] | Exception
            try:
                found = await asyncio.to_thread(self.engine.generate, [each.prompt for each in now], sampling)
            except Exception as error:  # whoever asked hears of it
                found = error
            for place, each in enumerate(now):
                if each.response.done():  # given up meanwhile
                    continue
                if isinstance(found, Exception):
                    each.response.set_exception(found)
                else:
                    each.response.set_result(found[place])
