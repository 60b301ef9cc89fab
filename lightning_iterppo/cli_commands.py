"""One function a command. What needs torch is imported inside, so that `iterppo show` and `--help` start at once."""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType

from lightning_iterppo import cli_output as output
from lightning_iterppo.composition import available_groups, available_recipes, compose, load_recipe, to_yaml
from lightning_iterppo.config import Recipe
from lightning_iterppo.errors import ConfigError, RunDirectoryError
from lightning_iterppo.processes import is_first

#: The run directory that the first process chose, for the processes that it starts: their clocks would choose others.
RUN_VARIABLE = "ITERPPO_RUN"
RECIPE_FILE = "recipe.yaml"
RUNS = Path("runs")
_SIGNS_OF_A_RUN = (RECIPE_FILE, "summary.json", "checkpoints", "conversations")

#: Warnings that are about how we use Lightning on purpose, and say nothing to a user.
_BENIGN = (
    r".*does not have many workers.*",
    r"The number of training batches.*",
    r".*TensorBoard support.*",
    r"Checkpoint directory .* exists and is not empty.*",
    r"Experiment logs directory .* exists and is not empty.*",
    r"GPU available but not used.*",
    r".*LeafSpec.* is deprecated.*",
    r"The `srun` command is available.*",
    r".*find_unused_parameters=True was specified.*",
    r".*sync_dist=True.*",
    r"Found \d+ module\(s\) in eval mode.*",
    r"Total length of `\w+` across ranks is zero.*",
    r"No (negative|positive) samples in targets.*",
    r".*is_gradient_checkpointing.* is deprecated.*",
)


@dataclass
class Job:
    """What the end of the program must know of the command that ran: where it was writing."""

    debug: bool = False
    run: Path | None = None

    @property
    def resumable(self) -> bool:
        """Whether there is a run to go on with."""
        return self.run is not None and (self.run / RECIPE_FILE).is_file()


Command = Callable[[argparse.Namespace, Job], int]


def train(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo train`."""
    if arguments.resume is not None:
        run, config = _resumed(arguments)
    else:
        config = recipe_of(arguments)
        run = arguments.output or _default_run(config.name)
        _need_fresh_run(run)
    job.run = run
    chosen = arguments.resume is None and arguments.output is None
    with _announced(run), _taken(run) if chosen else nullcontext():
        summary = _operations(job).train(config, run, arguments.resume is not None)
    if arguments.json:
        output.say_json(summary.to_json())
    else:
        output.run_end(summary, run)
    return 0


def collect(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo collect`."""
    config = recipe_of(arguments)
    _need_policy(arguments.policy)
    need_fresh_output(arguments.output)
    found = _operations(job).collect(config, arguments.output, arguments.policy, _count(arguments))
    output.figures(found, arguments.json)
    return 0


def fit_critic(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo fit-critic`."""
    config = recipe_of(arguments)
    need_files([*arguments.data, *arguments.validation])
    if not arguments.data and not config.logs:
        raise ConfigError("there are no logs: give --data FILE…, or those of a store, logs=store logs.url=URL")
    _need_policy(arguments.policy)
    need_fresh_output(arguments.output)
    data = (arguments.data, arguments.validation)
    found = _operations(job).fit_critic(config, *data, arguments.output, arguments.policy)
    output.figures(found, arguments.json)
    return 0


def score(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo score`."""
    if not arguments.critic.is_dir():
        raise RunDirectoryError(f"there is no critic {arguments.critic}: `iterppo fit-critic` makes one")
    need_files([arguments.data])
    need_fresh_output(arguments.output)
    found = _operations(job).score(arguments.critic, arguments.data, arguments.output)
    output.figures(found, arguments.json)
    return 0


def improve(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo improve`."""
    config = recipe_of(arguments)
    if not arguments.critic.is_dir():
        raise RunDirectoryError(f"there is no critic {arguments.critic}: `iterppo fit-critic` makes one")
    need_files(arguments.data)
    _need_policy(arguments.policy)
    _need_fresh_run(arguments.output)
    found = _operations(job).improve(config, arguments.critic, arguments.data, arguments.output, arguments.policy)
    output.figures(found, arguments.json)
    return 0


def evaluate(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo evaluate`."""
    config = recipe_of(arguments)
    _need_policy(arguments.policy)
    found = _operations(job).evaluate(config, arguments.policy, _count(arguments))
    output.figures(found, arguments.json)
    return 0


def export(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo export`."""
    if not arguments.run.is_dir():
        raise RunDirectoryError(f"there is no run {arguments.run}")
    need_fresh_output(arguments.output)
    made = _operations(job).export(arguments.run, arguments.output, arguments.iteration, arguments.dtype)
    if arguments.json:
        output.say_json(made)
        return 0
    place = made["model"]
    output.say(
        f"The model is in {place}",
        f"Next: python -c \"from transformers import pipeline; print(pipeline('text-generation', {place!r}))\"",
    )
    return 0


def recipes(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo recipes`."""
    found = available_recipes()
    width = max(len(info.name) for info in found)
    output.say("Recipes, for `iterppo train RECIPE`:")
    output.say(*(f"  {info.name:<{width}}  {info.description}" for info in found))
    groups = available_groups()
    width = max(map(len, groups))
    output.say("", "Groups, for GROUP=OPTION behind the recipe:")
    output.say(*(f"  {group:<{width}}  {', '.join(options)}" for group, options in groups.items()))
    output.say("", "`iterppo show RECIPE` prints all the values of one.")
    return 0


def show(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo show`."""
    output.say(to_yaml(recipe_of(arguments)).rstrip())
    return 0


def doctor(arguments: argparse.Namespace, job: Job) -> int:
    """`iterppo doctor`."""
    from lightning_iterppo.doctor import diagnose, findings_as_json, render

    if arguments.plan:
        return _plan(arguments, job)
    if words := [*filter(None, [arguments.recipe]), *arguments.overrides]:
        raise ConfigError(f"{words[0]!r} is for a plan: iterppo doctor --plan {words[0]}")
    if arguments.probes:
        return _probes(arguments.json, job)
    found = diagnose()
    if arguments.json:
        output.say_json(findings_as_json(found))
    else:
        output.say(render(found))
    return int(any(finding.status == "problem" for finding in found))


def _plan(arguments: argparse.Namespace, job: Job) -> int:
    if arguments.probes:
        raise ConfigError("--plan and --probes are two things: leave one of them out")
    _operations(job)  # which silences Lightning
    from rich.console import Console

    from lightning_iterppo.planning.plan import make_plan, render
    from lightning_iterppo.planning.request import read_request

    request = read_request(arguments.recipe or "shop", arguments.overrides)
    with Console(stderr=True).status("rehearsing, and measuring this machine"):
        plan = make_plan(request)
    if arguments.json:
        output.say_json(plan.to_json())
    else:
        output.say(render(plan))
    return int(not plan.fits)


def _probes(as_json: bool, job: Job) -> int:
    _operations(job)  # which silences Lightning
    from rich.console import Console

    from lightning_iterppo import probes

    results = []
    # On standard error: standard output is for the table, or for JSON alone.
    with Console(stderr=True).status("") as status:
        for number, probe in enumerate(probes.PROBES, start=1):
            status.update(f"probe {number} of {len(probes.PROBES)}: {probe.name}")
            results.append(probes.run(probe))
    if as_json:
        output.say_json(probes.results_as_json(results))
    else:
        output.say(probes.render(results))
    return int(not all(result.passed for result in results))


def quiet(debug: bool) -> None:
    """Before torch and transformers are imported: no logs and bars beside our own display, unless ``--debug``."""
    if debug:
        return
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)
    for message in _BENIGN:
        warnings.filterwarnings("ignore", message=message)
    # Where it is installed, peft imports it for every model, and it says what its own 4-bit products could do faster.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _operations(job: Job) -> ModuleType:
    """The functions that do the work, with torch and Lightning, whose loggers are only there once they are imported."""
    from lightning_iterppo import operations

    if not job.debug:
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
    return operations


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe that a command names; the conversations it is given beside it take the place of the recipe's logs."""
    given: list[str] = arguments.overrides
    files: list[Path] = getattr(arguments, "data", None) or []
    if files and not any(word.startswith(("logs", "data")) for word in given):
        quoted = ",".join('"' + str(file).replace('"', '\\"') + '"' for file in files)
        given = ["logs=file", f"logs.path=[{quoted}]", *given]
    return compose(arguments.recipe or "shop", given)


def _count(arguments: argparse.Namespace) -> int | None:
    count: int | None = arguments.conversations
    if count is not None and count < 1:
        raise ConfigError(f"--conversations is {count}, but it must be at least 1")
    return count


def _resumed(arguments: argparse.Namespace) -> tuple[Path, Recipe]:
    run: Path = arguments.resume
    if arguments.output is not None:
        raise ConfigError(f"--resume goes on in {run}, so -o has no meaning beside it: leave one of the two out")
    _need_run(run)
    if arguments.overrides:
        raise ConfigError(
            f"--resume goes on with the recipe of {run}, so {arguments.overrides[0]} cannot change it: leave it out, "
            f"or begin another run: iterppo train {output.quoted(run / RECIPE_FILE)} {arguments.overrides[0]}"
        )
    config = load_recipe(run / RECIPE_FILE)
    if arguments.recipe not in (None, config.name):
        raise ConfigError(
            f"{run} is a run of {config.name}: --resume goes on with that, leave {arguments.recipe!r} out"
        )
    return run, config


def _default_run(name: str) -> Path:
    if not is_first():
        announced = os.environ.get(RUN_VARIABLE)
        if announced is None:
            raise ConfigError("say -o RUN: processes that a launcher started would each choose a directory of its own")
        return Path(announced)
    place = RUNS / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    free, count = place, 1
    while True:
        try:
            free.mkdir(parents=True)  # It is taken from now on: runs are often begun side by side.
        except FileExistsError:
            count += 1
            free = place.with_name(f"{place.name}_{count}")
        except NotADirectoryError as error:
            raise RunDirectoryError(
                f"{free.parent} cannot hold a run, there is a file in its way: give -o RUN"
            ) from error
        else:
            return free


@contextmanager
def _taken(run: Path) -> Iterator[None]:
    """Gives a directory of `_default_run` back if nothing came of the run."""
    try:
        yield
    finally:
        for place in (run, run.parent, RUNS) if is_first() else ():
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


@contextmanager
def _announced(run: Path) -> Iterator[None]:
    """Tells the processes that Lightning will start, which read the same command line, where the run is."""
    before = os.environ.get(RUN_VARIABLE)
    os.environ[RUN_VARIABLE] = str(run)
    try:
        yield
    finally:
        if before is None:
            del os.environ[RUN_VARIABLE]
        else:
            os.environ[RUN_VARIABLE] = before


def _need_run(run: Path) -> None:
    if (run / RECIPE_FILE).is_file():
        return
    if not run.exists():
        raise RunDirectoryError(f"there is no run {run}")
    inside = sorted(path.parent for path in run.glob(f"*/{RECIPE_FILE}")) if run.is_dir() else []
    hint = f"; did you mean {inside[-1]}?" if inside else ""
    raise RunDirectoryError(f"{run} is not a run: it has no {RECIPE_FILE}{hint}")


def _need_fresh_run(run: Path) -> None:
    if not is_first():
        return  # The first process has looked, and may have begun to write.
    if run.exists() and not run.is_dir():
        raise RunDirectoryError(f"{run} is a file: choose another -o")
    if any((run / sign).exists() for sign in _SIGNS_OF_A_RUN):
        raise RunDirectoryError(
            f"{run} already holds a run: go on with `iterppo train --resume {output.quoted(run)}`, or choose another -o"
        )


def need_fresh_output(path: Path) -> None:
    """Nothing is overwritten.

    Raises:
        RunDirectoryError: there is something.
    """
    if not is_first():
        return
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise RunDirectoryError(f"{path} is there already and would be overwritten: remove it, or choose another -o")


def need_files(paths: list[Path]) -> None:
    """All are there.

    Raises:
        ConfigError: one is not.
    """
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"there is no file {path}")


def _need_policy(policy: Path | None) -> None:
    if policy is None:
        return
    if not policy.is_dir():
        raise RunDirectoryError(f"there is no policy {policy}: give a run, or the directory of one of its policies")
