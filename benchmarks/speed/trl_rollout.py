"""The rollout of TRL's `GRPOTrainer` in an environment of several turns; run by ``collect.py`` as a process of its own.

TRL rolls a conversation out as a model that calls tools: a completion is a call of a method of the environment, what
the method returns is a message, and the model goes on. The customer's answers are such a method. SmolLM2 does not call
tools by itself, so every completion is read as a call (`parse_response` is replaced); all the rest is TRL's own: its
loop over turns, its padding, its generation with transformers. Timed is the rollout alone, ``GRPOTrainer._generate``,
without rewards and log-probabilities.

One JSON object a line: the first says what is installed, then one comes for every line that is read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import trl
from customer import said
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer import grpo_trainer

# SmolLM2's own template with what TRL asks for: calls are rendered, and what a tool says is a message of the user.
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Environment:
    """The customer, as TRL wants it."""

    def reset(self, **kwargs: Any) -> None:
        """Begins again."""
        self.turn = 0

    def reply(self, message: str) -> str:
        """Answers a message.

        Args:
            message: the message.
        """
        self.turn += 1
        return said(self.turn)


def called(tokenizer: Any, ids: list[int], prefix: Any = None, tools: Any = None) -> dict[str, Any]:
    """Reads a completion as a call of `Environment.reply`."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    call = {"type": "function", "function": {"name": "reply", "arguments": {"message": text}}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def make_trainer(arguments: argparse.Namespace, folder: str) -> Any:
    """A trainer that is never told to train."""
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=arguments.dtype)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.response_template = {}  # there is one, says this, so that TRL does not look for the template's
    stop = tokenizer.eos_token_id

    def never_stop(module: Any, given: Any, logits: Any) -> Any:
        return logits.index_fill(-1, torch.tensor([stop], device=logits.device), float("-inf"))

    model.get_output_embeddings().register_forward_hook(never_stop)
    grpo_trainer.parse_response = called
    prompts = [{"prompt": [{"role": "user", "content": said(0, seed)}]} for seed in range(arguments.conversations)]
    return trl.GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=trl.GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=arguments.conversations,
            num_generations=2,
            max_completion_length=8192 // 2,
            max_tool_calling_iterations=arguments.turns - 1,
            generation_kwargs={"max_new_tokens": arguments.new_tokens, "top_k": 0},
            temperature=1.0,
            use_transformers_continuous_batching=arguments.continuous,
            use_cpu=not torch.accelerator.is_available(),
            bf16=False,
            report_to="none",
            seed=arguments.seed,
        ),
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        environment_factory=Environment,
    )


def main() -> None:
    """Serves rollouts until nobody asks for more."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    for name in ("conversations", "turns", "new-tokens", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--continuous", action="store_true")
    arguments = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(arguments, folder)
        rollout, measured = trainer._generate, {}

        def timed(prompts: Any) -> Any:
            started = time.perf_counter()
            found = rollout(prompts)
            measured["seconds"] = time.perf_counter() - started
            # Sampled are those that the mask of tools has a 1 for; the whole conversation is prompt and completion.
            measured["sampled"] = sum(sum(mask) for mask in found[2])
            measured["tokens"] = sum(len(p) + len(c) for p, c in zip(found[0], found[1], strict=True))
            return found

        trainer._generate = timed
        packages = ("trl", "transformers", "torch", "accelerate")
        print(json.dumps({name: version(name) for name in packages}), file=answers, flush=True)
        for _ in sys.stdin:
            with torch.no_grad():
                trainer._generate_and_score_completions(list(trainer.train_dataset))
            print(json.dumps(measured), file=answers, flush=True)


if __name__ == "__main__":
    main()
