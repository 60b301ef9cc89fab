"""Environments of verifiers (package ``verifiers``, before 0.4) as conversations: the environment is the customer."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from lightning_iterppo.conversation import Message
from lightning_iterppo.customers import CustomerReply
from lightning_iterppo.customers.verifiers_messages import Said, answer, library, said
from lightning_iterppo.errors import ConfigError, CustomerError, describe_exception
from lightning_iterppo.extras import need

T = TypeVar("T")
_LOADED: dict[str, Any] = {}  # environments, by name and arguments: one plays any number of conversations at once
_EVENTS: list[asyncio.AbstractEventLoop] = []  # at most one


class VerifiersCustomer:
    """An environment, by name. Every kind that talks in text does, one that only asks and judges too.

    The environment runs as it does in verifiers, and meets the agent where it would ask a model: the system message of
    a row's prompt is what the agent is told beforehand, the rest opens the conversation, and what the environment
    answers to a message is what the agent hears. When it ends, the rubric's reward is earned.

    Args:
        environment: its name, as for ``verifiers.load_environment``: a module that has a function of that name.
        arguments: arguments of that function.
        split: whose rows are played, ``train`` or ``eval``. The seed chooses one.
        low: the rubric's reward that earns 0; below it nothing is earned either.
        high: the rubric's reward that earns 1, and the most.

    Raises:
        ConfigError: the package is not installed; there is no such environment; it has no such rows, needs tools or a
            sandbox, or compares several conversations; or ``low`` is not below ``high``.
    """

    def __init__(
        self,
        environment: str,
        arguments: Mapping[str, Any] | None = None,
        split: str = "train",
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        if split not in ("train", "eval"):
            raise ConfigError(f"customer.split must be train or eval, found {split!r}")
        if not low < high:
            raise ConfigError(f"customer.low {low:g} must be below customer.high {high:g}")
        self.environment = environment
        self.arguments = dict(arguments or {})
        self.split = split
        self.low, self.high = low, high
        self.system: str | None = None
        self._loaded = _load(environment, self.arguments)
        self._rows = _rows(self._loaded, environment, split)
        self._rollout: asyncio.Task[Any] | None = None

    def __reduce__(self) -> tuple[type[VerifiersCustomer], tuple[Any, ...]]:
        # A conversation that goes on cannot go to another process; a customer that has not begun can.
        return type(self), (self.environment, self.arguments, self.split, self.low, self.high)

    async def reset(self, seed: int) -> str:
        """Begins with a row, up to the agent's first message.

        Raises:
            CustomerError: it is over before that, or begins with messages of the agent.
        """
        return await _on_its_own(self._or_give_up(self._begin(seed)))

    async def reply(self, history: list[Message]) -> CustomerReply:
        """Gives the environment the agent's last message, and goes on to its next one, or to the rubric's reward.

        Raises:
            CustomerError: the environment failed, or does something that no conversation of two is.
        """
        return await _on_its_own(self._or_give_up(self._go_on(history[-1].content)))

    async def _or_give_up(self, work: Coroutine[Any, Any, T]) -> T:
        """After a failure, or an answer that took too long, nobody says what the environment would wait for."""
        try:
            return await work
        except BaseException:
            if self._rollout is not None:
                self._rollout.cancel()
            raise

    async def _begin(self, seed: int) -> str:
        if self._rollout is not None:
            self._rollout.cancel()
        self._agent = _Agent()
        self._heard: list[Said] = []
        row = self._rows[random.Random(seed).randrange(len(self._rows))]
        self._rollout = asyncio.create_task(self._loaded.rollout(row, self._agent, "policy", {}))
        prompt = await self._prompt()
        if prompt is None:
            raise CustomerError(f"environment {self.environment}: it is over before the agent's first message")
        told = [text for role, text in prompt if role == "system"]
        self.system = "\n\n".join(told) or None
        return self._text([each for each in prompt if each[0] != "system"])

    async def _go_on(self, text: str) -> CustomerReply:
        self._heard.append(("assistant", text))
        self._agent.answers.put_nowait(text)
        new = await self._prompt()
        if new is not None:
            return CustomerReply(self._text(new))
        assert self._rollout is not None
        state = self._rollout.result()
        await self._loaded.rubric.score_rollout(state)
        await self._loaded.rubric.cleanup(state)
        share = (float(state["reward"]) - self.low) / (self.high - self.low)
        closing = self._text(said(state.get("final_env_response") or []))
        return CustomerReply(closing, reward=min(1.0, max(0.0, share)), done=True)

    async def _prompt(self) -> list[Said] | None:
        """What is new in the next prompt; None when the environment is done."""
        assert self._rollout is not None
        asked = asyncio.create_task(self._agent.prompts.get())
        try:
            done, _ = await asyncio.wait({asked, self._rollout}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
        if asked not in done:
            error = self._rollout.result()["error"]
            if error is not None:
                raise CustomerError(f"environment {self.environment}: {describe_exception(error.__cause__ or error)}")
            return None
        prompt = asked.result()
        count = len(self._heard)
        if prompt[:count] != self._heard:
            raise CustomerError(f"environment {self.environment} changes what was said before: a conversation cannot")
        self._heard = prompt
        return prompt[count:]

    def _text(self, messages: Sequence[Said]) -> str:
        for role, _ in messages:
            if role != "user":
                raise CustomerError(
                    f"environment {self.environment} says something as {role}: agents hear a user, and a system first"
                )
        return "\n\n".join(text for _, text in messages)


class _Agent:
    """The model that an environment asks, as far as it can see: a client whose answers come from outside."""

    def __init__(self) -> None:
        self.prompts: asyncio.Queue[list[Said]] = asyncio.Queue()
        self.answers: asyncio.Queue[str] = asyncio.Queue()
        library().Client.register(type(self))  # verifiers asks for one of its own, with seven methods that none calls

    async def get_response(self, prompt: Any, model: str, tools: Any = None, **_: Any) -> Any:
        if tools:
            raise CustomerError(f"a row needs the tool {tools[0].name!r}: a policy speaks, and calls no tools")
        self.prompts.put_nowait(said(prompt))
        return answer(await self.answers.get(), model)


def _load(name: str, arguments: Mapping[str, Any]) -> Any:
    key = json.dumps([name, arguments], sort_keys=True, default=repr)
    if key in _LOADED:
        return _LOADED[key]
    vf = library()
    try:
        with _signals_kept():
            made = vf.load_environment(name, **arguments)
    except Exception as error:
        raise ConfigError(f"customer.environment: {name!r}: {' '.join(str(error).split())}") from error
    sandbox = need("verifiers.envs.experimental.sandbox_mixin", "for its environments", "verifiers")
    if not isinstance(made, vf.Environment):
        raise ConfigError(
            f"customer.environment: {name!r} made a {type(made).__name__}, which is no verifiers.Environment"
        )
    tools = ", ".join(tool.name for tool in made.tool_defs or ())
    reasons = {
        f"needs tools ({tools}), and a policy calls none": bool(tools),
        "runs its agent in a sandbox, and a policy has none": isinstance(made, sandbox.SandboxMixin),
        "has a rubric that compares several conversations": made.requires_group_rollouts,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"customer.environment: {name!r} {reason}; take one that only talks")
    _LOADED[key] = made
    return made


def _rows(environment: Any, name: str, split: str) -> Any:
    # Asked for rows of one kind, an environment without them gives the other ones.
    has = {
        "train": (environment.dataset, environment.dataset_source),
        "eval": (environment.eval_dataset, environment.eval_dataset_source),
    }
    rows = None
    if any(each is not None for each in has[split]):
        rows = environment.get_dataset() if split == "train" else environment.get_eval_dataset()
    if not rows:
        other = "eval" if split == "train" else "train"
        raise ConfigError(f"customer.split: environment {name!r} has no {split} rows; say customer.split={other}")
    return rows


@contextmanager
def _signals_kept() -> Iterator[None]:
    """An environment takes over what happens at an interruption, for the whole process; a run has its own way."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for each, handler in before.items():
                signal.signal(each, handler)


async def _on_its_own(work: Coroutine[Any, Any, T]) -> T:
    """Runs something in the one event loop that all environments have.

    What an environment opens (the connections of a judge's client) stays with the loop in which it was first used, and
    the loop that asks here is another one in every phase of a run.
    """
    if not _EVENTS:
        _EVENTS.append(asyncio.new_event_loop())
        threading.Thread(target=_EVENTS[0].run_forever, name="verifiers", daemon=True).start()
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, _EVENTS[0]))
