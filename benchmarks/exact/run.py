"""The library's loop against the exact optimum: random conversations that can be enumerated, and a tiny model.

``python benchmarks/exact/run.py`` runs the recipe ``exact.yaml`` on twenty random problems. Before and after every
improvement it writes out the policy, every history with every response, and computes its exact value and the exact
improvement of the same KL. Results go to ``benchmarks/results/exact/``; ``--plots`` only draws
them, into ``docs/images/``, and needs matplotlib.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_iterppo.build import build_loop
from lightning_iterppo.composition import compose
from lightning_iterppo.conversation import Message
from lightning_iterppo.customers.exact import WORDS, state_word, vocabulary
from lightning_iterppo.files import write_json_atomically
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.machine import describe_machine
from lightning_iterppo.models.language_model import POLICY
from lightning_iterppo.theory import Problem, evaluate, improve, occupancy, of_histories, optimum, outcome_problem

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "exact"
IMAGES = ROOT / "docs" / "images"
TURNS, STATES, TOKENS, LENGTH = 2, 3, 3, 2
SIZES = {"turns": TURNS, "states": STATES, "tokens": TOKENS, "length": LENGTH}


@dataclass
class Iteration:
    """One improvement, measured exactly.

    Args:
        before: value of π_k.
        after: value of π_{k+1}.
        kl: mean KL(π_{k+1} ‖ π_k) over the states that π_k visits, in nats a response.
        exact: value of the exact improvement of π_k with that KL.
    """

    before: float
    after: float
    kl: float
    exact: float


@dataclass
class Result:
    """One random problem.

    Args:
        problem: its number.
        optimum: the exact best value.
        iterations: the improvements.
        conversations: how many were had with the customer, evaluation not counted (there is none).
        foreign: probability of tokens that are no response, in the last policy.
        seconds: of the run.
    """

    problem: int
    optimum: float
    conversations: int
    iterations: list[Iteration] = field(default_factory=list)
    foreign: float = 0.0
    seconds: float = 0.0


def histories() -> list[list[Message]]:
    """All histories, in the order of the states of `of_histories`, of all turns one after another."""
    responses = outcome_problem(0, **SIZES).tree.responses
    level = [[Message("customer", state_word(0, state))] for state in range(STATES)]
    found = list(level)
    for turn in range(1, TURNS):
        level = [
            [*history, Message("agent", _text(response)), Message("customer", state_word(turn, state))]
            for history in level
            for response in responses
            for state in range(STATES)
        ]
        found += level
    return found


def _text(response: tuple[int, ...]) -> str:
    return " ".join(WORDS[token - 1] for token in response if token)


@torch.no_grad()
def policy_table(loop: IterativePPOLoop, problem: Problem) -> tuple[Tensor, float]:
    """π(a | history) of the policy as it is, (T, histories, A), and the probability of words that are no response."""
    model, renderer, tree = loop.language_model, loop.renderer, problem.tree
    words = [renderer.encode(word)[0] for word in WORDS[: tree.tokens - 1]]
    end = int(model.tokenizer.eos_token_id)
    prompts, owners = [], []
    for history in histories():
        prompt = renderer.encode(renderer.prompt_text(None, history))
        for prefix in tree.prefixes:
            prompts.append([*prompt, *(words[token - 1] for token in prefix)])
            owners.append(prefix)
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), model.pad_token_id)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    with model.using(POLICY):
        logits = model.causal_lm(input_ids=ids, attention_mask=torch.arange(length) <= last[:, None]).logits
    said = logits[torch.arange(len(prompts)), last].double().softmax(-1)
    kept = said[:, words]  # (histories * N, K - 1); all else ends the response, as the customer hears it
    tokens = torch.cat([1 - kept.sum(-1, keepdim=True), kept], -1).clamp_min(1e-300)
    foreign = float((1 - kept.sum(-1) - said[:, end]).max())
    of_history = tree.policy(tokens.log().view(-1, len(tree.prefixes), tree.tokens))
    table = torch.full((TURNS, problem.reward.shape[1], len(tree.responses)), 1 / len(tree.responses)).double()
    start = 0
    for turn in range(TURNS):
        count = STATES * (len(tree.responses) * STATES) ** turn
        table[turn, :count] = of_history[start : start + count]
        start += count
    return table, foreign


def value(problem: Problem, policy: Tensor) -> float:
    """The exact outcome rate."""
    return float(problem.start @ evaluate(problem, policy).v[0])


def mean_kl(problem: Problem, policy: Tensor, anchor: Tensor) -> float:
    """KL(policy ‖ anchor) a response, over the states that the anchor visits."""
    visits = occupancy(problem, anchor)
    kl = torch.special.xlogy(policy, policy / anchor).sum(-1)
    return float((visits * kl).sum() / visits.sum())


def exact_improvement(problem: Problem, policy: Tensor, kl: float) -> Tensor:
    """π exp(Q / β), normalised, with the β whose mean KL is ``kl``; found by halving, KL falls as β grows."""
    q = evaluate(problem, policy).q
    low, high = 1e-6, 1e6
    for _ in range(100):
        beta = (low * high) ** 0.5
        low, high = (beta, high) if mean_kl(problem, improve(policy, q, beta), policy) > kl else (low, beta)
    return improve(policy, q, high)


class Watch(pl.Callback):
    """Writes out the policy before every iteration and after the last."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.tables: list[Tensor] = []
        self.foreign = 0.0

    def look(self, loop: IterativePPOLoop) -> None:
        """Takes the policy as it is."""
        table, self.foreign = policy_table(loop, self.problem)
        self.tables.append(table)

    on_iteration_start = look
    on_run_end = look


def run(number: int, overrides: list[str]) -> Result:
    """One random problem."""
    config = compose(str(Path(__file__).with_name("exact.yaml")), [f"seed={number + 1}", *overrides])
    for section in (config.customer, config.logs):
        section.update(SIZES, problem=number)
    assert config.model.scratch is not None, "exact.yaml makes its model from nothing"
    config.model.scratch.vocabulary = vocabulary(TURNS, STATES, TOKENS)
    flat = outcome_problem(number, **SIZES)
    problem = of_histories(flat)
    watch = Watch(problem)
    loop = build_loop(config, kept=False)
    loop.callbacks.append(watch)
    started = time.perf_counter()
    loop.run()
    best = float(flat.start @ optimum(flat).v[0])
    result = Result(number, best, config.loop.iterations * config.loop.conversations, foreign=watch.foreign)
    for before, after in zip(watch.tables, watch.tables[1:], strict=False):
        kl = mean_kl(problem, after, before)
        exact = value(problem, exact_improvement(problem, before, kl))
        result.iterations.append(Iteration(value(problem, before), value(problem, after), kl, exact))
    result.seconds = time.perf_counter() - started
    return result


def plots(results: list[dict[str, Any]]) -> None:
    """The two plots of docs/theory.md."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "exact", "figure.figsize": (6, 4), "axes.grid": True, "grid.alpha": 0.3})
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots()
    for result in results:
        steps = [i["before"] / result["optimum"] for i in result["iterations"]]
        axes.plot([*steps, result["iterations"][-1]["after"] / result["optimum"]], color="tab:blue", alpha=0.5)
    axes.axhline(0.95, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="iterations", ylabel="exact value / exact optimum", ylim=(0, 1.02))
    axes.set_title(f"{len(results)} random problems")
    figure.savefig(IMAGES / "exact-curves.svg", bbox_inches="tight", metadata={"Date": None})
    figure, axes = plt.subplots()
    points = [(i["exact"] - i["before"], i["after"] - i["before"]) for r in results for i in r["iterations"]]
    axes.scatter(*zip(*points, strict=True), s=12, alpha=0.7)
    top = max(x for x, _ in points)
    axes.plot([0, top], [0, top], color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="gain of the exact improvement of the same KL", ylabel="gain of the library's improvement")
    figure.savefig(IMAGES / "exact-gains.svg", bbox_inches="tight", metadata={"Date": None})


def summary(results: list[dict[str, Any]]) -> str:
    """What came out, in lines."""
    reached = sorted(r["iterations"][-1]["after"] / r["optimum"] for r in results)
    first = statistics.mean(r["iterations"][0]["before"] / r["optimum"] for r in results)
    gains = [(i["after"] - i["before"], i["exact"] - i["before"]) for r in results for i in r["iterations"]]
    share = sum(a for a, _ in gains) / sum(e for _, e in gains)
    return (
        f"{len(results)} problems: at least 95 % of the optimum on {sum(x >= 0.95 for x in reached)}; "
        f"lowest {reached[0]:.1%}, median {statistics.median(reached):.1%}, before {first:.1%} in the mean\n"
        f"gain of all improvements together, of the exact ones of the same KL: {share:.1%}"
    )


def main() -> None:
    """Runs, or draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first problem's number")
    parser.add_argument("--jobs", type=int, default=1, help="problems at once, one thread each")
    parser.add_argument("--plots", action="store_true", help="only draw, from the results that are there")
    parser.add_argument("--try", dest="trial", action="store_true", help="write no results")
    parser.add_argument("overrides", nargs="*", help="key=value for the recipe")
    arguments = parser.parse_args()
    file = RESULTS / "results.json"
    if arguments.plots:
        if not file.is_file():
            sys.exit(f"there is no {file}: run this without --plots first")
        results = json.loads(file.read_text(encoding="utf-8"))["problems"]
        plots(results)
        print(summary(results))
        return
    found: list[dict[str, Any]] = []
    record = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": describe_machine(),
        "arguments": sys.argv[1:],
        "problems": found,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        numbers = range(arguments.first, arguments.first + arguments.problems)
        for result in pool.map(run, numbers, itertools.repeat(arguments.overrides)):
            found.append(asdict(result))
            curve = " ".join(f"{i.before / result.optimum:.3f}" for i in result.iterations)
            last = result.iterations[-1].after / result.optimum
            print(f"problem {result.problem}: of the optimum {curve} {last:.3f}, {result.seconds:.0f} s", flush=True)
            if not arguments.trial:
                write_json_atomically(file, record)
    print(summary(found))


if __name__ == "__main__":
    main()
