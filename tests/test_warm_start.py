"""WarmStart: the policy learns to speak like the logs, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.data.turns import TurnDataModule
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.warm_start import WarmStart


def a_trainer(epochs: int) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def logs(suggestion: Suggestion | None = None) -> list[Conversation]:
    """The agent repeats the customer's colour."""
    made = []
    for number in range(16):
        colour = ("red", "blue")[number % 2]
        disposition = "unassisted" if suggestion is None else "rejected"
        turn = Turn(f"{colour} ?", f"yes {colour}", suggestion, disposition)  # type: ignore[arg-type]
        made.append(Conversation(str(number), (turn,), outcome=0.0))
    return made


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_it_lowers_the_loss_and_then_says_what_the_logs_say(
    make_language_model: Callable[..., LanguageModel], kind: str
) -> None:
    model = make_language_model(kind, hidden=16, rank=8)
    renderer = ChatRenderer(model.tokenizer)
    rate = 1e-2 if kind == "full" else 2e-2
    module = WarmStart(model, learning_rate=rate, warmup_steps=2)
    data = TurnDataModule(logs(), logs()[:4], renderer=renderer, batch_size=8)
    before = {key: tensor.clone() for key, tensor in model.variant_tensors("critic").items()}
    model.copy("policy", "critic")
    trainer = a_trainer(epochs=25)
    trainer.validate(module, datamodule=data, verbose=False)
    first = float(trainer.callback_metrics["warm_start/held_out_loss"])
    trainer.fit(module, datamodule=data)
    last = float(trainer.callback_metrics["warm_start/held_out_loss"])
    assert last < 0.3 * first
    after = model.variant_tensors("critic")
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    engine = LocalEngine(model, stop_token_id=renderer.stop_token_id, seed=0)
    prompts = [renderer.encode(renderer.prompt_text(None, talk.messages[:1])) for talk in logs()[:2]]
    said = [renderer.decode(r.token_ids) for r in engine.generate(prompts, Sampling(temperature=0.0))]
    assert said == ["yes red", "yes blue"]


def test_the_loss_is_the_mean_over_the_agents_tokens(make_language_model: Callable[..., LanguageModel]) -> None:
    model = make_language_model()
    renderer = ChatRenderer(model.tokenizer)
    data = TurnDataModule(logs(), renderer=renderer, batch_size=2)
    batch = data.collate(data.train_trees[:2])
    total, count = 0.0, 0
    with torch.no_grad():
        for talk in logs()[:2]:
            prompt = renderer.encode(renderer.prompt_text(None, talk.messages[:1]))
            ids = [*prompt, *renderer.response_ids(talk.turns[0].message)]
            table = model.causal_lm(torch.tensor([ids])).logits[0].log_softmax(-1)
            for place in range(len(prompt), len(ids)):
                total -= float(table[place - 1, ids[place]])
                count += 1
        loss = float(WarmStart(model).loss(batch))
    assert count == 6  # two words and the end token, twice
    assert loss == pytest.approx(total / count, abs=1e-5)
