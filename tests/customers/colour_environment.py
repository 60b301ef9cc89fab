"""An environment of verifiers, as its authors write them: a module with `load_environment`."""

from __future__ import annotations

from typing import Any

import verifiers as vf
from datasets import Dataset

COLOURS = ("red", "blue")


class Colours(vf.MultiTurnEnv):
    """Has a colour, and three turns for the agent to name it."""

    async def env_response(self, messages: vf.Messages, state: vf.State, **_: Any) -> vf.Messages:
        if state["answer"] in messages[-1].content:
            state["final_env_response"] = [vf.UserMessage(content="yes !")]
            return state["final_env_response"]
        return [vf.UserMessage(content=f"no {len(state['trajectory'])}")]


class Failing(Colours):
    """Breaks down in a way that verifiers knows, or in another."""

    async def env_response(self, messages: vf.Messages, state: vf.State, **_: Any) -> vf.Messages:
        if messages[-1].content == "blue":
            raise vf.InfraError("the machine is gone")
        raise KeyError("colour")


class Forgetful(Colours):
    """Shows the model its first question again and again, and nothing else."""

    async def get_prompt_messages(self, state: vf.State) -> vf.Messages:
        return [vf.UserMessage(content=f"{len(state['trajectory'])} ?")]


class Started(Colours):
    """Is over before it begins."""

    @vf.stop
    async def at_once(self, state: vf.State) -> bool:
        return True


def named(completion: Any, answer: str) -> float:
    """A message names the colour: half of it for every message that does not."""
    said = [message.content for message in completion if message.role == "assistant"]
    return float(answer in said[-1]) * 0.5 ** (len(said) - 1)


def best_of(completions: Any, answers: Any) -> list[float]:
    return [1.0 for _ in zip(completions, answers, strict=True)]


def load_environment(kind: str = "colours", rows: int = 12, split: str = "dataset") -> vf.Environment:
    content: Any = "which ?"
    if kind == "picture":
        content = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    data = [
        {"prompt": [{"role": "user", "content": content}], "answer": COLOURS[number % 2], "info": {"number": number}}
        for number in range(rows)
    ]
    if kind == "shown":
        shown = [{"role": "user", "content": "which ?"}, {"role": "assistant", "content": "red"}]
        data = [{**row, "prompt": [*shown, *row["prompt"]]} for row in data]
    tool = vf.Tool(name="lamp", description="", parameters={})
    if kind == "row-tools":
        data = [{**row, "info": {"tool_defs": [tool.model_dump()]}} for row in data]
    made: Any = {
        "single": vf.SingleTurnEnv,
        "failing": Failing,
        "forgetful": Forgetful,
        "started": Started,
    }.get(kind, Colours)
    return made(
        **{split: Dataset.from_list(data)},
        **({} if kind == "single" else {"max_turns": 3}),
        system_prompt=None if kind == "picture" else "say a colour",
        rubric=vf.Rubric(funcs=[best_of if kind == "group" else named]),
        tool_defs=[tool] if kind == "tools" else None,
    )
