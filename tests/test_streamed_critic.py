"""A critic of logs that are larger than what is held of them: the same critic, and no more held."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_iterppo import critic_fit as critic_fit_module
from lightning_iterppo import operations
from lightning_iterppo.composition import compose
from lightning_iterppo.config import Recipe
from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.critic_fit import CriticFit
from lightning_iterppo.data import trees as trees_module
from lightning_iterppo.data.conversation_file import ConversationFile
from lightning_iterppo.data.logs import read_conversations, write_conversations
from lightning_iterppo.errors import LogDataError, LogFormatError, RunDirectoryError
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.tree import TokenTree
from lightning_iterppo.phase import PhaseTools
from lightning_iterppo.scoring import states_in_windows
from lightning_iterppo.settings import LoopSettings
from lightning_iterppo.snapshot import load_critic

Make = Callable[..., IterativePPOLoop]
SMALL = [
    *("customer._target_=named_in_recipes.WordCustomer", "logs=none", "trainer=cpu", "callbacks.progress=null"),
    *("model.scratch.hidden_size=16", "model.scratch.layers=1", "model.scratch.heads=2"),
    *("model.scratch.vocabulary=[red,blue,'?',yes,no]", "critic.epochs=1", "critic.batch_conversations=8"),
]


def recipe(kind: str = "full", *more: str) -> Recipe:
    return compose("probe", [f"model/adaptation={kind}", *SMALL, *more])


def talks(count: int, *, edited: bool = False) -> list[Conversation]:
    """Won when the last word is red; of some the outcome is not known."""
    made = []
    for number in range(count):
        said = ("red", "no", "blue", "red yes")[number % 4]
        turns = [Turn("blue ?", "no yes" if turn % 2 else "yes") for turn in range(number % 3)]
        won = None if number % 11 == 10 else float("red" in said)
        turn = Turn(("red ?", "blue ?")[number // 4 % 2], said, reward=won or 0.0)
        if edited and number % 5 == 0:
            turn = Turn(turn.customer, said, Suggestion("no"), "edited", won or 0.0)
        made.append(Conversation(str(number), (*turns, turn), closing="yes" * (number % 2), outcome=won))
    return made


def fitted(make: Make, logs: Any, kind: str, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    loop = make(kind, layers=2, top_layers=1 if kind == "lora" else None, settings=settings)
    figures = loop.fit_critic_only(logs, None)
    weights = {key: tensor.clone() for key, tensor in loop.language_model.variant_tensors("critic").items()}
    scores = loop.critic.score([loop.renderer.render(talk).tree for talk in talks(60, edited=True)])
    tensors = {f"head.{key}": tensor for key, tensor in loop.critic.head.state_dict().items()}
    return figures, {**weights, **tensors, "Q": torch.tensor([q for of_one in scores for q in of_one])}


@pytest.mark.parametrize("kept", [2**20, 60])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("full", {}),
        ("lora", {"critic_td_lambda": 0.5}),
        ("lora", {"critic_head_turns": 30}),
        ("full", {"critic_epochs": 0}),
    ],
)
def test_a_file_gives_the_critic_of_a_list(
    make_loop: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    settings: dict[str, Any],
    kept: int,
) -> None:
    write_conversations(tmp_path / "logs.jsonl", talks(60, edited=True))
    figures, weights = fitted(make_loop, talks(60, edited=True), kind, settings)
    monkeypatch.setattr(trees_module, "KEPT_TOKENS", kept)
    found, of_file = fitted(make_loop, ConversationFile(tmp_path / "logs.jsonl"), kind, settings)
    # AUROC counts who stands before whom. Many of these conversations are alike, and rounding orders their equal Q.
    assert found.keys() == figures.keys() and (found.pop("auroc") is None) == (figures.pop("auroc") is None)
    assert found == pytest.approx(figures, abs=1e-5)
    assert weights.keys() == of_file.keys()
    for key, tensor in weights.items():
        torch.testing.assert_close(of_file[key], tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_a_fit_holds_few_conversations_of_many(
    make_loop: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write_conversations(tmp_path / "logs.jsonl", talks(600))
    monkeypatch.setattr(trees_module, "KEPT_TOKENS", 100)
    most: dict[str, int] = {"Conversation": 0, "TokenTree": 0}

    def alive() -> dict[str, int]:
        names = [type(each).__name__ for each in gc.get_objects()]
        return {name: names.count(name) for name in most}

    class Counts(Callback):
        calls = 0

        def on_progress(self, loop: IterativePPOLoop) -> None:
            self.calls += 1
            if self.calls % 13 == 0:
                for name, count in alive().items():
                    most[name] = max(most[name], count - before[name])

    settings = {"critic_epochs": 2, "critic_head_turns": 100, "critic_batch": 8}
    loop = make_loop(kind, layers=2, top_layers=1 if kind == "lora" else None, settings=settings, callbacks=[Counts()])
    gc.collect()
    before = alive()
    loop.fit_critic_only(ConversationFile(tmp_path / "logs.jsonl"), None)
    assert most["Conversation"] <= 2
    assert 10 <= most["TokenTree"] < 100


def test_the_head_is_solved_for_on_whole_conversations_up_to_a_bound(make_loop: Make) -> None:
    loop = make_loop()
    known = [talk for talk in talks(80) if talk.outcome is not None]

    def some(turns: int, seed: int = 1) -> list[Conversation]:
        tools = PhaseTools(None, (), lambda: None, seed=seed)  # type: ignore[arg-type]
        fit = CriticFit(loop.critic, loop.renderer, LoopSettings(critic_head_turns=turns), tools)
        return list(fit._some(talks(80)))

    assert some(10_000) == known
    found = some(50)
    assert 40 <= sum(len(talk.turns) for talk in found) <= 50
    assert [int(talk.id) for talk in found] == sorted({int(talk.id) for talk in found})
    assert some(50) == found != some(50, seed=2)
    assert len(some(1)) == 2  # one cannot be held out


def test_a_broken_line_is_told_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = tmp_path / "logs.jsonl"
    write_conversations(logs, talks(40))
    with open(logs, "a", encoding="utf-8") as file:
        file.write("{nope\n")
    monkeypatch.setattr(operations, "build_loop", None)
    with pytest.raises(LogFormatError, match=r"logs\.jsonl:41: not JSON"):
        operations.fit_critic(recipe(), [logs], [], tmp_path / "critic")


@pytest.mark.usefixtures("word_customer")
def test_a_return_out_of_bounds_is_found_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees_module, "KEPT_TOKENS", 20)
    turn = Turn("red ?", "no", reward=7.0)
    write_conversations(tmp_path / "logs.jsonl", [*talks(40), Conversation("odd", (turn,), outcome=7.0)])
    with pytest.raises(LogDataError, match=r"conversation 'odd', turn 1: from here on it earned 7"):
        operations.fit_critic(recipe(), [tmp_path / "logs.jsonl"], [], tmp_path / "critic")
    assert not (tmp_path / "critic").exists()


def test_reading_a_large_log_is_shown(make_loop: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    class Looks(Callback):
        def on_progress(self, loop: IterativePPOLoop) -> None:
            if loop.progress.unit == "conversations read":
                seen.append((loop.progress.done, loop.progress.total))

    monkeypatch.setattr(critic_fit_module, "KEPT_CONVERSATIONS", 20)
    logs = [talk for talk in talks(60) if talk.outcome is not None]
    loop = make_loop(settings={"critic_epochs": 1, "critic_solve_head": False}, callbacks=[Looks()])
    loop.fit_critic_only(logs, None)
    # Then the head of states reads them in one batch.
    assert seen[: len(logs)] == [(number, len(logs)) for number in range(1, len(logs) + 1)]


# -- scoring ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("word_customer")
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_scores_are_of_every_message_that_was_sent(tmp_path: Path, kind: str) -> None:
    logs, critic, scores = tmp_path / "logs.jsonl", tmp_path / "critic", tmp_path / "deep" / "scores.jsonl"
    write_conversations(logs, talks(40, edited=True))
    config = recipe(kind)
    operations.fit_critic(config, [logs], [], critic)
    found = operations.score(critic, logs, scores)
    loop = operations.build_loop(recipe(kind), kept=False)
    load_critic(critic, loop.language_model, loop.critic)
    lines = iter(scores.read_text(encoding="utf-8").splitlines())
    values = []
    for talk in read_conversations(logs):
        (expected,) = loop.critic.score_states([loop.renderer.render(talk.as_sent()).tree])
        for turn, (q, v) in zip(talk.turns, expected, strict=True):
            line = json.loads(next(lines))
            values.append(line["q"])
            found_v = pytest.approx(v, abs=1e-5)
            assert line == {"id": talk.id, "turn": line["turn"], "q": pytest.approx(q, abs=1e-5), "v": found_v}
            assert talk.messages[line["turn"]].content == turn.message
    assert next(lines, None) is None
    assert (found["conversations"], found["turns"]) == (40, len(values))
    assert found["q_mean"] == pytest.approx(sum(values) / len(values))


@pytest.mark.usefixtures("word_customer")
def test_a_runs_critic_is_found_and_what_is_none_is_told(tmp_path: Path) -> None:
    logs, run = tmp_path / "logs.jsonl", tmp_path / "run"
    write_conversations(logs, talks(12))
    small = ["loop.iterations=1", "loop.conversations=10", "loop.evaluation_conversations=0", "policy.rounds=1"]
    operations.train(recipe("full", *small), run, False)
    places = [run, run / "checkpoints" / "iteration-000", run / "checkpoints" / "iteration-000" / "critic"]
    texts = set()
    for number, place in enumerate(places):
        operations.score(place, logs, tmp_path / f"scores-{number}.jsonl")
        texts.add((tmp_path / f"scores-{number}.jsonl").read_text())
    assert len(texts) == 1
    for place in (tmp_path, run / "checkpoints", run / "checkpoints" / "iteration-000" / "policy"):
        with pytest.raises(RunDirectoryError, match="holds no critic"):
            operations.score(place, logs, tmp_path / "none.jsonl")
    with open(logs, "a", encoding="utf-8") as file:
        file.write("[]\n")
    with pytest.raises(LogFormatError, match=r"logs\.jsonl:13: "):
        operations.score(run, logs, tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("kind", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_scoring_holds_a_window(make_loop: Make, kind: str) -> None:
    loop = make_loop(kind, layers=2, top_layers=1 if kind == "lora" else None)
    trees = [loop.renderer.render(talk).tree for talk in talks(50)]
    expected = loop.critic.score(trees, rows=4)

    def alive() -> int:
        return sum(type(each) is TokenTree and each.features is not None for each in gc.get_objects())

    before, most, passes = alive(), 0, []

    def counted(count: int, tokens: int) -> None:
        nonlocal most
        passes.append(count)
        most = max(most, alive() - before)

    fresh = (tree.copy() for tree in trees)
    found = list(states_in_windows(loop.critic, fresh, rows=4, window=10, on_batch=counted))
    assert [[q for q, _ in scores] for scores in found] == [pytest.approx(values, abs=1e-5) for values in expected]
    assert sum(passes) == 50 and max(passes) == 4
    assert most == 0  # what frozen layers made of a tree is gone with its pass
