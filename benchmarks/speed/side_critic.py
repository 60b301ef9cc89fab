"""A side of ``critic.py``: one epoch of fitting Q on logged turns, with this library or with transformers' Trainer."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from sides import serve

from lightning_iterppo.critic import QCritic
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.data.turns import TurnDataModule
from lightning_iterppo.models.language_model import Adaptation, LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer

RANK, RATE = 16, 1e-4


def ours(model_id: str, work: dict[str, Any]) -> Any:
    """`QCritic` and `TurnDataModule`: a conversation is a row, and each of its turns a sample."""
    model = LanguageModel.load(model_id, Adaptation(kind="lora", rank=RANK, alpha=2 * RANK), dtype="float32")
    critic = QCritic(model, learning_rate=RATE)
    conversations = read_conversations(work["file"])

    def epoch() -> dict[str, Any]:
        data = TurnDataModule(
            conversations, renderer=ChatRenderer(model.tokenizer), batch_size=work["conversations_a_step"]
        )
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
        )  # fmt: skip
        trainer.fit(critic, data)
        return {"turns": sum(len(i.returns) for i in data.train_trees), "steps": trainer.global_step}

    return epoch


def transformers_trainer(model_id: str, work: dict[str, Any]) -> Any:
    """A sequence classifier with one label, on every turn's history and action as a row of its own."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(model_id)
    model = AutoModelForSequenceClassification.from_pretrained(model_id, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="SEQ_CLS")
    model = get_peft_model(model, lora)
    renderer = ChatRenderer(tokenizer)
    rows = []
    for conversation in read_conversations(work["file"]):
        rendered = renderer.render(conversation)
        for action, value in zip(rendered.actions, conversation.returns(), strict=True):
            rows.append({"input_ids": rendered.tree.path(action), "labels": float(value)})

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = tokenizer.pad([{"input_ids": item["input_ids"]} for item in items], return_tensors="pt")
        return {**batch, "labels": torch.tensor([item["labels"] for item in items])}

    class Bce(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            labels = inputs.pop("labels")
            logits = model(**inputs).logits.squeeze(-1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
            return (loss, logits) if return_outputs else loss

    directory = tempfile.mkdtemp()

    def epoch() -> dict[str, Any]:
        trainer = Bce(
            model=model,
            args=TrainingArguments(
                directory, num_train_epochs=1, per_device_train_batch_size=work["rows_a_pass"],
                gradient_accumulation_steps=work["passes_a_step"], train_sampling_strategy="group_by_length",
                learning_rate=RATE, use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=rows,
            data_collator=collate,
        )  # fmt: skip
        trainer.train()
        return {"turns": len(rows), "steps": trainer.state.global_step}

    return epoch


def main() -> None:
    """Loads, and serves epochs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("ours", "transformers"))
    parser.add_argument("model")
    parser.add_argument("work", type=Path, help="a JSON file that critic.py makes")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    work = json.loads(arguments.work.read_text(encoding="utf-8"))
    torch.manual_seed(1)
    make = ours if arguments.side == "ours" else transformers_trainer
    serve(make(arguments.model, work))


if __name__ == "__main__":
    main()
