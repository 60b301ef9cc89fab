"""Three questions tell eight animals apart, and a guess ends the game: an environment of verifiers."""

from __future__ import annotations

import random
from typing import Any

import verifiers as vf
from datasets import Dataset

from lightning_iterppo.conversation import Conversation, Turn

#: What may be asked, and what an animal can answer to it.
ANSWERS = {"size": ("large", "small"), "home": ("water", "land"), "food": ("meat", "plants")}
ANIMALS = {
    "shark": ("large", "water", "meat"),
    "whale": ("large", "water", "plants"),
    "tiger": ("large", "land", "meat"),
    "horse": ("large", "land", "plants"),
    "otter": ("small", "water", "meat"),
    "snail": ("small", "water", "plants"),
    "stoat": ("small", "land", "meat"),
    "mouse": ("small", "land", "plants"),
}
TURNS = 4


def answer_to(said: str, animal: str) -> str:
    """What a question gets for an answer; a guess, or what is neither, gets none."""
    return dict(zip(ANSWERS, ANIMALS[animal], strict=True)).get(said, "what")


class Animals(vf.MultiTurnEnv):
    """Thinks of an animal, answers questions about it, and takes one guess."""

    @vf.stop
    async def guessed(self, state: vf.State) -> bool:
        """Whether an animal was named."""
        return bool(state["trajectory"]) and state["trajectory"][-1]["completion"][-1].content in ANIMALS

    async def env_response(self, messages: vf.Messages, state: vf.State, **_: Any) -> vf.Messages:
        """Answers the newest message."""
        return [vf.UserMessage(content=answer_to(messages[-1].content, state["answer"]))]


def right(completion: Any, answer: str) -> float:
    """The reward: whether the last thing that was said is the animal."""
    return float(completion[-1].content == answer)


def load_environment() -> vf.Environment:
    """What ``verifiers.load_environment("animals")`` calls: a row for each animal."""
    rows = [{"prompt": [{"role": "user", "content": "ask"}], "answer": animal} for animal in ANIMALS]
    return Animals(dataset=Dataset.from_list(rows), max_turns=TURNS, rubric=vf.Rubric(funcs=[right]))


def logs(conversations: int, seed: int, skill: float = 0.6) -> list[Conversation]:
    """Somebody asks what is open and then guesses what fits with probability ``skill``, and else says anything."""
    rng = random.Random(seed)
    found = []
    for number in range(conversations):
        animal, heard, known, turns = rng.choice(list(ANIMALS)), "ask", dict[str, str](), list[Turn]()
        while len(turns) < TURNS and not (turns and turns[-1].message in ANIMALS):
            fitting = [name for name, facts in ANIMALS.items() if {*known.values()} <= {*facts}]
            best = [question for question in ANSWERS if question not in known] or fitting
            said = rng.choice(best if rng.random() < skill else [*ANSWERS, *ANIMALS])
            turns.append(Turn(customer=heard, message=said, reward=float(said == animal)))
            heard = answer_to(said, animal)
            if said in ANSWERS:
                known[said] = heard
        found.append(Conversation(f"animals-{number:04d}", tuple(turns), None, "", turns[-1].reward))
    return found
