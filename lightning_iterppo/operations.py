"""What the command line does: the loop or a part of it, between a recipe and the files that it reads and writes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger

from lightning_iterppo.build import build_loop, instantiate_named, open_logs
from lightning_iterppo.composition import load_recipe, to_yaml
from lightning_iterppo.config import Recipe
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.conversation_file import ConversationFile
from lightning_iterppo.data.logs import read_conversations, write_conversations
from lightning_iterppo.errors import RunDirectoryError
from lightning_iterppo.evaluation.rates import outcome_rate
from lightning_iterppo.files import replace_directory, write_text_atomically
from lightning_iterppo.loading import pin_start, policy_directory, whole_policy
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.language_model import POLICY, LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.variant_files import ADAPTER, MODEL_CONFIG
from lightning_iterppo.processes import is_first
from lightning_iterppo.run_directory import RECIPE, RunDirectory
from lightning_iterppo.scoring import write_scores
from lightning_iterppo.snapshot import HEAD, load_critic, save_critic
from lightning_iterppo.step_metrics import continue_metrics
from lightning_iterppo.summary import Summary
from lightning_iterppo.trainer import TrainerFactory, barrier, rank

#: In a directory that `fit_critic` wrote: what `score` makes the critic from. Not `RECIPE`, which marks a run.
CRITIC_RECIPE = "critic.yaml"


def train(config: Recipe, run: Path, resume: bool) -> Summary:
    """The whole loop, into ``run``.

    Raises:
        RunDirectoryError: ``run`` holds another run, or, to resume, none.
    """
    if not resume:
        pin_start(config)
        loop = build_loop(config, kept=True)
        _begin_run(loop, config, run)
        return loop.run()
    directory = RunDirectory.open(run)
    config = load_recipe(directory.recipe)
    state = directory.load_state()
    if state is not None and state["modules"].get("started_from") is None:
        config.model.start = None  # all that came of it is in the state
    loop = build_loop(config, kept=True)
    _attach(loop, config, directory, last_step=None if state is None else int(state["steps"]))
    if state is not None:
        loop.load_state_dict(state)
    return loop.run()


def histories_cut(loop: IterativePPOLoop) -> dict[str, float | None]:
    """The share of states whose history did not fit the window, among a command's figures; nothing without one."""
    return {} if loop.renderer.window is None else {"histories_cut": loop.renderer.cuts.share}


def _attach(loop: IterativePPOLoop, config: Recipe, run: RunDirectory, *, last_step: int | None = None) -> None:
    """Lets a loop write into a run directory; step metrics that are there stay up to ``last_step``."""
    loop.run_dir = run
    if loop.talker.delivery is not None:
        loop.talker.delivery.directory = run.engine
    loop.tools.loggers = _loggers(config, run, last_step)


def _loggers(config: Recipe, run: RunDirectory, last_step: int | None) -> list[Logger]:
    if rank() != 0:
        return []
    with continue_metrics(run.metrics, last_step=last_step) as attach:
        loggers: list[Logger] = instantiate_named(config.logger, "logger", Logger, save_dir=str(run.path))
        attach(loggers)
    return loggers


def _begin_run(loop: IterativePPOLoop, config: Recipe, run: Path) -> None:
    """Makes the run's directory: the first process makes it, the others wait for it."""
    directory = RunDirectory.create(run, to_yaml(config)) if is_first() else RunDirectory(run)
    barrier()
    _attach(loop, config, directory)
    if rank() == 0:
        directory.write_summary(loop.summary)


def collect(config: Recipe, output: Path, policy: Path | None, conversations: int | None) -> dict[str, Any]:
    """Conversations under a policy, into a file."""
    count = conversations or config.loop.conversations
    found, more = _talk(config, policy, count, "collect", training=True)
    if rank() == 0:
        write_conversations(output, found)
    return {"conversations": str(output), "collected": asdict(outcome_rate(found)), **more}


def evaluate(config: Recipe, policy: Path | None, conversations: int | None) -> dict[str, Any]:
    """The outcome rate of a policy on customers that training never meets."""
    count = conversations or config.loop.evaluation_conversations
    found, more = _talk(config, policy, count, "after", training=False)
    return {"policy": None if policy is None else str(policy), **asdict(outcome_rate(found)), **more}


def _talk(
    config: Recipe, policy: Path | None, count: int, name: str, *, training: bool
) -> tuple[list[Conversation], dict[str, Any]]:
    """Conversations, and what is to be said of those that failed and of histories that were cut."""
    loop = build_loop(config, kept=False)
    if policy is not None:
        load_policy(loop.language_model, policy)
    found = loop.talk(count, name, training=training)
    for each in found:
        loop.renderer.count_cuts(each)
    failed = loop.summary.failed.get(name)
    figures = {"failed": failed.conversations, "first_failure": failed.first} if failed else {"failed": 0}
    return found, {**figures, **histories_cut(loop)}


def load_policy(model: LanguageModel, path: Path, *, variant: str = POLICY, option: str = "--policy") -> None:
    """Makes a policy on the disk a variant of the model.

    Raises:
        RunDirectoryError: there is none, or it is of another model.
    """
    try:
        model.load_variant(variant, policy_directory(path))
    except (FileNotFoundError, ValueError) as error:
        raise RunDirectoryError(
            f"{option} {path}: {error}; give a checkpoint's policy directory, or a run; for one of another adaptation "
            f"than the recipe's take model.start={path}"
        ) from error


def fit_critic(
    config: Recipe, data: list[Path], validation: list[Path], output: Path, policy: Path | None = None
) -> dict[str, Any]:
    """Q from logs alone, into a directory; its trunk starts from a policy's, or from the recipe's model.

    Args:
        config: the recipe.
        data: files of logs; without any the recipe's own logs are taken, which may be those of a store.
        validation: files of logs to hold out.
        output: the directory.
        policy: whose trunk the critic starts from; None is the recipe's model as it is.

    Raises:
        LogFormatError: a line of a file is not a conversation.
        RunDirectoryError: the directory is not empty, or there is no such policy.
    """
    _refuse_full(output)
    logs = ConversationFile(data) if data else open_logs(config)
    held = ConversationFile(validation) if validation else None
    pin_start(config)
    recipe = to_yaml(config)
    loop = build_loop(without_logs(config), kept=False)
    loop.renderer.room = 0  # nothing is sampled
    _start_from(loop, policy)
    figures = loop.fit_critic_only(logs, held)
    with replace_directory(output) if rank() == 0 else nullcontext() as directory:
        save_critic(directory, loop.language_model, loop.critic)
        if directory is not None:
            write_text_atomically(directory / CRITIC_RECIPE, recipe)
    return {"critic": str(output), **figures}


def score(critic: Path, data: Path, output: Path) -> dict[str, Any]:
    """Q of every agent message of a file of conversations, into a file; in one process.

    Args:
        critic: what `fit_critic` wrote, or a run, or the critic of one of its checkpoints.
        data: the conversations.
        output: one line an agent message; see `write_scores`.

    Raises:
        LogFormatError: a line of the file is not a conversation; nothing has been scored then.
        RunDirectoryError: there is no critic.
    """
    directory, config = _find_critic(critic)
    conversations = ConversationFile(data)
    single_process(config)
    loop = build_loop(without_logs(config), kept=False, talks=False)
    loop.renderer.room = 0
    try:
        load_critic(directory, loop.language_model, loop.critic)
    except (FileNotFoundError, ValueError) as error:
        raise RunDirectoryError(f"{critic}: {error}") from error

    def scored(trees: int, tokens: int) -> None:
        loop.progress.done += trees
        loop.progress.tokens += tokens
        loop.tools.moved()

    with loop.running():
        loop.tools.begin("score", len(conversations), "conversations")
        rows = max(8, config.critic.batch_conversations)
        done = write_scores(loop.critic, loop.renderer, conversations, output, rows=rows, on_batch=scored)
        loop.tools.begin("done")
    figures = {"conversations": done.conversations, "turns": done.turns, "q_mean": done.mean}
    return {"scores": str(output), **figures, **histories_cut(loop)}


def _find_critic(path: Path) -> tuple[Path, Recipe]:
    """A critic's directory and the recipe it was made with: its own, or that of the run that it is of."""
    if (path / CRITIC_RECIPE).is_file():
        return path, load_recipe(path / CRITIC_RECIPE)
    directory = path
    if (path / RECIPE).is_file():
        newest = RunDirectory.open(path).newest_checkpoint()
        if newest is None:
            raise RunDirectoryError(f"{path} has no checkpoint yet")
        directory = newest / "critic"
    elif (path / "critic").is_dir():
        directory = path / "critic"
    run = next((each for each in directory.resolve().parents if (each / RECIPE).is_file()), None)
    if not (directory / HEAD).is_file() or run is None:
        raise RunDirectoryError(f"{path} holds no critic and its recipe; give what fit-critic wrote, or a run")
    return directory, load_recipe(run / RECIPE)


def _start_from(loop: IterativePPOLoop, policy: Path | None) -> None:
    if policy is not None:
        load_policy(loop.language_model, policy)
        loop.start_from_policy()


def _need_same_reading(config: Recipe, critic: Path) -> None:
    """A head says nothing of hidden states that it was not fitted to, and would do so without a complaint."""
    if not (critic / CRITIC_RECIPE).is_file():
        return
    theirs = load_recipe(critic / CRITIC_RECIPE).critic
    for key in ("pooling", "layer", "question"):
        wanted, found = getattr(theirs, key), getattr(config.critic, key)
        if wanted != found:
            wanted, found = ("null" if value is None else value for value in (wanted, found))
            raise RunDirectoryError(
                f"--critic {critic} was fitted with critic.{key}={wanted}, and the recipe has {found}: improve with "
                f'the recipe that it was fitted with, or say "critic.{key}={wanted}"'
            )


def improve(config: Recipe, critic: Path, data: list[Path], run: Path, policy: Path | None = None) -> dict[str, Any]:
    """PPO against a fitted Q on logged states, from a policy or the recipe's model, into a run directory.

    Raises:
        RunDirectoryError: the critic or the policy is none, the critic reads conversations in another way than the
            recipe's, or the run directory is taken.
    """
    _need_same_reading(config, critic)
    logs = read_conversations(data)
    pin_start(config)
    loop = build_loop(config, kept=True)
    _start_from(loop, policy)
    if policy is not None:
        loop.summary.start = str(policy_directory(policy).resolve())
    try:
        load_critic(critic, loop.language_model, loop.critic)
    except (FileNotFoundError, ValueError) as error:
        raise RunDirectoryError(f"--critic {critic}: {error}; give a directory that fit-critic wrote") from error
    _begin_run(loop, config, run)
    return {"run": str(run), **loop.improve_only(logs)}


def export(path: Path, output: Path, iteration: int | None, dtype: str = "float32") -> dict[str, Any]:
    """Merged safetensors of a policy, which transformers loads by itself, with tokenizer and chat template.

    Args:
        path: a run, or the directory of one of its policies.
        output: the directory.
        iteration: whose policy of a run; None is the newest one.
        dtype: of the weights: float32, bfloat16 or float16.

    Raises:
        RunDirectoryError: there is no such policy, or the output is not empty.
    """
    _refuse_full(output)
    source = _policy_to_export(path, iteration)
    policy = whole_policy(source)
    model, tokenizer = policy.model.to(getattr(torch, dtype)), policy.tokenizer
    renderer = ChatRenderer(tokenizer)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = renderer.template  # what it was trained with
    ends = model.generation_config.eos_token_id
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    model.generation_config.eos_token_id = list(dict.fromkeys([*known, renderer.stop_token_id]))
    model.generation_config.pad_token_id = renderer.pad_token_id
    with replace_directory(output) as target:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return {
        "model": str(output),
        "policy": str(source),
        "dtype": dtype,
        "parameters": model.num_parameters(),
        "bytes": sum(file.stat().st_size for file in output.glob("*.safetensors")),
    }


def _policy_to_export(path: Path, iteration: int | None) -> Path:
    if iteration is None and not (path / RECIPE).is_file():
        source = policy_directory(path)
        if not any((source / name).is_file() for name in (ADAPTER, MODEL_CONFIG)):
            raise RunDirectoryError(f"{path} is not a run, and no policy of one; give the directory that train wrote")
        return source
    directory = RunDirectory.open(path)
    found = directory.newest_checkpoint() if iteration is None else directory.checkpoint(iteration)
    if found is None or not (found / "policy").is_dir():
        which = "no checkpoint yet" if iteration is None else f"no checkpoint of iteration {iteration}"
        raise RunDirectoryError(f"{path} has {which}")
    return found / "policy"


def single_process(config: Recipe) -> None:
    """Changes a recipe so that one process on one device does all."""
    config.trainer.num_nodes = 1
    if TrainerFactory(config.trainer).several_processes:
        config.trainer.devices, config.trainer.strategy = 1, "auto"


def without_logs(config: Recipe) -> Recipe:
    """The recipe for what needs no logs of its own."""
    config.logs = {}
    return config


def _refuse_full(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunDirectoryError(f"{path} already exists: choose another with -o")
