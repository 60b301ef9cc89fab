"""bfloat16: in frozen weights, in training, in both; what trains stays float32, and PPO's ratio begins at 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.micro_batches import MicroBatches
from lightning_iterppo.models.adaptation import Computing
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.tree import ROOT, TokenTree, collate_trees
from lightning_iterppo.models.window import Window
from lightning_iterppo.policy import PPOPolicy

Make = Callable[..., LanguageModel]
MakeLoop = Callable[..., IterativePPOLoop]
Stir = Callable[..., None]
LOGS = [Conversation(f"log-{n}", (Turn("red ?", "red", reward=n % 2),), outcome=n % 2) for n in range(8)]


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_in_every_precision(make_loop: MakeLoop, kind: str, precision: str, dtype: torch.dtype) -> None:
    loop = make_loop(
        kind,
        layers=2,
        top_layers=1 if kind == "lora" else None,
        computing=Computing(checkpointing=True),
        dtype=dtype,
        precision=precision,
        settings={"iterations": 1, "warm_start_epochs": 1},
        logs=LOGS,
    )
    loop.policy.micro_batches = MicroBatches(3)
    before = {key: tensor.clone() for key, tensor in loop.language_model.variant_tensors("policy").items()}
    summary = loop.run()
    figures = summary.iterations[0].policy
    for name in ("kl_old", "entropy", "reward_mean", "clip_fraction"):
        assert figures[name] is not None and math.isfinite(figures[name])
    after = loop.language_model.variant_tensors("policy")
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert any(not torch.equal(tensor, before[key]) for key, tensor in after.items())
    assert loop.language_model.head_weight.dtype == (dtype if kind == "lora" else torch.float32)


class FirstStep(Callback):
    """The policy's log-probabilities in its first step, against those that the round was prepared with."""

    difference: float | None = None

    def on_before_zero_grad(self, trainer: Trainer, module: LightningModule, optimizer: object) -> None:
        if isinstance(module, PPOPolicy) and self.difference is None:
            self.difference = abs(float(trainer.callback_metrics["policy/kl_token"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ratio_begins_at_one(make_loop: MakeLoop, dtype: torch.dtype) -> None:
    watcher = FirstStep()
    numbers = {"iterations": 1, "rounds": 1, "policy_batch": 64}
    loop = make_loop("lora", dtype=dtype, precision="bf16-mixed", settings=numbers, callbacks=[watcher])
    loop.run()
    assert watcher.difference is not None
    assert watcher.difference < 1e-7  # without the training's precision while sampling and preparing it is 1e-4


@pytest.mark.parametrize("mixed", [True, False])
def test_gradients_point_where_those_in_float32_do(make_language_model: Make, stir: Stir, mixed: bool) -> None:
    found = []
    for half in (False, True):
        dtype = torch.bfloat16 if half and not mixed else torch.float32
        model = make_language_model("lora", layers=3, top_layers=2, dtype=dtype)
        stir(model, "policy", scale=0.03)
        tree = TokenTree()
        tree.add([9, 10, 1], tree.add([3, 6, 7, 8], ROOT), action=True)
        tree.add([11, 12, 1], 0, action=True)
        batch = collate_trees([tree], pad_token_id=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half and mixed):
            logprobs, _, _ = model.response_logprobs(model.hidden(batch), batch)
        gradients = torch.autograd.grad(logprobs.sum(), model.trainable_parameters())
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        found.append(torch.cat([gradient.flatten() for gradient in gradients]))
        assert logprobs.dtype == torch.float32
    assert float(torch.cosine_similarity(found[0], found[1], dim=0)) > 0.99


def test_q_is_scored_in_the_precision_of_the_trainer(make_loop: MakeLoop) -> None:
    """Else what a fit's held-out figures say of Q does not hold for the Q that rewards are made of."""
    loop = make_loop("full", layers=2, precision="bf16-mixed")
    torch.nn.init.normal_(loop.critic.head.linear.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    trees = [loop.renderer.render(log).tree for log in LOGS[:1]]
    batch = collate_trees(trees, loop.language_model.pad_token_id)
    with torch.no_grad(), loop.language_model.using("critic"), torch.autocast("cpu", torch.bfloat16):
        inside = loop.critic(batch).sigmoid().squeeze().item()
    loop.language_model.precision = nullcontext
    (outside,) = loop.critic.score(trees)[0]
    assert abs(outside - inside) > 1e-5, "the precision makes no difference here: the test would say nothing"
    loop.language_model.precision = make_loop("full", precision="bf16-mixed").language_model.precision
    assert loop.critic.score(trees)[0] == pytest.approx([inside], abs=1e-7)


def test_a_cut_history_is_in_the_figures(make_loop: MakeLoop) -> None:
    loop = make_loop("lora", settings={"critic_epochs": 0})
    loop.renderer.window = Window(16, 1)
    long = Conversation("long", tuple(Turn("red ?", "red", reward=0) for _ in range(6)), outcome=0)
    assert loop.fit_critic_only([*LOGS, long], None)["histories_cut"] == pytest.approx(4 / 14, abs=0.15)
