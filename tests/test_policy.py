"""PPOPolicy: the right gradient, the right distributions in the ratio, and a policy that does what is rewarded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_iterppo.conversation import Conversation, Message, Turn
from lightning_iterppo.data.samples import PolicyBatch, PreparedTree, ScoredTree, collate_samples
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.improvement import RoundDataModule, score_each
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.tree import ROOT, TokenTree
from lightning_iterppo.policy import PPOPolicy

Make = Callable[..., LanguageModel]
Stir = Callable[..., None]
KINDS = pytest.mark.parametrize("kind", ["full", "lora"])
COLOURS = ["red", "blue", "?", "yes", "no"]
# A training step outside a Trainer has nowhere to log to.
pytestmark = pytest.mark.filterwarnings("ignore:.*self.trainer.*is not registered.*")


def scored_trees(fresh: bool = True) -> list[ScoredTree]:
    """Two rows; the longer one comes first, so that sorting by length has something to do."""
    long, short = TokenTree(), TokenTree()
    state = long.add([3, 6, 7, 8, 4], ROOT)
    sent = long.add([9, 10, 1], state, action=True)
    long.add([6], state, action=True)
    long.add([7, 8, 9, 10, 1], long.add([3, 9, 4], sent), action=True)
    state = short.add([3, 10, 4], ROOT)
    short.add([8, 1], state, action=True)
    short.add([9, 9, 1], state, action=True)
    return [
        ScoredTree(long, [0.9, 0.1, 0.4], [0.5, 0.2, 0.0], [fresh, True, fresh]),
        ScoredTree(short, [0.0, 1.0], [0.25, 0.25], [True, fresh]),
    ]


def bare(model: LanguageModel, **more: Any) -> PPOPolicy:
    """PPO with nothing but the policy loss."""
    plain = {"gae_lambda": 1.0, "whiten": False, "kl_coefficient": 0.0, "value_coefficient": 0.0}
    return PPOPolicy(model, **{**plain, **more})


def tiny(make: Make, kind: str = "full", **more: Any) -> LanguageModel:
    return make(kind, vocabulary=COLOURS, hidden=16, **{"layers": 1, **more})


def plain_logprobs(model: LanguageModel, tree: TokenTree, action: int) -> Tensor:
    """Log-probabilities of one response in a row of its own."""
    path, tokens = tree.path(action), tree.segments[action].token_ids
    table = model.causal_lm(torch.tensor([path])).logits[0].log_softmax(-1)
    return table[len(path) - len(tokens) - 1 : -1].gather(-1, torch.tensor(tokens)[:, None]).squeeze(-1)


def responses(items: Sequence[ScoredTree]) -> list[tuple[ScoredTree, int, int]]:
    """Every response of some trees: the tree, its number among the tree's responses, its segment."""
    return [(item, number, segment) for item in items for number, segment in enumerate(item.tree.actions)]


def flat(prepared: Sequence[PreparedTree], name: str, items: Sequence[ScoredTree]) -> list[Tensor]:
    """A quantity of every response in the order of `responses`."""
    by_tree = {id(each.tree): getattr(each, name) for each in prepared}
    return [by_tree[id(item.tree)][number] for item, number, _ in responses(items)]


def step(policy: PPOPolicy, batch: PolicyBatch) -> Tensor:
    policy.setup("fit")
    return policy.training_step(batch, 0)


# -- the loss --------------------------------------------------------------------------------------------------------


@KINDS
def test_the_first_pass_has_ratio_one(make_language_model: Make, stir: Stir, kind: str) -> None:
    model = tiny(make_language_model, kind)
    stir(model, "policy")
    policy = bare(model, whiten=True)
    prepared = policy.prepare(scored_trees(), rows=1, at_anchor=True)
    batch = collate_samples(prepared, 0)
    mask = batch.tree.action_mask
    advantages = batch.advantages[mask]
    assert float(step(policy, batch).detach()) == pytest.approx(-float(advantages.mean()), abs=1e-6)
    assert policy._clipped == [0.0]


@KINDS
def test_the_first_gradient_is_reinforce_of_whole_responses(make_language_model: Make, stir: Stir, kind: str) -> None:
    """-Σ (R - b) ∇ log π(response | state), over the number of tokens; computed row by row without the library."""
    model = tiny(make_language_model, kind)
    stir(model, "policy")
    policy = bare(model)
    items = scored_trees()
    loss = step(policy, collate_samples(policy.prepare(items, at_anchor=True), 0))
    found = torch.autograd.grad(loss, model.trainable_parameters())
    objective, tokens = torch.zeros(()), 0
    for item, number, segment in responses(items):
        logprobs = plain_logprobs(model, item.tree, segment)
        objective = objective + (item.rewards[number] - item.baselines[number]) * logprobs.sum()
        tokens += len(logprobs)
    expected = torch.autograd.grad(-objective / tokens, model.trainable_parameters())
    assert max(float(gradient.abs().max()) for gradient in expected) > 0.01
    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["kl_coefficient", "kl_reference_coefficient", "entropy_coefficient"])
def test_each_coefficient_adds_its_mean_over_the_tokens(make_language_model: Make, stir: Stir, name: str) -> None:
    model = tiny(make_language_model)
    model.copy("policy", "anchor")
    stir(model, "policy", scale=0.3)
    model.copy("policy", "reference")
    stir(model, "reference", scale=0.2, seed=5)
    items, losses = scored_trees(), []
    for weight in (0.0, 0.7):
        policy = bare(model, **{name: weight})
        losses.append(float(step(policy, collate_samples(policy.prepare(items), 0)).detach()))
    total, tokens = 0.0, 0
    with torch.no_grad():
        for item, _, segment in responses(items):
            own = plain_logprobs(model, item.tree, segment)
            tokens += len(own)
            if name == "entropy_coefficient":
                path = item.tree.path(segment)
                table = model.causal_lm(torch.tensor([path])).logits[0].log_softmax(-1)[-len(own) - 1 : -1]
                total -= float(-(table.exp() * table).sum())  # a bonus lowers the loss
                continue
            with model.using("anchor" if name == "kl_coefficient" else "reference"):
                ratio = plain_logprobs(model, item.tree, segment) - own
            total += float((0.5 * ratio**2).sum())  # k2, whose gradient is that of the KL
    assert losses[1] - losses[0] == pytest.approx(0.7 * total / tokens, abs=1e-5)
    assert abs(total / tokens) > 0.01


# -- a round's samples -----------------------------------------------------------------------------------------------


def test_each_response_gets_its_own_reward_less_its_baseline(make_language_model: Make) -> None:
    policy, items = bare(tiny(make_language_model)), scored_trees()
    advantages = flat(policy.prepare(items, rows=1, at_anchor=True), "advantages", items)
    for (item, number, segment), found in zip(responses(items), advantages, strict=True):
        worth = item.rewards[number] - item.baselines[number]
        assert found.tolist() == pytest.approx([worth] * len(item.tree.segments[segment].token_ids), abs=1e-6)


@pytest.mark.parametrize("rows", [1, 8])
def test_fresh_responses_are_the_policys_and_logged_ones_the_anchors(
    make_language_model: Make, stir: Stir, rows: int
) -> None:
    model = tiny(make_language_model)
    model.copy("policy", "anchor")
    stir(model, "policy", scale=0.3)
    policy, items = bare(model), scored_trees(fresh=False)
    prepared = policy.prepare(items, rows=rows)
    assert model.active == "policy"
    olds, anchors = flat(prepared, "old_logprobs", items), flat(prepared, "anchor_logprobs", items)
    with torch.no_grad():
        for (item, number, segment), old, anchor in zip(responses(items), olds, anchors, strict=True):
            own = plain_logprobs(model, item.tree, segment)
            with model.using("anchor"):
                before = plain_logprobs(model, item.tree, segment)
            assert not torch.allclose(own, before, atol=1e-3)
            torch.testing.assert_close(anchor, before, atol=1e-5, rtol=0)
            torch.testing.assert_close(old, own if item.fresh[number] else before, atol=1e-5, rtol=0)


def test_a_logged_action_may_be_moved_by_every_round(make_language_model: Make, stir: Stir) -> None:
    model = tiny(make_language_model)
    model.copy("policy", "anchor")
    stir(model, "policy", scale=0.3)
    policy, items = bare(model, logged_ratio="round"), scored_trees(fresh=False)
    items[0].rewards[2] = -0.4  # a logged action worse than its baseline, beside one that was better
    items[0].log_ratios = [-0.7, 0.0, -0.7]  # both taken by another policy, and less likely under π_k
    prepared = policy.prepare(items)
    weights = []
    for (item, number, segment), old, anchor, found in zip(
        responses(items),
        *(flat(prepared, name, items) for name in ("old_logprobs", "anchor_logprobs", "advantages")),
        strict=True,
    ):
        with torch.no_grad():
            own = plain_logprobs(model, item.tree, segment)
        torch.testing.assert_close(old, own, atol=1e-5, rtol=0)
        worth, weight = item.rewards[number] - item.baselines[number], 1.0
        if not item.fresh[number] and worth < 0:
            ratio = float((own - anchor).sum()) + (item.log_ratios[number] if item.log_ratios else 0.0)
            weight = min(1.0, math.exp(ratio))
            weights.append(weight)
        assert found.tolist() == pytest.approx([weight * worth] * len(found), abs=1e-4)
    assert 0 < min(weights) < 0.9


def test_fresh_responses_may_count_less_than_logged_actions(make_language_model: Make) -> None:
    policy, items = bare(tiny(make_language_model), fresh_weight=0.25), scored_trees(fresh=False)
    advantages = flat(policy.prepare(items, at_anchor=True), "advantages", items)
    for (item, number, _), found in zip(responses(items), advantages, strict=True):
        worth = (0.25 if item.fresh[number] else 1.0) * (item.rewards[number] - item.baselines[number])
        assert found.tolist() == pytest.approx([worth] * len(found), abs=1e-6)
    # What is reported is the reward itself.
    assert policy.figures["reward_mean"] == pytest.approx((0.1 + 0.0) / 2, abs=1e-6)


def test_a_round_is_measured_on_its_fresh_responses(make_language_model: Make, stir: Stir) -> None:
    model = tiny(make_language_model)
    model.copy("policy", "anchor")
    stir(model, "policy", scale=0.3)
    policy, items = bare(model), scored_trees(fresh=False)
    policy.prepare(items)
    kl, entropy, tokens, rewards, count = 0.0, 0.0, 0, 0.0, 0
    with torch.no_grad():
        for item, number, segment in responses(items):
            if not item.fresh[number]:
                continue
            own = plain_logprobs(model, item.tree, segment)
            with model.using("anchor"):
                ratio = plain_logprobs(model, item.tree, segment) - own
            kl += float((ratio.exp() - 1 - ratio).sum())
            table = model.causal_lm(torch.tensor([item.tree.path(segment)])).logits[0].log_softmax(-1)
            entropy -= float((table.exp() * table)[-len(own) - 1 : -1].sum())
            tokens, rewards, count = tokens + len(own), rewards + item.rewards[number], count + 1
    assert count == 2
    assert policy.figures["kl_old"] == pytest.approx(kl / count, abs=1e-5)
    assert policy.figures["entropy"] == pytest.approx(entropy / tokens, abs=1e-5)
    assert policy.figures["reward_mean"] == pytest.approx(rewards / count)
    assert policy.figures["kl_reference"] is None  # it was not asked for


def test_advantages_are_whitened_over_the_round(make_language_model: Make) -> None:
    items = scored_trees()
    model = tiny(make_language_model)
    raw = torch.cat(flat(bare(model).prepare(items, at_anchor=True), "advantages", items))
    white = torch.cat(flat(bare(model, whiten=True).prepare(items, rows=1, at_anchor=True), "advantages", items))
    expected = (raw - raw.mean()) / raw.std(unbiased=False)
    torch.testing.assert_close(white, expected, atol=1e-5, rtol=0)


def test_differences_that_are_noise_are_not_scaled_up(make_language_model: Make) -> None:
    model = tiny(make_language_model)
    items = scored_trees()
    for item in items:
        item.rewards, item.baselines = [1.0 + 1e-4 * i for i in range(len(item.rewards))], [1.0] * len(item.rewards)
    white = torch.cat(flat(bare(model, whiten=True).prepare(items, rows=1, at_anchor=True), "advantages", items))
    assert white.abs().max() < 1e-2


def test_the_value_head_takes_part_in_the_advantages(make_language_model: Make) -> None:
    policy, items = bare(tiny(make_language_model), gae_lambda=0.0), scored_trees()
    torch.nn.init.normal_(policy.value_head.linear.weight)
    prepared = policy.prepare(items, at_anchor=True)
    values, advantages = flat(prepared, "old_values", items), flat(prepared, "advantages", items)
    for (item, number, _), value, found in zip(responses(items), values, advantages, strict=True):
        worth = torch.tensor([item.rewards[number] - item.baselines[number]])
        torch.testing.assert_close(found, torch.cat([value[1:], worth]) - value)
        assert value.abs().max() > 0.01


def test_a_round_without_states(make_language_model: Make) -> None:
    with pytest.raises(ValueError, match="at least one state"):
        bare(tiny(make_language_model)).prepare([])


@pytest.mark.parametrize("wrong", [{"clip": 0.0}, {"value_clip": -1.0}, {"learning_rate": 0.0}, {"gae_lambda": 1.5}])
def test_coefficients_out_of_range(make_language_model: Make, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PPOPolicy(tiny(make_language_model), **wrong)


# -- a whole improvement with a plain Trainer ------------------------------------------------------------------------


class Watcher(Callback):
    """What the anchor was, and how many rounds began."""

    def __init__(self) -> None:
        self.anchor: dict[str, Tensor] = {}
        self.rounds = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: PPOPolicy) -> None:
        self.rounds += 1

    def on_train_end(self, trainer: Trainer, pl_module: PPOPolicy) -> None:
        self.anchor = {key: value.clone() for key, value in pl_module.model.variant_tensors("anchor").items()}


def says_yes(history: list[Message], response: str) -> float:
    return float("yes" in response.split())


def improve(policy: PPOPolicy, rounds: int, reward: Any = says_yes, **more: Any) -> tuple[Trainer, Watcher]:
    """A few rounds of responses of three words at most, sampled for one of two questions."""
    model = policy.model
    renderer = ChatRenderer(model.tokenizer)
    conversations = [Conversation(str(n), (Turn(f"{COLOURS[n % 2]} ?", "no"),), outcome=0.0) for n in range(8)]
    data = RoundDataModule(
        policy,
        conversations,
        score_each(reward),
        engine=lambda seed: LocalEngine(model, stop_token_id=renderer.stop_token_id, seed=seed),
        renderer=renderer,
        **{"max_new_tokens": 3, "samples_per_state": 4, **more},
    )
    watcher = Watcher()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=rounds,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        callbacks=[watcher],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(policy, datamodule=data)
    return trainer, watcher


@torch.no_grad()
def chance_of_yes(model: LanguageModel) -> float:
    """The probability that a response has the word, by enumeration of its three places."""
    renderer = ChatRenderer(model.tokenizer)
    (yes,), stop = renderer.encode("yes"), renderer.stop_token_id
    prompt = renderer.encode("<customer> red ? <end> <agent>")
    paths, chance = [(prompt, 1.0)], 0.0
    for _ in range(3):
        following = []
        table = model.causal_lm(torch.tensor([path for path, _ in paths])).logits[:, -1].softmax(-1)
        for (path, weight), row in zip(paths, table.tolist(), strict=True):
            chance += weight * row[yes]
            following += [([*path, t], weight * p) for t, p in enumerate(row) if t not in (yes, stop)]
        paths = following
    return chance


@KINDS
def test_what_is_rewarded_becomes_likely(make_language_model: Make, kind: str) -> None:
    model = tiny(make_language_model, kind, rank=8)
    before = {variant: {k: v.clone() for k, v in model.variant_tensors(variant).items()} for variant in ("critic",)}
    model.copy("policy", "critic")
    first = chance_of_yes(model)
    policy = PPOPolicy(model, learning_rate=1e-2 if kind == "full" else 3e-2, warmup_steps=1)
    improve(policy, rounds=8)
    assert first < 0.4
    assert chance_of_yes(model) > 0.8
    assert policy.figures["reward_gain"] is not None and policy.figures["reward_gain"] > 0.3
    assert policy.figures["clip_fraction"] is not None and 0 <= policy.figures["clip_fraction"] < 1
    assert all(torch.equal(model.variant_tensors("critic")[k], v) for k, v in before["critic"].items())


@KINDS
def test_the_anchor_is_the_policy_at_the_start_of_the_fit(make_language_model: Make, stir: Stir, kind: str) -> None:
    model = tiny(make_language_model, kind)
    policy = PPOPolicy(model, learning_rate=1e-2, warmup_steps=0)
    for seed in (1, 2):  # a second improvement starts from where the first one ended, moved some more
        stir(model, "policy", seed=seed)
        start = {key: value.clone() for key, value in model.variant_tensors("policy").items()}
        _, watcher = improve(policy, rounds=3, ppo_epochs=1, reward=lambda history, response: len(response))
        assert all(torch.equal(watcher.anchor[key], value) for key, value in start.items())
        assert any(not torch.equal(model.variant_tensors("policy")[key], value) for key, value in start.items())
        kl = policy.figures["kl_old"]
        assert kl is not None and kl > 0


def test_an_improvement_stops_when_it_went_too_far(make_language_model: Make) -> None:
    weights = []
    for rounds, stop in ((1, None), (5, 1e-9), (5, 1e9)):
        model = tiny(make_language_model)
        policy = PPOPolicy(model, learning_rate=1e-2, kl_stop=stop)
        trainer, watcher = improve(policy, rounds=rounds, batch_size=4, ppo_epochs=2, seed=1)
        weights.append(model.variant_tensors("policy"))
        assert policy.stopped_on_kl is (stop == 1e-9)
        # The round in which it is noticed is not trained on.
        assert watcher.rounds == {None: 1, 1e-9: 2, 1e9: 5}[stop]
        assert trainer.global_step == {None: 4, 1e-9: 4, 1e9: 20}[stop]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[0])
    assert math.isfinite(policy.figures["kl_old"] or 0.0)


def test_a_stopped_improvement_does_not_stop_the_next(make_language_model: Make) -> None:
    policy = PPOPolicy(tiny(make_language_model), learning_rate=1e-2, kl_stop=1e-9)
    for _ in range(2):
        trainer, _ = improve(policy, rounds=3, seed=1)
        assert trainer.global_step == 2
