"""Checks the plan of ``iterppo doctor --plan`` against what pieces of iterations take.

``python benchmarks/scaling/check.py`` makes Llamas of three sizes from nothing, and for each of them, with LoRA and in
full, runs a critic's fit and an improvement of a few steps in a process of its own (``piece.py``), whose peak memory
the operating system counts and whose phases are timed; and plans the same. ``--write`` puts the table into
``docs/scaling.md``; ``--only-write`` does so from the record.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pages import fill

from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.data.logs import write_conversations
from lightning_iterppo.files import write_json_atomically
from lightning_iterppo.machine import describe_machine
from lightning_iterppo.models.smollm2 import smollm2_directory
from lightning_iterppo.planning.memory_plan import moments_of
from lightning_iterppo.planning.rehearsal import Rehearsal
from lightning_iterppo.planning.request import read_request
from lightning_iterppo.planning.speed import measured_speed, process_memory
from lightning_iterppo.planning.time_plan import seconds_of

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "scaling" / "check.json"
PAGE = HERE.parents[1] / "docs" / "scaling.md"
#: What differs from SmolLM2's configuration, which is the largest of the three.
SIZES: Final[dict[str, dict[str, int]]] = {
    "9M": {"hidden_size": 128, "num_hidden_layers": 12, "intermediate_size": 384, "num_attention_heads": 4,
           "num_key_value_heads": 2, "head_dim": 32},
    "58M": {"hidden_size": 384, "num_hidden_layers": 24, "intermediate_size": 1024, "num_attention_heads": 6,
            "num_key_value_heads": 3, "head_dim": 64},
    "135M": {},
}  # fmt: skip
ADAPTATIONS: Final = ("lora", "full")
TURNS, RESPONSE, CONVERSATIONS = 2, 24, 9
#: One epoch of Q on eight conversations, one held out, and one round of PPO on eight: two steps of four rows each.
RECIPE: Final = (
    *(
        "shop",
        "policy=default",
        "trainer=cpu",
        "logger=none",
        "logs=none",
        "callbacks.progress=null",
        f"loop.conversations={CONVERSATIONS}",
    ),
    *("loop.batch=8", f"sampling.max_new_tokens={RESPONSE}", "critic.epochs=1", "critic.batch_conversations=4"),
    *("critic.validation_fraction=0.12", "policy.rounds=1", "policy.ppo_epochs=1", "policy.batch_conversations=4"),
    *("policy.conversations_per_round=8", "policy.samples_per_state=1", "policy.logged_reward=none"),
    *("policy.log_conversations=0",),
)
#: What a plan may be wrong by.
GOAL: Final = 0.15


def shape(changes: dict[str, int]) -> PreTrainedConfig:
    """SmolLM2's configuration with some changes."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(smollm2_directory())
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def make_model(changes: dict[str, int], seed: int, place: Path) -> None:
    """Writes a model with random weights and SmolLM2's tokenizer."""
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(shape(changes), dtype=torch.bfloat16).save_pretrained(place)
    AutoTokenizer.from_pretrained(smollm2_directory()).save_pretrained(place)


def conversations() -> list[Conversation]:
    """All of one length, whose messages are as long as the responses that are sampled."""
    said = " ".join(["house"] * (RESPONSE - 1))  # and the token that ends it
    turns = [Turn(" ".join(["house"] * 40), said) for _ in range(TURNS)]
    return [
        Conversation(str(n), (*turns[:-1], Turn(turns[-1].customer, said, reward=float(n % 2))), outcome=float(n % 2))
        for n in range(CONVERSATIONS)
    ]


def measure(logs: Path, words: list[str]) -> dict[str, Any]:
    """Runs the piece.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    done = subprocess.run([sys.executable, str(HERE / "piece.py"), str(logs), *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the piece failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def planned(words: list[str], tokens: int, process: int) -> dict[str, Any]:
    """The same by the plan: bytes at the largest moment of a fit and an improvement, and seconds of the two."""
    own = [f"tokens={tokens}", f"turns={TURNS}", f"response={RESPONSE}"]
    request = read_request(words[0], [*words[1:], *own])
    found = Rehearsal(request.config, request.recipe, request.work, accelerator=False).run()
    moments = moments_of(found, request.recipe, request.work, request.devices, process=process)
    del moments["collect"]  # which the piece does not do
    speed = measured_speed(request.config, request.recipe, request.work, found)
    seconds = seconds_of(found, request.recipe, request.work, request.devices, speed)
    peak = max(sum(each.values()) for each in moments.values())
    return {"memory": peak, "moments": moments, "seconds": {name: seconds[name] for name in ("evaluate", "improve")}}


def check(
    seed: int, threads: int, sizes: list[str], known: dict[tuple[str, str], dict[str, Any]]
) -> list[dict[str, Any]]:
    """All sizes, with either adaptation; what is known of a size and an adaptation is not measured again."""
    process = process_memory(str(smollm2_directory()), "auto")
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        logs = Path(directory) / "logs.jsonl"
        write_conversations(logs, conversations())
        for size in sizes:
            place = Path(directory) / size
            make_model(SIZES[size], seed, place)
            for kind in ADAPTATIONS:
                words = [*RECIPE, "model=hub", f"model.id={place}", f"model/adaptation={kind}", f"seed={seed}"]
                words.append(f"trainer.threads={threads}")
                measured = known.get((size, kind)) or measure(logs, words)
                (tokens,) = measured["tokens"]
                plan = planned(words, tokens, process)
                rows.append({"size": size, "adaptation": kind, "tokens": tokens, "measured": measured, "plan": plan})
                print(line(rows[-1]), flush=True)
    return rows


def errors(row: dict[str, Any]) -> tuple[float, float]:
    """By how much the plan is above what was measured, in memory and in time: 0.1 is a tenth too much."""
    measured, plan = row["measured"], row["plan"]
    return (
        plan["memory"] / measured["memory"]["peak"] - 1,
        sum(plan["seconds"].values()) / sum(measured["seconds"].values()) - 1,
    )


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    memory, seconds = errors(row)
    measured, plan = row["measured"], row["plan"]
    cells = [
        f"{row['size']}, {row['adaptation']}",
        f"{measured['memory']['peak'] / 1e9:.2f}",
        f"{plan['memory'] / 1e9:.2f}",
        f"{memory:+.0%}",
        f"{sum(measured['seconds'].values()):.1f}",
        f"{sum(plan['seconds'].values()):.1f}",
        f"{seconds:+.0%}",
    ]
    return "| " + " | ".join(cells) + " |"


def table(record: dict[str, Any]) -> str:
    """Markdown, and where it is from."""
    head = (
        "| model | memory, GB: measured | planned | error | time, s: measured | planned | error |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    machine = record["machine"]
    origin = (
        f"`{record['command']}`: {record['date']}, {machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, torch {machine['torch']}."
    )
    return "\n".join([head, *map(line, record["rows"]), "", origin])


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--try", dest="trial", action="store_true", help="write no results")
    parser.add_argument("--replan", action="store_true", help="plan what the record measured anew")
    parser.add_argument("--write", action="store_true", help="the table into docs/scaling.md")
    parser.add_argument("--only-write", action="store_true", help="the table of the record, without measuring")
    arguments = parser.parse_args()
    if not arguments.only_write:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
        torch.set_num_threads(arguments.threads)
        before = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if arguments.replan else []
        known = {(row["size"], row["adaptation"]): row["measured"] for row in before}
        record = {
            "command": " ".join(["python", "benchmarks/scaling/check.py", *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": describe_machine(),
            "seed": arguments.seed,
            "recipe": RECIPE,
            "rows": check(arguments.seed, arguments.threads, arguments.sizes, known),
        }
        if not arguments.trial:
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomically(RESULTS, record)
        missed = [row for row in record["rows"] if max(map(abs, errors(row))) > GOAL]
        print(f"{len(missed)} of {len(record['rows'])} are off by more than {GOAL:.0%}")
    if arguments.write or arguments.only_write:
        fill(PAGE, {"check": table(json.loads(RESULTS.read_text(encoding="utf-8")))})


if __name__ == "__main__":
    main()
