"""From a recipe to a running object: the one place that knows every class. The command line calls these functions."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from lightning_iterppo.composition import instantiate, load_recipe, to_yaml
from lightning_iterppo.config import Recipe
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.critic import QCritic
from lightning_iterppo.customers import Customer
from lightning_iterppo.data.logs import read_conversations, write_conversations
from lightning_iterppo.data.turns import check_returns
from lightning_iterppo.errors import ConfigError, CustomerError, RunDirectoryError
from lightning_iterppo.evaluation.rates import outcome_rate
from lightning_iterppo.files import replace_directory
from lightning_iterppo.functional.objectives import make_objective
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.backbones import load_backbone
from lightning_iterppo.models.language_model import POLICY, Adaptation, LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.scratch import ScratchConfig
from lightning_iterppo.policy import PPOPolicy
from lightning_iterppo.run_directory import RunDirectory
from lightning_iterppo.settings import LoopSettings
from lightning_iterppo.snapshot import load_critic, save_critic
from lightning_iterppo.step_metrics import continue_metrics
from lightning_iterppo.summary import Summary
from lightning_iterppo.trainer import TrainerFactory, barrier, rank
from lightning_iterppo.warm_start import WarmStart


@dataclass(frozen=True)
class Parts:
    """The modules of a recipe."""

    model: LanguageModel
    renderer: ChatRenderer
    policy: PPOPolicy
    critic: QCritic
    warm_start: WarmStart
    trainers: TrainerFactory


def build_parts(config: Recipe) -> Parts:
    """The models and modules of a recipe; other processes of a strategy are started first.

    Raises:
        ModelNotFoundError: the language model is not to be had.
        ConfigError: a number does not fit the model.
    """
    trainers = TrainerFactory(config.trainer)
    trainers.launch()
    pl.seed_everything(config.seed, verbose=False)
    model = load_language_model(config)
    renderer = ChatRenderer(model.tokenizer, config.model.system)
    policy, critic = config.policy, config.critic
    return Parts(
        model=model,
        renderer=renderer,
        policy=PPOPolicy(
            model,
            learning_rate=policy.learning_rate,
            value_learning_rate=policy.value_learning_rate,
            clip=policy.clip,
            value_clip=policy.value_clip,
            gae_lambda=policy.gae_lambda,
            kl_coefficient=policy.kl_coefficient,
            kl_reference_coefficient=policy.kl_reference_coefficient,
            kl_stop=policy.kl_stop,
            value_coefficient=policy.value_coefficient,
            entropy_coefficient=policy.entropy_coefficient,
            whiten=policy.whiten,
            whiten_floor=policy.whiten_floor,
            warmup_steps=policy.warmup_steps,
            weight_decay=policy.weight_decay,
            adam_epsilon=policy.adam_epsilon,
        ),
        critic=QCritic(
            model,
            learning_rate=critic.learning_rate,
            head_learning_rate=critic.head_learning_rate,
            warmup_steps=critic.warmup_steps,
            weight_decay=critic.weight_decay,
            loss=critic.loss,  # type: ignore[arg-type]
            low=critic.low,
            high=critic.high,
            heads=critic.heads,
            pessimism=critic.pessimism,
        ),
        warm_start=WarmStart(
            model,
            learning_rate=config.warm_start.learning_rate,
            warmup_steps=config.warm_start.warmup_steps,
            weight_decay=config.warm_start.weight_decay,
        ),
        trainers=trainers,
    )


def load_language_model(config: Recipe) -> LanguageModel:
    """The backbone of a recipe with its adaptation."""
    section = config.model
    scratch = None if section.scratch is None else ScratchConfig(**asdict(section.scratch))
    name = section.id if scratch is None else "scratch"
    # Trained weights are float32: loading them as anything else would round them first.
    dtype = "float32" if section.adaptation.kind == "full" else section.dtype
    backbone = load_backbone(name, dtype=dtype, scratch=scratch, seed=config.seed)
    how = section.adaptation
    try:
        return LanguageModel(
            backbone,
            Adaptation(
                kind="full" if how.kind == "full" else "lora",
                rank=how.rank,
                alpha=how.alpha,
                dropout=how.dropout,
                top_layers=how.top_layers,
                fold=how.fold,
            ),
        )
    except ValueError as error:
        raise ConfigError(f"model.adaptation: {error}") from error


def customer_factory(spec: dict[str, Any], where: str) -> Callable[[], Customer]:
    """Makes customers; the first one is made at once, so that a wrong one is found before any work.

    Raises:
        ConfigError: the class cannot be made.
        CustomerError: it has not the methods of a customer.
    """
    make = cast(Callable[[], Customer], partial(instantiate, spec, where))
    first = make()
    missing = [name for name in ("reset", "reply") if not callable(getattr(first, name, None))]
    if missing:
        raise CustomerError(
            f"{where}: {spec['_target_']} has no method {missing[0]}; a customer needs reset(seed) and reply(history)"
        )
    return make


def load_logs(config: Recipe) -> list[Conversation]:
    """The conversations for the warm start; none when the recipe has none.

    Raises:
        LogFormatError: a file's line is not a conversation.
    """
    if not config.logs:
        return []
    if "path" in config.logs:
        return read_conversations(config.logs["path"])
    found: list[Conversation] = list(instantiate(config.logs, "logs", seed=config.seed))
    return found


def _settings(config: Recipe) -> LoopSettings:
    loop, critic, policy = config.loop, config.critic, config.policy
    return LoopSettings(
        iterations=loop.iterations,
        conversations=loop.conversations,
        evaluation_conversations=loop.evaluation_conversations,
        held_out_conversations=loop.held_out_conversations,
        evaluate_every=loop.evaluate_every,
        batch=loop.batch,
        sampling=_sampling(config),
        gamma=critic.gamma,
        warm_start_epochs=config.warm_start.epochs,
        warm_start_batch=config.warm_start.batch_conversations,
        critic_epochs=critic.epochs,
        critic_logs=critic.use_logs,
        critic_solve_head=critic.solve_head,
        critic_head_prior=critic.head_prior,
        critic_head_trust=critic.head_trust,
        critic_batch=critic.batch_conversations,
        critic_patience=critic.patience,
        critic_td_lambda=critic.td_lambda,
        validation_fraction=critic.validation_fraction,
        history=critic.history,
        rounds=policy.rounds,
        ppo_epochs=policy.ppo_epochs,
        policy_batch=policy.batch_conversations,
        samples_per_state=policy.samples_per_state,
        conversations_per_round=policy.conversations_per_round,
        log_conversations=policy.log_conversations,
        logged_reward=policy.logged_reward,  # type: ignore[arg-type]
    )


def _sampling(config: Recipe) -> Sampling:
    return Sampling(config.sampling.temperature, config.sampling.top_p, config.sampling.max_new_tokens)


def build_loop(config: Recipe, *, kept: bool) -> IterativePPOLoop:
    """The whole loop of a recipe; nothing is written yet, so that a wrong recipe leaves nothing behind.

    Args:
        config: the recipe.
        kept: whether a run directory will be attached. Without one there are no callbacks that need it.
    """
    customer = customer_factory(config.customer, "customer")
    held_out = customer_factory(config.held_out_customer, "held_out_customer") if config.held_out_customer else None
    logs = load_logs(config)
    callbacks = _named(config.callbacks, "callbacks", pl.Callback)
    critic = config.critic
    if critic.use_logs:
        bounds = make_objective(critic.loss, critic.low, critic.high).bounds  # type: ignore[arg-type]
        check_returns(logs, critic.gamma, bounds)
    parts = build_parts(config)
    return IterativePPOLoop(
        language_model=parts.model,
        policy=parts.policy,
        critic=parts.critic,
        renderer=parts.renderer,
        customer=customer,
        held_out_customer=held_out,
        settings=_settings(config),
        trainers=parts.trainers,
        logs=logs,
        warm_start=parts.warm_start,
        callbacks=[callback for callback in callbacks if kept or not getattr(callback, "needs_run_directory", False)],
        name=config.name,
        seed=config.seed,
    )


def _attach(loop: IterativePPOLoop, config: Recipe, run: RunDirectory, *, last_step: int | None = None) -> None:
    """Lets a loop write into a run directory; step metrics that are there stay up to ``last_step``."""
    loop.run_dir = run
    loop.tools.loggers = _loggers(config, run, last_step)


def _named(section: dict[str, Any], where: str, kind: type, **offered: Any) -> list[Any]:
    found = []
    for name, spec in section.items():
        if spec is None:
            continue
        made = instantiate(spec, f"{where}.{name}", **offered)
        if not isinstance(made, kind):
            raise ConfigError(f"{where}.{name}: {spec['_target_']} is not a {kind.__module__}.{kind.__name__}")
        found.append(made)
    return found


def _loggers(config: Recipe, run: RunDirectory, last_step: int | None) -> list[Logger]:
    if rank() != 0:
        return []
    with continue_metrics(run.metrics, last_step=last_step) as attach:
        loggers: list[Logger] = _named(config.logger, "logger", Logger, save_dir=str(run.path))
        attach(loggers)
    return loggers


# -- what the command line calls -----------------------------------------------------------------------------------


def train(config: Recipe, run: Path, resume: bool) -> Summary:
    """The whole loop, into ``run``.

    Raises:
        RunDirectoryError: ``run`` holds another run, or, to resume, none.
    """
    if not resume:
        loop = build_loop(config, kept=True)
        _begin_run(loop, config, run)
        return loop.run()
    directory = RunDirectory.open(run)
    config = load_recipe(directory.recipe)
    state = directory.load_state()
    loop = build_loop(config, kept=True)
    _attach(loop, config, directory, last_step=None if state is None else int(state["steps"]))
    if state is not None:
        loop.load_state_dict(state)
    return loop.run()


def _begin_run(loop: IterativePPOLoop, config: Recipe, run: Path) -> None:
    """Makes the run's directory: the first process makes it, the others wait for it."""
    directory = RunDirectory(run) if _is_child_process() else RunDirectory.create(run, to_yaml(config))
    barrier()
    _attach(loop, config, directory)
    if rank() == 0:
        directory.write_summary(loop.summary)


def _is_child_process() -> bool:
    return os.environ.get("LOCAL_RANK", "0") != "0" or os.environ.get("RANK", "0") != "0"


def collect(config: Recipe, output: Path, policy: Path | None, conversations: int | None) -> dict[str, Any]:
    """Conversations under a policy, into a file."""
    count = conversations or config.loop.conversations
    found = _talk(config, policy, count, "collect", training=True)
    if rank() == 0:
        write_conversations(output, found)
    return {"conversations": str(output), "collected": asdict(outcome_rate(found))}


def evaluate(config: Recipe, policy: Path | None, conversations: int | None) -> dict[str, Any]:
    """The outcome rate of a policy on customers that training never meets."""
    count = conversations or config.loop.evaluation_conversations
    found = _talk(config, policy, count, "after", training=False)
    return {"policy": None if policy is None else str(policy), **asdict(outcome_rate(found))}


def _talk(config: Recipe, policy: Path | None, count: int, name: str, *, training: bool) -> list[Conversation]:
    loop = build_loop(config, kept=False)
    if policy is not None:
        _load_policy(loop.language_model, policy)
    return loop.talk(count, name, training=training)


def _policy_directory(path: Path) -> Path:
    """A policy's own directory, from it, from a checkpoint, or from a run (its newest checkpoint)."""
    if (path / "policy").is_dir():
        return path / "policy"
    if (path / "recipe.yaml").is_file():
        newest = RunDirectory.open(path).newest_checkpoint()
        if newest is None:
            raise RunDirectoryError(f"{path} has no checkpoint yet")
        return newest / "policy"
    return path


def _load_policy(model: LanguageModel, path: Path) -> None:
    try:
        model.load_variant(POLICY, _policy_directory(path))
    except (FileNotFoundError, ValueError) as error:
        raise RunDirectoryError(f"--policy {path}: {error}; give a checkpoint's policy directory, or a run") from error


def fit_critic(config: Recipe, data: list[Path], validation: list[Path], output: Path) -> dict[str, Any]:
    """Q from logs alone, into a directory.

    Raises:
        LogFormatError: a line of a file is not a conversation.
        RunDirectoryError: the directory is not empty.
    """
    _refuse_full(output)
    logs = read_conversations(data)
    held = read_conversations(validation) if validation else None
    loop = build_loop(_without_logs(config), kept=False)
    figures = loop.fit_critic_only(logs, held)
    if rank() == 0:
        with replace_directory(output) as directory:
            save_critic(directory, loop.language_model, loop.critic)
    return {"critic": str(output), **figures}


def improve(config: Recipe, critic: Path, data: list[Path], run: Path) -> dict[str, Any]:
    """PPO against a fitted Q on logged states, into a run directory.

    Raises:
        RunDirectoryError: the critic is none, or the run directory is taken.
    """
    logs = read_conversations(data)
    loop = build_loop(config, kept=True)
    try:
        load_critic(critic, loop.language_model, loop.critic)
    except (FileNotFoundError, ValueError) as error:
        raise RunDirectoryError(f"--critic {critic}: {error}; give a directory that fit-critic wrote") from error
    _begin_run(loop, config, run)
    return {"run": str(run), **loop.improve_only(logs)}


def export(run: Path, output: Path, iteration: int | None) -> Path:
    """Merged safetensors of a run's policy, which transformers loads by itself.

    Raises:
        RunDirectoryError: it is not a run, it has no such checkpoint, or the output is not empty.
    """
    directory = RunDirectory.open(run)
    _refuse_full(output)
    source = directory.newest_checkpoint() if iteration is None else directory.checkpoint(iteration)
    if source is None or not (source / "policy").is_dir():
        which = "no checkpoint yet" if iteration is None else f"no checkpoint of iteration {iteration}"
        raise RunDirectoryError(f"{run} has {which}")
    config = load_recipe(directory.recipe)
    # Merged in float32: adding an adapter to bfloat16 weights would round most of it away.
    config.model.dtype = "float32"
    model = load_language_model(config)
    model.load_variant(POLICY, source / "policy")
    with replace_directory(output) as target:
        model.save_merged(POLICY, target)
    return output


def _without_logs(config: Recipe) -> Recipe:
    config.logs = {}
    return config


def _refuse_full(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunDirectoryError(f"{path} already exists: choose another with -o")
