"""Iterative PPO against other methods on three conversations in templates, at equal numbers of conversations.

``python benchmarks/learning/run.py`` has every method learn every task in both regimes with ten seeds, as far as
``benchmarks/results/learning/runs.jsonl`` does not have it already; ``--tasks``, ``--methods``, ``--regimes`` and
``--seeds`` choose fewer, ``--jobs`` runs several at once, each on one thread. ``--tune`` tries every method's grid
(`RATES`, `PASSES`) instead, on one task, in every regime, and writes what was best to ``chosen.json``; ``report.py``
makes tables and plots. ``--variants`` runs Iterative PPO with each of `VARIANTS` in the place of the other methods.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import logging
import multiprocessing
import statistics
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import lightning.pytorch as pl

from lightning_iterppo.build import build_loop
from lightning_iterppo.composition import compose
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.machine import describe_machine

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from methods import METHODS  # noqa: E402

OURS: Final = "iterative-ppo"
RESULTS = HERE.parent / "results" / "learning"
CHOSEN = HERE / "chosen.json"
TASKS: Final = ("shop", "questions", "haggling")
#: Conversations in the logs that all start from.
LOGGED: Final = 400
#: Iterations, and conversations in each: many deployments, or few.
REGIMES: Final = {"many": (10, 200), "few": (3, 700)}
#: Passes of a critic over what it is fitted to; it goes on from that of the iteration before.
CRITIC_EPOCHS: Final = {"many": 2, "few": 4}
#: What is tuned for every method: the size of a step, and the passes over an iteration's samples (or rounds of fresh
#: ones), of which a large iteration bears more.
RATES: Final = (1e-3, 2e-3)
PASSES: Final = {"many": (2, 4), "few": (6, 12)}
#: What ``--variants`` changes in Iterative PPO, one at a time: its critic's choices, then its improvement's.
VARIANTS: Final[tuple[tuple[str, ...], ...]] = (
    ("critic.td_lambda=0.7",),
    ("critic.loss=mse",),
    ("critic.loss=hl-gauss", "critic.solve_head=false"),
    ("critic.history=0",),
    ("critic.history_weights=true",),
    ("critic.use_logs=false",),
    ("policy.samples_per_state=4",),
    ("policy.fresh_weight=0",),
    ("policy.fresh_weight=1",),
    ("policy.logged_ratio=anchor",),
    ("policy.logged_lambda=1",),
    ("policy.logged_lambda=0.9",),
    ("policy.logged_lambda=0.4",),
    ("policy.history=0",),
    ("policy.log_actions=false",),
    # Fresh responses by Q alone: the method as it is in the paper.
    (
        *("policy.logged_reward=none", "policy.logged_ratio=anchor", "policy.logged_lambda=1"),
        *("policy.log_actions=false", "policy.fresh_weight=1", "policy.samples_per_state=4"),
    ),
)
#: The task and the seeds that it is tuned on; the benchmark's own seeds begin at 1.
TUNED_ON: Final = "questions"
TUNING_SEEDS: Final = (101,)


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        task: a name of `TASKS`.
        method: of `METHODS`.
        regime: of `REGIMES`.
        seed: of the run.
        learning_rate: of `RATES`, as the method's policy takes it.
        passes: of `PASSES`.
        overrides: more keys of the recipe.
    """

    task: str
    method: str
    regime: str
    seed: int
    learning_rate: float
    passes: int
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What makes it another run than others."""
        return json.dumps([*asdict(self).values()])


def recipe_overrides(job: Job) -> list[str]:
    """The recipe of a job, as what it changes in ``learning.yaml``."""
    method = METHODS[job.method]
    iterations, conversations = REGIMES[job.regime]
    return [
        f"seed={job.seed}",
        f"customer._target_=tasks.{job.task}.Customer",
        f"logs._target_=tasks.{job.task}.logs",
        f"logs.conversations={LOGGED}",  # naming another target drops the arguments of the one before
        f"loop.iterations={iterations}",
        f"loop.conversations={conversations}",
        f"critic.epochs={CRITIC_EPOCHS[job.regime]}",
        *method.overrides,
        f"policy.learning_rate={job.learning_rate}",
        f"{method.passes}={job.passes}",
        *job.overrides,
    ]


class Curve(pl.Callback):
    """The mean outcome of every iteration's conversations: the policy's before that iteration improves it."""

    def __init__(self) -> None:
        self.outcomes: list[float] = []

    def on_collect_end(self, loop: IterativePPOLoop) -> None:
        """One more point."""
        self.outcomes.append(mean_outcome(loop.conversations))


def run(job: Job) -> dict[str, Any]:
    """Learns, and gives the mean outcome before, of every iteration's conversations, and after."""
    task = importlib.import_module(f"tasks.{job.task}")
    warnings.simplefilter("ignore")  # Lightning's advice about workers and validation, which is not for such runs
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    method = METHODS[job.method]
    config = compose(str(HERE / "learning.yaml"), recipe_overrides(job))
    assert config.model.scratch is not None, "learning.yaml makes its model from nothing"
    config.model.scratch.vocabulary = list(task.VOCABULARY)
    config.callbacks = {}
    loop = build_loop(config, kept=False)
    method.install(loop)
    started = time.perf_counter()
    curve = Curve()
    loop.callbacks.append(curve)
    if method.online:
        loop.run()
    else:
        offline(loop)
    samples = loop.measurement.samples
    return {
        **asdict(job),
        "before": mean_outcome(samples["before"]),
        "curve": curve.outcomes,
        "after": mean_outcome(samples["after"]),
        "critic": [i.critic for i in loop.summary.iterations],
        "policy": [i.policy for i in loop.summary.iterations],
        "seconds": round(time.perf_counter() - started, 1),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": describe_machine()["processor"],
    }


def offline(loop: IterativePPOLoop) -> None:
    """One iteration on the logs: no customer but those who measure it."""
    loop.tools.place()
    loop._phase("warm-start", loop._warm_start)
    loop._phase("before", lambda: loop._measure("before"))
    loop.fit_critic_only(loop.logs, None)
    loop.improve_only(loop.logs)
    loop._measure("after")


def mean_outcome(conversations: list[Conversation]) -> float:
    """The mean outcome."""
    return statistics.fmean(c.outcome or 0.0 for c in conversations)


def chosen() -> dict[str, dict[str, dict[str, Any]]]:
    """What tuning chose, by regime and method."""
    if not CHOSEN.is_file():
        sys.exit(f"there is no {CHOSEN}: run this with --tune first")
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(CHOSEN.read_text(encoding="utf-8"))["chosen"]
    return found


def run_all(jobs: list[Job], file: Path, workers: int) -> None:
    """Runs what the file does not have yet; every result is appended at once, so that nothing is lost by a stop."""
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {Job(**_job(result)).name for result in read(file)}
    left = [job for job in jobs if job.name not in done]
    print(f"{len(jobs) - len(left)} of {len(jobs)} runs are there", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool, file.open("a", encoding="utf-8") as output:
        for future in as_completed([pool.submit(run, job) for job in left]):
            result = future.result()
            output.write(json.dumps(result) + "\n")
            output.flush()
            named = (str(result[key]) for key in ("task", "regime", "method", "learning_rate", "passes", "seed"))
            print(
                f"{' '.join(named)}: {result['before']:.3f} -> {result['after']:.3f}, {result['seconds']:.0f} s",
                flush=True,
            )


def _job(result: dict[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(value) if key == "overrides" else value
        for key, value in result.items()
        if key in Job.__dataclass_fields__
    }


def read(file: Path) -> list[dict[str, Any]]:
    """All results of a file."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def tune(methods: list[str], regimes: list[str], workers: int) -> None:
    """Every method's grid in every regime; the best mean is chosen."""
    file = RESULTS / "tuning.jsonl"
    jobs = [
        Job(TUNED_ON, method, regime, seed, rate, passes)
        for seed in TUNING_SEEDS
        for regime in regimes
        for method in methods
        for rate, passes in itertools.product(RATES, PASSES[regime])
    ]
    run_all(jobs, file, workers)
    results = read(file)
    best = chosen() if CHOSEN.is_file() else {}
    for regime, method in itertools.product(regimes, methods):
        means = {
            (rate, passes): statistics.fmean(
                r["after"]
                for r in results
                if (r["regime"], r["method"], r["learning_rate"], r["passes"]) == (regime, method, rate, passes)
            )
            for rate, passes in itertools.product(RATES, PASSES[regime])
        }
        rate, passes = max(means, key=lambda key: means[key])
        best.setdefault(regime, {})[method] = {"learning_rate": rate, "passes": passes, "after": means[rate, passes]}
    record = {"task": TUNED_ON, "seeds": TUNING_SEEDS, "machine": describe_machine(), "chosen": best}
    CHOSEN.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(best, indent=2))


def main() -> None:
    """Runs, or tunes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--tune", action="store_true", help=f"try the grid on {TUNED_ON}")
    parser.add_argument("--variants", action="store_true", help="Iterative PPO with something changed, one at a time")
    parser.add_argument("--try", dest="trial", action="store_true", help="one run of each, nothing is written")
    parser.add_argument("--learning-rate", type=float, help="in place of the chosen one")
    parser.add_argument("--passes", type=int, help="in place of the chosen ones")
    parser.add_argument("overrides", nargs="*", help="key=value for the recipe")
    arguments = parser.parse_args()
    if arguments.tune:
        tune(arguments.methods, arguments.regimes, arguments.jobs)
        return
    changes = [tuple(arguments.overrides)]
    if arguments.variants:
        arguments.methods = [OURS]
        changes = [(*arguments.overrides, *variant) for variant in VARIANTS]
    settings = {} if arguments.learning_rate and arguments.passes else chosen()
    jobs = [
        Job(
            task,
            method,
            regime,
            seed,
            arguments.learning_rate or settings[regime][method]["learning_rate"],
            arguments.passes or settings[regime][method]["passes"],
            change,
        )
        for seed in range(1, arguments.seeds + 1)
        for task in arguments.tasks
        for regime in arguments.regimes
        for method in arguments.methods
        for change in changes
    ]
    if not arguments.trial:
        run_all(jobs, RESULTS / "runs.jsonl", arguments.jobs)
        return
    for job in jobs:
        result = run(job)
        curve = " ".join(f"{rate:.2f}" for rate in result["curve"])
        print(f"{job.task} {job.regime} {job.method}: {result['before']:.3f} [{curve}] {result['after']:.3f}", end=" ")
        print(f"in {result['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
