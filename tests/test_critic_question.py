"""A question after every message: read on its own path, seen by the head and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_iterppo.composition import compose
from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.critic import QCritic
from lightning_iterppo.critic_question import ask
from lightning_iterppo.data.turns import TurnDataModule
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.models.adaptation import Computing
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.tree import TokenTree, collate_trees

Make = Callable[..., LanguageModel]
COLOURS = ["red", "blue", "?", "yes", "no"]
READINGS = pytest.mark.parametrize(("pooling", "layer"), [("last", None), ("mean", None), ("mean", 1)])


def talk(number: int) -> Conversation:
    turns = (Turn("no", "yes ?"), Turn(f"{COLOURS[number % 2]} ?", COLOURS[number // 2 % 2], reward=float(number % 2)))
    return Conversation(str(number), turns, outcome=float(number % 2))


@pytest.fixture
def critic(
    make_language_model: Make, stir: Callable[..., None]
) -> Callable[..., tuple[QCritic, ChatRenderer, list[int]]]:
    def made(pooling: str, layer: int | None, **computing: Any) -> tuple[QCritic, ChatRenderer, list[int]]:
        model = make_language_model("full", vocabulary=COLOURS, hidden=16, layers=2, computing=Computing(**computing))
        renderer = ChatRenderer(model.tokenizer)
        question = renderer.question_ids("yes ?")
        found = QCritic(model, pooling=pooling, layer=layer, question=question)  # type: ignore[arg-type]
        model.copy("policy", "critic")
        stir(model, "critic", scale=0.3)
        torch.manual_seed(0)
        torch.nn.init.normal_(found.head.linear.weight)
        return found, renderer, question

    return made


def grown(renderer: ChatRenderer) -> list[TokenTree]:
    """Conversations, one with more responses in its states."""
    rendered = [renderer.render(talk(n)) for n in range(2)]
    for state in rendered[0].states:
        for word in ("red", "blue"):
            rendered[0].tree.add(renderer.response_ids(word), state, action=True)
    return [item.tree for item in rendered]


def alone(critic: QCritic, path: list[int], question: list[int]) -> Tensor:
    """What the head sees where a message, or a state, and the question after it stand alone."""
    output = critic.model.trunk(input_ids=torch.tensor([[*path, *question]]), output_hidden_states=True)
    hidden = output.last_hidden_state[0] if critic.layer is None else output.hidden_states[critic.layer][0]
    if critic.pooling == "last":
        return hidden[-1]
    said, asked = hidden[: len(path)].mean(0), hidden[len(path) :].mean(0)
    return F.layer_norm(said, said.shape) + F.layer_norm(asked, asked.shape)


@READINGS
@pytest.mark.parametrize("share", [True, False])
def test_q_is_read_from_the_question_after_the_message(
    critic: Callable[..., Any], pooling: str, layer: int | None, share: bool
) -> None:
    asking, renderer, question = critic(pooling, layer, share_prefixes=share)
    trees = grown(renderer)
    scores = asking.score(trees, rows=2)
    assert [len(values) for values in scores] == [6, 2]
    with torch.no_grad(), asking.model.using("critic"):
        for tree, values in zip(trees, scores, strict=True):
            for action, value in zip(tree.actions, values, strict=True):
                seen = alone(asking, tree.path(action), question)
                assert value == pytest.approx(float(torch.sigmoid(asking.head(seen))), abs=1e-5)
    assert len({round(value, 4) for value in scores[0]}) > 3


@READINGS
def test_v_is_read_from_the_question_in_the_state(critic: Callable[..., Any], pooling: str, layer: int | None) -> None:
    asking, renderer, question = critic(pooling, layer)
    module = TurnDataModule([talk(n) for n in range(4)], [], renderer=renderer, batch_size=4)
    batch = module.collate(module.train_trees)
    features = asking.features([batch], states=True)
    with torch.no_grad(), asking.model.using("critic"):
        torch.testing.assert_close(asking.head.linear(features.values)[:, 0], asking(batch.tree))
        states = [tree.path(tree.segments[action].parent) for tree in batch.tree.trees for action in tree.actions]
        for state, seen in zip(states, features.states, strict=True):
            torch.testing.assert_close(asking.head.norm(alone(asking, state, question)), seen)
    asking.fit_states(features)
    scored = asking.score_states([batch.tree.trees[0]])[0]
    assert all(v is not None and 0 < v < 1 for _, v in scored)


def test_a_step_trains_through_the_question(critic: Callable[..., Any]) -> None:
    asking, renderer, _ = critic("last", None)
    module = TurnDataModule([talk(n) for n in range(4)], [], renderer=renderer, batch_size=4)
    batch = module.collate(module.train_trees)
    asking.setup("fit")
    asking(batch.tree).sum().backward()
    embedding = asking.model.trunk.embed_tokens.weight.grad
    assert embedding[asking.question[-1]].abs().sum() > 0


def test_stand_ins_stay_last_and_count_nothing(critic: Callable[..., Any]) -> None:
    _, renderer, question = critic("mean", None)
    trees = grown(renderer)
    asked = ask(collate_trees(trees, 0, stand_ins=1), question, 0)
    assert asked.batch.stand_ins == 1
    assert asked.batch.counted.tolist() == [True] * 6 + [False] * 2
    assert len(trees[0]) < len(asked.batch.trees[0])  # what was given is as it was


def test_the_question_is_said_as_a_customer_says_it(make_language_model: Make) -> None:
    renderer = ChatRenderer(make_language_model("full", vocabulary=COLOURS).tokenizer)
    conversation = Conversation("1", (Turn("no", "yes"), Turn("red ?", "blue")), outcome=1.0)
    rendered = renderer.render(conversation)
    assert renderer.question_ids(" red ? ") == list(rendered.tree.segments[rendered.states[1]].token_ids)
    with pytest.raises(ValueError, match="needs some text"):
        renderer.question_ids(" ")


def test_an_empty_question_is_refused_and_no_question_asks_nothing(make_language_model: Make) -> None:
    with pytest.raises(ConfigError, match=r"critic\.question .*some text, or null"):
        compose("probe", ["critic.question=' '"])
    model = make_language_model("full", vocabulary=COLOURS)
    assert QCritic(model).question == ()
    assert compose("probe").critic.question is None
