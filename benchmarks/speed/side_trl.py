"""A side of ``update.py``: one update of TRL's PPO (``trl.experimental.ppo``) 1.12.0, in an environment of its own."""

from __future__ import annotations

import argparse
import json
import queue
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from sides import serve
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Gate(TrainerCallback):
    """Lets the trainer's own loop make one update for each that is asked for."""

    def __init__(self) -> None:
        self.asked: queue.Queue[bool] = queue.Queue()
        self.done: queue.Queue[bool] = queue.Queue()
        self.first = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An update is over."""
        self.done.put(True)
        self.asked.get()

    def once(self) -> dict[str, Any]:
        """One update."""
        self.asked.put(True)
        self.done.get()
        return {}


def main() -> None:
    """Loads, and serves updates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("work", type=Path, help="a JSON file that update.py makes")
    parser.add_argument("--adaptation", choices=("lora", "full"), default="lora")
    parser.add_argument("--bf16", action="store_true", help="the trainer's default")
    parser.add_argument("--checkpointing", action="store_true", help="the trainer's default")
    arguments = parser.parse_args()
    work = json.loads(arguments.work.read_text(encoding="utf-8"))
    torch.manual_seed(work["seed"])
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in work["prompts"]]
    assert {len(p) for p in prompts} == {work["prompt_tokens"]}

    def load(kind: Any, **more: Any) -> Any:
        return kind.from_pretrained(arguments.model, dtype=torch.float32, **more)

    lora = LoraConfig(r=work["rank"], lora_alpha=2 * work["rank"], target_modules="all-linear", task_type="CAUSAL_LM")
    gate = Gate()
    with tempfile.TemporaryDirectory() as directory:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=directory,
                use_cpu=True,
                bf16=arguments.bf16,
                gradient_checkpointing=arguments.checkpointing,
                report_to="none",
                learning_rate=1e-5,
                per_device_train_batch_size=work["micro_batch"],
                gradient_accumulation_steps=work["episodes"] // work["micro_batch"],
                local_rollout_forward_batch_size=work["micro_batch"],
                num_mini_batches=1,
                num_ppo_epochs=work["ppo_epochs"],
                response_length=work["response_tokens"],
                temperature=1.0,
                total_episodes=1000 * work["episodes"],  # more than will be asked for
                num_sample_generations=0,
                logging_strategy="no",
                save_strategy="no",
                disable_tqdm=True,
            ),
            processing_class=tokenizer,
            model=load(AutoModelForCausalLM),
            ref_model=None,
            reward_model=load(AutoModelForSequenceClassification, num_labels=1),
            value_model=load(AutoModelForSequenceClassification, num_labels=1),
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            peft_config=lora if arguments.adaptation == "lora" else None,
            callbacks=[gate],
        )

        def learn() -> None:
            gate.asked.get()
            trainer.train()

        threading.Thread(target=learn, daemon=True).start()
        serve(gate.once)


if __name__ == "__main__":
    main()
