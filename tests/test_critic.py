"""QCritic: learns what an action is worth, measures itself honestly, and scores trees in their order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.critic import QCritic
from lightning_iterppo.critic_fit import CriticFit
from lightning_iterppo.data.turns import TurnDataModule
from lightning_iterppo.errors import ConfigError, LogDataError
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.tree import TokenTree, collate_trees
from lightning_iterppo.phase import PhaseTools
from lightning_iterppo.settings import LoopSettings

Make = Callable[..., LanguageModel]
COLOURS = ["red", "blue", "?", "yes", "no"]


def talk(number: int, *, outcome: float | None = None, gamma_turns: int = 2) -> Conversation:
    """Won when the agent's last word is red, whatever was asked."""
    asked, said = COLOURS[number % 2], COLOURS[number // 2 % 2]
    won = float(said == "red") if outcome is None else outcome
    turns = (*(Turn("no", "yes ?") for _ in range(gamma_turns - 1)), Turn(f"{asked} ?", said, reward=won))
    return Conversation(str(number), turns, outcome=won)


def a_trainer(epochs: int, **more: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    )


def made(
    make: Make, kind: str = "full", *, layers: int = 1, **more: Any
) -> tuple[QCritic, ChatRenderer, Callable[..., TurnDataModule]]:
    model = make(kind, vocabulary=COLOURS, hidden=16, layers=layers, rank=8)
    renderer = ChatRenderer(model.tokenizer)
    critic = QCritic(model, **{"learning_rate": 1e-2, "head_learning_rate": 1e-2, "warmup_steps": 2, **more})

    def data(train: list[Conversation], held: list[Conversation], **options: Any) -> TurnDataModule:
        return TurnDataModule(train, held, renderer=renderer, batch_size=16, **options)

    return critic, renderer, data


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_it_learns_what_an_action_is_worth(make_language_model: Make, kind: str) -> None:
    critic, renderer, data = made(make_language_model, kind)
    train, held = [talk(n, gamma_turns=1) for n in range(48)], [talk(n, gamma_turns=1) for n in range(8)]
    a_trainer(14).fit(critic, data(train, held))
    figures = critic.figures
    assert figures["loss"] is not None and figures["loss"] < 0.3 * math.log(2)  # a constant has log 2
    assert figures["brier_constant"] == pytest.approx(0.25)
    assert figures["brier"] is not None and figures["brier"] < 0.1
    assert figures["auroc"] == 1.0
    assert figures["explained_variance"] is not None and figures["explained_variance"] > 0.6
    assert figures["turns"] == 8
    scores = [critic.score([renderer.render(talk(n, gamma_turns=1)).tree])[0][0] for n in range(4)]
    assert min(scores[:2]) > 0.8 and max(scores[2:]) < 0.2


@pytest.mark.parametrize("loss", ["mse", "hl-gauss"])
def test_it_learns_amounts(make_language_model: Make, loss: str) -> None:
    critic, renderer, data = made(make_language_model, loss=loss, low=-5.0, high=30.0)
    train, held = (
        [talk(n, gamma_turns=1, outcome=20.0 if n // 2 % 2 == 0 else -3.0) for n in range(count)] for count in (48, 8)
    )
    a_trainer(30).fit(critic, data(train, held, bounds=critic.objective.bounds))
    scores = [critic.score([renderer.render(talk(n, gamma_turns=1)).tree])[0][0] for n in range(4)]
    assert min(scores[:2]) > 17 and max(scores[2:]) < 0
    figures = critic.figures
    assert figures["explained_variance"] is not None and figures["explained_variance"] > 0.8
    assert figures["auroc"] is None and figures["ece"] is None


def test_returns_that_the_loss_cannot_fit_are_refused(make_language_model: Make) -> None:
    critic, _, data = made(make_language_model, loss="hl-gauss", low=0.0, high=10.0)
    with pytest.raises(LogDataError, match=r"earned 12, but the critic needs returns from 0 to 10"):
        data([talk(0, outcome=12.0)], [], bounds=critic.objective.bounds)
    with pytest.raises(LogDataError, match=r"from 0 to 1: scale the outcomes, or fit amounts with critic\.loss=mse"):
        data([talk(0, outcome=12.0)], [])
    assert len(data([talk(0, outcome=12.0)], [], bounds=None).train_trees) == 1


def test_a_turn_that_counts_nothing_teaches_nothing(make_language_model: Make) -> None:
    critic, _, data = made(make_language_model)
    critic.setup("fit")
    losses = []
    for weights in ({}, {"1": [0.0, 0.0]}, {"0": [0.0, 0.0], "1": [0.0, 0.0]}):
        (batch,) = data([talk(0), talk(1)], [], weights=weights).train_dataloader()
        losses.append(float(critic.training_step(batch, 0)))
    assert losses[0] == pytest.approx(math.log(2))  # the head starts at zero
    assert losses[1:] == pytest.approx([math.log(2) / 2, 0.0])


@pytest.mark.parametrize(("lam", "first"), [(1.0, 1.0), (0.0, 0.25)])
def test_the_next_turns_value_can_stand_for_what_came_of_it(
    make_language_model: Make, lam: float, first: float
) -> None:
    """Every conversation here ends well, but the critic says ¼ of every turn."""
    critic, renderer, _ = made(make_language_model)
    torch.nn.init.constant_(critic.head.linear.bias, math.log(0.25 / 0.75))
    settings = LoopSettings(critic_td_lambda=lam)
    fit = CriticFit(critic, renderer, settings, PhaseTools(None, (), lambda: None))  # type: ignore[arg-type]
    items = TurnDataModule([talk(0, outcome=1.0)], renderer=renderer).train_trees
    (found,) = fit._bootstrapped(items)
    assert found.returns == pytest.approx([first, 1.0])


def test_it_begins_undecided(make_language_model: Make) -> None:
    critic, renderer, _ = made(make_language_model)
    assert critic.score([renderer.render(talk(0)).tree]) == [[0.5, 0.5]]


class Spoiler(Callback):
    """Records what each epoch's critic says, and ruins the weights at the end of the third epoch and of the fourth."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.losses: list[float] = []
        self.said: list[Tensor] = []

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch >= 2:  # after the epoch's last step, so that nothing mends them
            with torch.no_grad():
                for parameter in (p for p in pl_module.parameters() if p.requires_grad):
                    parameter.add_(torch.randn_like(parameter), alpha=2.0)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.losses.append(float(trainer.callback_metrics["critic/loss"]))
            with torch.no_grad():
                self.said.append(pl_module(self.batch.tree).clone())


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_after_a_fit_it_is_the_critic_of_its_best_epoch(make_language_model: Make, kind: str) -> None:
    critic, _renderer, data = made(make_language_model, kind)
    torch.manual_seed(0)
    module = data([talk(n) for n in range(32)], [talk(n) for n in range(8)])
    spoiler = Spoiler(module.collate(module.validation_trees))
    a_trainer(4, callbacks=[spoiler]).fit(critic, module)
    best = min(range(4), key=lambda epoch: spoiler.losses[epoch])
    assert best < 2 and spoiler.losses[3] > spoiler.losses[best] + 0.1  # the spoiler did spoil
    assert critic.figures["loss"] == pytest.approx(spoiler.losses[best], abs=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(critic(spoiler.batch.tree), spoiler.said[best])


def test_held_out_conversations_that_all_ended_alike_choose_no_epoch(make_language_model: Make) -> None:
    """That with the least loss would be the one that says 1 to everything, whatever it has learnt of failures."""
    critic, _, data = made(make_language_model)
    torch.manual_seed(1)
    known = [talk(n) for n in range(32)]
    module = data(known, [one for one in known if one.outcome == 1.0][:8])
    spoiler = Spoiler(module.collate(module.validation_trees))
    a_trainer(4, callbacks=[spoiler]).fit(critic, module)
    assert min(spoiler.losses) < spoiler.losses[3]
    assert critic.figures["auroc"] is None and critic.figures["loss"] == pytest.approx(spoiler.losses[3], abs=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(critic(spoiler.batch.tree), spoiler.said[3])


def test_a_second_fit_begins_its_own_count(make_language_model: Make) -> None:
    critic, _, data = made(make_language_model)
    known = [talk(n) for n in range(16)]
    a_trainer(3).fit(critic, data(known, known[:8]))
    first = critic.figures["loss"]
    # The rule is reversed: every epoch of this fit is worse than the first fit's best one.
    reversed_rule = [talk(n, outcome=1.0 - (talk(n).outcome or 0.0)) for n in range(16)]
    critic.learning_rate = critic.head_learning_rate = 1e-5
    a_trainer(1).fit(critic, data(reversed_rule, reversed_rule[:8]))
    assert critic.figures["loss"] is not None and first is not None and critic.figures["loss"] > first
    a_trainer(1).fit(critic, data(known, []))
    assert critic.figures == {}  # nothing was held out, so nothing is known


def test_unknown_outcomes_are_neither_learnt_nor_measured(make_language_model: Make) -> None:
    critic, _, data = made(make_language_model)
    censored = [Conversation("c", (Turn("red ?", "red"), Turn("blue ?", "red")))] * 5
    module = data([talk(n) for n in range(8)] + censored, [talk(n) for n in range(4)] + censored)
    a_trainer(1).fit(critic, module)
    assert critic.figures["turns"] == 8
    assert len(module.train_trees) == 8


@pytest.mark.parametrize(("outcome", "gamma"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.5)])
def test_with_one_outcome_only_there_is_nothing_to_rank(
    make_language_model: Make, outcome: float, gamma: float
) -> None:
    critic, _, data = made(make_language_model)
    same = [talk(n, outcome=outcome) for n in range(8)]
    a_trainer(1).fit(critic, data(same, same[:4], gamma=gamma))
    assert critic.figures["auroc"] is None
    assert critic.figures["brier"] is not None
    # Discounted, the returns differ from turn to turn, so there is something to explain.
    assert (critic.figures["explained_variance"] is None) == (gamma == 1.0)
    assert critic.figures["brier_constant"] == pytest.approx(0.0 if gamma == 1.0 else 0.0625, abs=1e-6)


def test_the_head_alone_is_solved_for_on_the_trunk_as_it_is(make_language_model: Make) -> None:
    critic, _, data = made(make_language_model)
    before = {key: tensor.clone() for key, tensor in critic.model.variant_tensors("critic").items()}
    module = data([talk(n) for n in range(32)], [talk(n) for n in range(8)])
    features = critic.features(module.train_dataloader())
    assert features.values.shape == (64, 16) and features.returns.shape == (64,)
    critic.fit_head(features, prior=0.1)
    a_trainer(1).validate(critic, datamodule=module, verbose=False)
    # The last turn's action decides, and the turn before says nothing about it.
    assert critic.figures["brier"] is not None and critic.figures["brier"] < 0.16
    assert critic.figures["brier_constant"] == pytest.approx(0.25)
    after = critic.model.variant_tensors("critic")
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert critic.model.active == "critic"


def test_the_head_is_scaled_to_how_often_the_newest_conversations_go_well(make_language_model: Make) -> None:
    critic, renderer, data = made(make_language_model)
    past = critic.features(data([talk(n) for n in range(32)], []).train_dataloader())
    rare = [talk(n, outcome=float(n == 0)) for n in range(10)]  # as good, but rarely with success
    newest = critic.features(data(rare, []).train_dataloader())
    critic.fit_head(newest, past, prior=3.0)
    scores = [value for each in critic.score([renderer.render(item).tree for item in rare]) for value in each]
    assert sum(scores) / len(scores) == pytest.approx(0.1, abs=0.02)
    # The ranking is that of all conversations: red is still better than what is not red.
    values = critic.score([renderer.render(talk(n, gamma_turns=1)).tree for n in range(4)])
    assert min(values[:2]) > max(values[2:])


def test_a_layer_or_pooling_that_is_not_there(make_language_model: Make) -> None:
    with pytest.raises(ValueError, match=r"pooling must be one of last, mean, found 'max'"):
        made(make_language_model, pooling="max")
    with pytest.raises(ConfigError, match=r"critic\.layer is 3, but the model has 2 layers"):
        made(make_language_model, layers=2, layer=3)


def test_what_frozen_layers_made_is_kept_whichever_layer_is_read(make_language_model: Make) -> None:
    """Layers that are kept are those below the adapters, and a critic may stop below, at or above them."""
    found = {}
    for keep in (True, False):
        for layer in (1, 2, 3):
            model = make_language_model("lora", vocabulary=COLOURS, layers=3, top_layers=1, keep_features=keep)
            critic, tree = QCritic(model, layer=layer), ChatRenderer(model.tokenizer).render(talk(0)).tree
            torch.nn.init.constant_(critic.head.linear.weight[:, ::2], 0.1)
            found[keep, layer] = [critic.score([tree]), critic.score([tree])]
    assert all(found[True, layer] == found[False, layer] for layer in (1, 2, 3))
    assert len({str(found[True, layer][0]) for layer in (1, 2, 3)}) == 3


READINGS = pytest.mark.parametrize(("pooling", "layer"), [("last", None), ("mean", None), ("last", 1), ("mean", 2)])


@READINGS
def test_features_are_what_the_head_sees(
    pooling: str, layer: int | None, make_language_model: Make, stir: Callable[..., None]
) -> None:
    critic, _, data = made(make_language_model, layers=2, pooling=pooling, layer=layer)
    critic.model.copy("policy", "critic")
    stir(critic.model, "critic")
    torch.nn.init.normal_(critic.head.linear.weight)
    module = data([talk(n) for n in range(6)], [])
    batch = module.collate(module.train_trees)
    features = critic.features([batch], states=True)
    assert critic.model.active == "policy"
    assert torch.equal(features.returns, batch.returns)
    with torch.no_grad(), critic.model.using("critic"):
        torch.testing.assert_close(critic.head.linear(features.values)[:, 0], critic(batch.tree))
        hidden = critic.model.hidden(batch.tree, layers=layer)
        positions = batch.tree.predict_positions[:, 0]
        for row, position, seen in zip(batch.tree.action_rows, positions, features.states, strict=True):
            before = hidden[row, position] if pooling == "last" else hidden[row, : position + 1].mean(0)
            torch.testing.assert_close(critic.head.norm(before), seen)
    with pytest.raises(ValueError, match=r"ask features\(…, states=True\)"):
        critic.fit_states(critic.features([batch]))


def two_trees(renderer: ChatRenderer) -> list[TokenTree]:
    long, short = renderer.render(talk(0, gamma_turns=4)), renderer.render(talk(1, gamma_turns=1))
    grown = long.tree.copy()
    for state in (long.states[0], long.states[3]):
        for word in ("red", "blue"):
            grown.add(renderer.response_ids(word), state, action=True)
    return [grown, short.tree, long.tree]


@READINGS
def test_scores_are_the_forward_pass_in_the_order_of_the_responses(
    pooling: str, layer: int | None, make_language_model: Make, stir: Callable[..., None]
) -> None:
    critic, renderer, _ = made(make_language_model, layers=2, pooling=pooling, layer=layer)
    critic.model.copy("policy", "critic")
    stir(critic.model, "critic", scale=0.3)
    torch.nn.init.normal_(critic.head.linear.weight)
    trees = two_trees(renderer)
    passes: list[tuple[int, int]] = []
    scores = critic.score(trees, rows=2, on_batch=lambda count, tokens: passes.append((count, tokens)))
    assert [len(values) for values in scores] == [8, 1, 4]
    assert [sum(each) for each in zip(*passes, strict=True)] == [len(trees), sum(map(len, trees))]
    assert critic.model.active == "policy"
    with torch.no_grad(), critic.model.using("critic"):
        for tree, values in zip(trees, scores, strict=True):
            alone = torch.sigmoid(critic(collate_trees([tree], 0))).tolist()
            assert values == pytest.approx(alone, abs=1e-5)
            # Each response is scored at its own last token, as if its path stood alone.
            for action, value in zip(tree.actions, values, strict=True):
                output = critic.model.trunk(input_ids=torch.tensor([tree.path(action)]), output_hidden_states=True)
                hidden = output.last_hidden_state[0] if layer is None else output.hidden_states[layer][0]
                seen = hidden[-1] if pooling == "last" else hidden.mean(0)
                assert value == pytest.approx(float(torch.sigmoid(critic.head(seen))), abs=1e-5)
    assert scores[0][:4] == pytest.approx(scores[2], abs=1e-5)  # branches change nothing for the trunk
    assert len({round(value, 5) for value in scores[0]}) > 4
    assert critic.score(trees, rows=8) == [pytest.approx(values, abs=1e-5) for values in scores]


def test_scoring_leaves_the_mode_as_it_was(make_language_model: Make) -> None:
    critic, renderer, _ = made(make_language_model)
    for training in (True, False):
        critic.train(training)
        critic.score([renderer.render(talk(0)).tree])
        assert critic.training is training


def test_a_message_is_worth_what_it_changed(make_loop: Callable[..., IterativePPOLoop]) -> None:
    """V before a message and Q after it: they differ where the agent decides, and not where the customer has."""
    logs = []
    for n in range(80):
        asked, said = ("red ?", "blue ?", "?")[n % 3], ("yes", "no")[n // 3 % 2]
        won = {"red ?": 1.0, "blue ?": 0.0, "?": float(said == "yes")}[asked]
        logs.append(Conversation(f"c{n}", (Turn(asked, said, reward=won),), outcome=won))
    loop = make_loop("full", settings={"critic_epochs": 12, "critic_head_prior": 0.1, "critic_head_trust": 1.0})
    loop.critic.learning_rate = 1e-2
    loop.fit_critic_only(logs, logs)
    trees = [loop.renderer.render(log).tree for log in logs[:6]]
    scores = loop.critic.score_states(trees)
    found = {(log.turns[0].customer, log.turns[0].message): s[0] for log, s in zip(logs, scores, strict=False)}
    changed = {key: q - v for key, (q, v) in found.items() if v is not None}
    assert len(changed) == 6
    for said in ("yes", "no"):
        assert abs(changed["red ?", said]) < 0.2 and abs(changed["blue ?", said]) < 0.2
    assert changed["?", "yes"] > 0.25 and changed["?", "no"] < -0.25
    values = {key: v for key, (_, v) in found.items() if v is not None}
    assert values["red ?", "no"] > 0.7 and values["blue ?", "yes"] < 0.3
