"""How fast conversations are had: collection here and elsewhere, and what a turn costs late in a conversation.

``python benchmarks/speed/collect.py`` measures all but the last; name some to measure those alone:

``--collection``  32 conversations of 6 turns: `collect` with the local engine, against the same `collect` with a plain
                  engine that gives ``model.generate`` the whole histories, padded on the left. Both have the policy
                  that trains: a LoRA adapter of rank 16 on all linear maps, which ``generate`` computes as peft does.
``--merged``      the same against ``model.generate`` of transformers without an adapter, as of a model that was merged
                  and cannot train on; ours keeps its adapter.
``--cost``        seconds a turn at turns 4, 16 and 64 of 4 conversations, with as many new tokens in every turn; and
                  what the plain engine needs for the same turns.
``--grpo``        the same conversations against the rollout of TRL's `GRPOTrainer`, see ``trl_rollout.py``. TRL is
                  that of ``--peer-python``; ``setup.sh`` makes one.

Both sides compute with the same weights (SmolLM2-135M in one precision), sample at temperature 1 from the whole
distribution, and may not draw the end token, so that every message is as long as it may be and all make the same number
of tokens. The customer says fixed texts. The sides take turns, and a pair that warms up is left out. What is compared
is the time of whole rollouts; the local engine also gives log-probabilities, the plain one does not. Results go to
``benchmarks/results/speed/collect.json``, part by part.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from customer import said
from torch import Tensor

from lightning_iterppo.collection import collect
from lightning_iterppo.customers import CustomerReply, Message
from lightning_iterppo.files import write_json_atomically
from lightning_iterppo.generation.engine import Engine, Response
from lightning_iterppo.generation.local import LocalEngine, speaking
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.machine import describe_machine
from lightning_iterppo.models.backbones import load_backbone
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "speed" / "collect.json"
OURS, PLAIN, MERGED, TRL = "lightning-iterppo", "model.generate", "model.generate, merged", "trl"
TURNS = (4, 16, 64)


class Scripted:
    """Says what `customer.said` says, for so many turns.

    Args:
        turns: of a conversation.
        short: the short texts.
    """

    def __init__(self, turns: int, *, short: bool = False) -> None:
        self.turns, self.short = turns, short

    def reset(self, seed: int) -> str:
        """The opening."""
        return said(0, seed, short=self.short)

    def reply(self, history: list[Message]) -> CustomerReply:
        """The next text; after the last turn the end."""
        turn = len(history) // 2
        return CustomerReply(said(turn, short=self.short), done=turn == self.turns)


class PlainEngine:
    """What a loop over ``model.generate`` does: all of every history again, padded on the left.

    Args:
        model: the model, perhaps with adapters.
        pad: the token that fills up.
    """

    def __init__(self, model: Any, pad: int) -> None:
        self.model, self.pad = model, pad
        self.generated_tokens = 0

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Sequence[int] | None = None
    ) -> list[Response]:
        """One response a prompt, from torch's own randomness; log-probabilities are not asked for and are zeros."""
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, width - len(prompt) :] = 1
        device = self.model.device
        made = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=sampling.max_new_tokens,
            pad_token_id=self.pad,
        )[:, width:].tolist()
        self.generated_tokens += sum(map(len, made))
        return [Response(tuple(row), (0.0,) * len(row), False) for row in made]


class Watched:
    """An engine whose calls are timed.

    Args:
        engine: the engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.seconds: list[float] = []
        self.prompts: list[list[list[int]]] = []
        self.tokens = 0  # of the whole conversations, after the last call

    @property
    def generated_tokens(self) -> int:
        """How many tokens were sampled."""
        return self.engine.generated_tokens

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Sequence[int] | None = None
    ) -> list[Response]:
        """What the engine says."""
        self.prompts.append([list(prompt) for prompt in prompts])
        started = time.perf_counter()
        found = self.engine.generate(prompts, sampling, seeds=seeds)
        self.seconds.append(time.perf_counter() - started)
        self.tokens = sum(len(p) + len(r.token_ids) for p, r in zip(prompts, found, strict=True))
        return found


class Sides:
    """Everything that can be measured, with its models loaded on first use.

    Args:
        arguments: the command line's.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        self.language_model = LanguageModel.load("smollm2", dtype=arguments.dtype).to(device)
        self.renderer = ChatRenderer(self.language_model.tokenizer)
        self.backbone = load_backbone("smollm2", dtype=arguments.dtype)
        self.backbone.model.to(device)
        for model in (self.language_model.causal_lm, self.backbone.model):
            model.get_output_embeddings().register_forward_hook(self._never_stop)

    def _never_stop(self, module: Any, given: Any, logits: Tensor) -> Tensor:
        return logits.index_fill(-1, torch.tensor([self.renderer.stop_token_id], device=logits.device), float("-inf"))

    def engine(self, side: str) -> Watched:
        """A fresh engine."""
        if side in (PLAIN, MERGED):
            model = self.language_model.model if side == PLAIN else self.backbone.model
            return Watched(PlainEngine(model, self.language_model.pad_token_id))
        stop, seed = self.renderer.stop_token_id, self.arguments.seed
        return Watched(LocalEngine(self.language_model, stop_token_id=stop, seed=seed, keep=True))

    def talk(self, side: str, conversations: int, turns: int, tokens: int, *, short: bool = False) -> dict[str, Any]:
        """Has conversations and says how long that took."""
        engine = self.engine(side)
        started = time.perf_counter()
        self.language_model.eval()
        with speaking(self.language_model) if side == OURS else nullcontext():  # as the loop does
            collect(
                lambda: Scripted(turns, short=short),
                range(conversations),
                engine=engine,
                renderer=self.renderer,
                sampling=Sampling(max_new_tokens=tokens),
                policy_version="speed",
                prefix="speed",
                batch=conversations,
            )
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "sampled": engine.generated_tokens, "tokens": engine.tokens, "engine": engine}


class Peer:
    """The process that ``trl_rollout.py`` runs in; idle while nothing is asked of it.

    Args:
        arguments: the command line's.
        model: the directory of the model.
        dtype: its precision.
    """

    def __init__(self, arguments: argparse.Namespace, model: str, dtype: str) -> None:
        command = [arguments.peer_python, str(Path(__file__).with_name("trl_rollout.py")), "--model", model]
        for name in ("conversations", "turns", "new_tokens", "seed"):
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        command += ["--dtype", dtype, *(["--continuous"] if arguments.continuous else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.packages = self._answer()

    def roll_out(self) -> dict[str, Any]:
        """One rollout of all conversations."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}: see above")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Lets it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# -- measuring -----------------------------------------------------------------------------------------------------


def in_pairs(sides: dict[str, Callable[[], dict[str, Any]]], pairs: int, conversations: int) -> dict[str, Any]:
    """Lets two sides take turns, who begins changing from pair to pair, after one turn each that does not count."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for pair in range(pairs + 1):
        order = list(sides) if pair % 2 else list(sides)[::-1]
        for side in order:
            run = {key: value for key, value in sides[side]().items() if key != "engine"}
            if pair:
                runs[side].append(run)
                print(f"pair {pair} {side}: {run['seconds']:.2f} s, {run['sampled']} tokens", file=sys.stderr)
    ours, other = (runs[side] for side in sides)
    ratios = [theirs["seconds"] / own["seconds"] for own, theirs in zip(ours, other, strict=True)]
    return {
        "runs": runs,
        "conversations_per_second": {
            side: conversations / statistics.median(run["seconds"] for run in found) for side, found in runs.items()
        },
        "times_as_fast": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
    }


def measure_collection(sides: Sides, other: str = PLAIN) -> dict[str, Any]:
    """Against ``model.generate``."""
    given = sides.arguments
    shape = given.conversations, given.turns, given.new_tokens
    both = {side: (lambda side=side: sides.talk(side, *shape)) for side in (OURS, other)}
    return in_pairs(both, given.pairs, given.conversations)


def measure_grpo(sides: Sides) -> dict[str, Any]:
    """Against TRL."""
    given = sides.arguments
    dtype = str(sides.language_model.head_weight.dtype).removeprefix("torch.")
    peer = Peer(given, sides.language_model.base_path, dtype)
    try:
        both = {OURS: lambda: sides.talk(OURS, given.conversations, given.turns, given.new_tokens), TRL: peer.roll_out}
        found = in_pairs(both, given.pairs, given.conversations)
    finally:
        peer.close()
    return {**found, "peer": peer.packages, "continuous_batching": given.continuous}


def measure_cost(sides: Sides) -> dict[str, Any]:
    """Seconds a turn, late in a conversation and early."""
    given = sides.arguments
    turns = [turn for turn in TURNS if turn <= given.last_turn]
    seconds: dict[str, list[list[float]]] = {OURS: [], MERGED: []}
    lengths: list[int] = []
    for pair in range(given.pairs + 1):
        ours = sides.talk(OURS, 4, turns[-1], 8, short=True)["engine"]
        plain = sides.engine(MERGED)
        for turn in turns:  # the same prompts, of the turns that are looked at
            plain.generate(ours.prompts[turn - 1], Sampling(max_new_tokens=8))
        if pair:
            # A turn of our own is short: the median of it and its neighbours.
            near = [ours.seconds[max(0, turn - 3) : turn + 2] for turn in turns]
            seconds[OURS].append([statistics.median(each) for each in near])
            seconds[MERGED].append(plain.seconds)
            lengths = [len(ours.prompts[turn - 1][0]) for turn in turns]
            print(f"pair {pair}: {seconds[OURS][-1]} against {plain.seconds}", file=sys.stderr)
    found: dict[str, Any] = {"turns": turns, "prompt_tokens": lengths, "runs": seconds}
    for side, runs in seconds.items():
        medians = [statistics.median(column) for column in zip(*runs, strict=True)]
        found[side] = {"seconds": medians, "times_the_first": [value / medians[0] for value in medians]}
    return found


def table(results: dict[str, Any]) -> str:
    """All parts that were measured, as Markdown."""
    lines = ["| measured | here | other | times as fast (pairs) |", "| --- | --- | --- | --- |"]
    for part in ("collection", "merged", "grpo"):
        if part in results:
            found = results[part]
            (own, other), ratio = found["conversations_per_second"].items(), found["times_as_fast"]
            lines.append(
                f"| {part}: conversations/s | {own[1]:.3g} | {other[0]} {other[1]:.3g} | "
                f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}) |"
            )
    if "cost" in results:
        found = results["cost"]
        for place, turn in enumerate(found["turns"]):
            own, other = (
                f"{found[side]['seconds'][place]:.3g} s, {found[side]['times_the_first'][place]:.2f} × turn 4"
                for side in (OURS, MERGED)
            )
            ratio = found[MERGED]["seconds"][place] / found[OURS]["seconds"][place]
            lines.append(f"| turn {turn}, {found['prompt_tokens'][place]} tokens | {own} | {other} | {ratio:.2f} |")
    return "\n".join(lines)


MEASURES = {
    "collection": measure_collection,
    "merged": partial(measure_collection, other=MERGED),
    "cost": measure_cost,
    "grpo": measure_grpo,
}


def main() -> None:
    """Measures what is asked for, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in MEASURES:
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--conversations", type=int, default=32)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--last-turn", type=int, default=TURNS[-1], help="of --cost; for a quick try")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer-python", default=str(Path(__file__).with_name(".venv-trl-1.16.0") / "bin" / "python"))
    parser.add_argument("--continuous", action="store_true", help="TRL with transformers' continuous batching")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    chosen = [part for part in MEASURES if getattr(arguments, part)] or ["collection", "merged", "cost"]
    torch.manual_seed(arguments.seed)
    sides = Sides(arguments)
    results = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
    for part in chosen:
        results[part] = {
            **MEASURES[part](sides),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join(["python", "benchmarks/speed/collect.py", *sys.argv[1:]]),
            "seed": arguments.seed,
            "dtype": arguments.dtype,
            "machine": describe_machine(),
            "transformers": version("transformers"),
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(arguments.output, results)
    print(table(results))


if __name__ == "__main__":
    main()
