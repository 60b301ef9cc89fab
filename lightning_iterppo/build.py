"""From a recipe to a running object: the one place that knows every class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import lightning.pytorch as pl

from lightning_iterppo.composition import instantiate
from lightning_iterppo.config import Recipe
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.critic import QCritic
from lightning_iterppo.customers import Customer
from lightning_iterppo.data.conversation_file import ConversationFile
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.data.trees import check_returns
from lightning_iterppo.errors import ConfigError, CustomerError
from lightning_iterppo.functional.objectives import make_objective
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.judging import at_the_end
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.adaptation import Adaptation, Computing, Kind
from lightning_iterppo.models.backbones import load_backbone
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.scratch import ScratchConfig
from lightning_iterppo.models.window import Window
from lightning_iterppo.policy import PPOPolicy
from lightning_iterppo.settings import LoopSettings
from lightning_iterppo.trainer import TrainerFactory
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
    window = None if config.model.window is None else Window(config.model.window, config.model.window_first)
    renderer = ChatRenderer(model.tokenizer, config.model.system, window)
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
            logged_ratio=policy.logged_ratio,  # type: ignore[arg-type]
            warmup_steps=policy.warmup_steps,
            weight_decay=policy.weight_decay,
            adam_epsilon=policy.adam_epsilon,
            micro_batch=config.trainer.micro_batch,
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
            pooling=critic.pooling,  # type: ignore[arg-type]
            layer=critic.layer,
            micro_batch=config.trainer.micro_batch,
        ),
        warm_start=WarmStart(
            model,
            learning_rate=config.warm_start.learning_rate,
            warmup_steps=config.warm_start.warmup_steps,
            weight_decay=config.warm_start.weight_decay,
            micro_batch=config.trainer.micro_batch,
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
    try:
        return LanguageModel(backbone, adaptation_of(config), computing_of(config))
    except ValueError as error:
        raise ConfigError(f"model.adaptation: {error}") from error


def adaptation_of(config: Recipe) -> Adaptation:
    """What a recipe trains."""
    how = config.model.adaptation
    return Adaptation(
        kind=cast(Kind, how.kind),
        rank=how.rank,
        alpha=how.alpha,
        dropout=how.dropout,
        top_layers=how.top_layers,
        fold=how.fold,
        keep_features=how.keep_features,
    )


def computing_of(config: Recipe) -> Computing:
    """How a recipe's passes are computed."""
    section = config.model
    return Computing(
        share_prefixes=section.share_prefixes,
        trim_padding=section.trim_padding,
        logits_once=section.logits_once,
        checkpointing=section.checkpointing,
        compile=section.compile,
    )


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
    """The conversations for the warm start, in memory; none when the recipe has none.

    Raises:
        LogFormatError: a file's line is not a conversation.
    """
    if "path" in config.logs:
        return read_conversations(config.logs["path"])
    return list(open_logs(config))


def open_logs(config: Recipe) -> Sequence[Conversation]:
    """The same, where they are: those of files and of a store are read when they are asked for.

    Raises:
        LogFormatError: a file's line is not a conversation.
    """
    if not config.logs:
        return []
    if "path" in config.logs:
        return ConversationFile(config.logs["path"])
    found = instantiate(config.logs, "logs", seed=config.seed)
    return found if isinstance(found, Sequence) else list(found)


def _settings(config: Recipe) -> LoopSettings:
    loop, critic, policy = config.loop, config.critic, config.policy
    return LoopSettings(
        iterations=loop.iterations,
        conversations=loop.conversations,
        evaluation_conversations=loop.evaluation_conversations,
        held_out_conversations=loop.held_out_conversations,
        evaluate_every=loop.evaluate_every,
        batch=loop.batch,
        failed_share=loop.failed_share,
        customer_timeout=loop.customer_timeout,
        sampling=_sampling(config),
        gamma=critic.gamma,
        warm_start_epochs=config.warm_start.epochs,
        warm_start_batch=config.warm_start.batch_conversations,
        critic_epochs=critic.epochs,
        critic_logs=critic.use_logs,
        critic_solve_head=critic.solve_head,
        critic_head_prior=critic.head_prior,
        critic_head_trust=critic.head_trust,
        critic_head_turns=critic.head_turns,
        critic_batch=critic.batch_conversations,
        critic_patience=critic.patience,
        critic_td_lambda=critic.td_lambda,
        validation_fraction=critic.validation_fraction,
        history=critic.history,
        history_weights=critic.history_weights,
        rounds=policy.rounds,
        ppo_epochs=policy.ppo_epochs,
        policy_batch=policy.batch_conversations,
        samples_per_state=policy.samples_per_state,
        conversations_per_round=policy.conversations_per_round,
        log_conversations=policy.log_conversations,
        log_actions=policy.log_actions,
        policy_history=policy.history,
        fresh_weight=policy.fresh_weight,
        logged_reward=policy.logged_reward,  # type: ignore[arg-type]
        logged_lambda=policy.logged_lambda,
    )


def _sampling(config: Recipe) -> Sampling:
    return Sampling(config.sampling.temperature, config.sampling.top_p, config.sampling.max_new_tokens)


def build_loop(config: Recipe, *, kept: bool, talks: bool = True) -> IterativePPOLoop:
    """The whole loop of a recipe; nothing is written yet, so that a wrong recipe leaves nothing behind.

    Args:
        config: the recipe.
        kept: whether a run directory will be attached. Without one there are no callbacks that need it.
        talks: whether it may have conversations. Without them nobody's customer has to be there.
    """
    customer, held_out = None, None
    if talks and config.customer:
        customer = customer_factory(config.customer, "customer")
        if config.held_out_customer:
            held_out = customer_factory(config.held_out_customer, "held_out_customer")
    logs = load_logs(config)
    callbacks = instantiate_named(config.callbacks, "callbacks", pl.Callback)
    critic = config.critic
    if critic.use_logs:
        bounds = make_objective(critic.loss, critic.low, critic.high).bounds  # type: ignore[arg-type]
        check_returns(logs, critic.gamma, bounds)
    parts = build_parts(config)
    learnt, estimate = at_the_end(logs, config, parts.renderer) if kept and not config.customer else (logs, None)
    return IterativePPOLoop(
        language_model=parts.model,
        policy=parts.policy,
        critic=parts.critic,
        renderer=parts.renderer,
        customer=customer,
        held_out_customer=held_out,
        settings=_settings(config),
        trainers=parts.trainers,
        logs=learnt,
        estimate=estimate,
        warm_start=parts.warm_start,
        callbacks=[callback for callback in callbacks if kept or not getattr(callback, "needs_run_directory", False)],
        name=config.name,
        seed=config.seed,
    )


def instantiate_named(section: dict[str, Any], where: str, kind: type, **offered: Any) -> list[Any]:
    """The objects of a section of named ones, which are all of one class or its subclasses.

    Args:
        section: name: {_target_: CLASS, …}, or name: None for none.
        where: the section's name, for messages.
        kind: the class.
        **offered: arguments for those that take them.

    Raises:
        ConfigError: one cannot be made, or is of another class.
    """
    found = []
    for name, spec in section.items():
        if spec is None:
            continue
        made = instantiate(spec, f"{where}.{name}", **offered)
        if not isinstance(made, kind):
            raise ConfigError(f"{where}.{name}: {spec['_target_']} is not a {kind.__module__}.{kind.__name__}")
        found.append(made)
    return found
