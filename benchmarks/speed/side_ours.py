"""A side of ``update.py``: one PPO update of this library."""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from sides import serve

from lightning_iterppo.conversation import Conversation, Message, turns_from_messages
from lightning_iterppo.critic import QCritic
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.improvement import RoundDataModule
from lightning_iterppo.machine import release_memory
from lightning_iterppo.models.adaptation import Adaptation, Computing
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.phase import let_go
from lightning_iterppo.policy import PPOPolicy

NEVER = -1  # no token: responses go on to their maximum length, as the other side's do


def conversations(texts: list[str]) -> list[Conversation]:
    """One turn each; its action takes no part."""
    return [
        Conversation(
            id=f"c{number}",
            turns=tuple(turns_from_messages([Message("customer", text), Message("agent", "ok")], 0.0)),
            system="",
            outcome=0.0,
        )
        for number, text in enumerate(texts)
    ]


class Prompts(ChatRenderer):
    """The prompts of the other side, token for token: no chat template around them."""

    def prompt_text(self, system: str | None, history: Any) -> str:
        """The customer's message alone."""
        return str(history[-1].content)


def main() -> None:
    """Loads, and serves updates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("work", type=Path, help="a JSON file that update.py makes")
    parser.add_argument("--adaptation", choices=("lora", "full"), default="lora")
    parser.add_argument("--top-layers", type=int)
    parser.add_argument("--dtype", default="auto", help="of frozen weights; full fine-tuning is in float32")
    parser.add_argument("--precision", default="32-true", help="the Trainer's")
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing")
    parser.add_argument("--plain", action="store_true", help="without the faster ways: for what each of them brings")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    work = json.loads(arguments.work.read_text(encoding="utf-8"))
    torch.manual_seed(work["seed"])
    adaptation = Adaptation(
        kind=arguments.adaptation, rank=work["rank"], alpha=2 * work["rank"], top_layers=arguments.top_layers,
        fold=not arguments.plain,
    )  # fmt: skip
    computing = Computing(checkpointing=arguments.checkpointing)
    model = LanguageModel.load(arguments.model, adaptation, computing=computing, dtype=arguments.dtype)
    policy, critic = PPOPolicy(model, learning_rate=1e-5), QCritic(model)
    renderer = Prompts(model.tokenizer)
    states = conversations(work["prompts"])
    episodes = work["episodes"]
    lengths = {len(renderer.render(c).tree.path(renderer.render(c).states[0])) for c in states}
    if lengths != {work["prompt_tokens"]}:
        raise SystemExit(f"prompts have {lengths} tokens and not {work['prompt_tokens']}")
    micro = work["micro_batch"]

    def score(found: Any) -> list[list[float]]:
        return critic.score([state.tree for state in found], rows=episodes)

    number = 0

    def update() -> dict[str, Any]:
        nonlocal number
        start = number * episodes % len(states)
        number += 1
        stages: list[tuple[str, float]] = []

        def staged(stage: str, _: int) -> None:
            release_memory()  # as the loop does
            stages.append((stage, time.perf_counter()))

        data = RoundDataModule(
            policy,
            states[start : start + episodes],
            score,
            renderer=renderer,
            engine=lambda seed: LocalEngine(model, stop_token_id=NEVER, seed=seed, rows=episodes),
            max_new_tokens=work["response_tokens"],
            samples_per_state=1,
            conversations_per_round=episodes,
            ppo_epochs=work["ppo_epochs"],
            batch_size=micro,
            rows=episodes,
            seed=number,
            on_stage=staged,
        )
        data.round = 1  # not an improvement's first round, which saves the pass of the anchor
        trainer = pl.Trainer(
            accelerator="cpu",
            precision=arguments.precision,
            max_epochs=1,
            accumulate_grad_batches=episodes // micro,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(policy, data)
        let_go(trainer, policy)  # as the loop does
        stages.append(("", time.perf_counter()))
        return {
            "steps": trainer.global_step,
            "generated": data.generated_tokens,
            "trained": policy.trained_tokens,
            "stages": {name: round(stages[i + 1][1] - at, 3) for i, (name, at) in enumerate(stages[:-1])},
        }

    serve(update)


if __name__ == "__main__":
    main()
