"""From a recipe to a running object: the one place that knows every class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import lightning.pytorch as pl

from lightning_iterppo.composition import instantiate
from lightning_iterppo.config import Recipe
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.critic import QCritic
from lightning_iterppo.customers import Customer
from lightning_iterppo.customers.chat.local import ModelHost
from lightning_iterppo.data.conversation_file import ConversationFile
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.data.trees import check_returns
from lightning_iterppo.delivery import Delivery
from lightning_iterppo.errors import ConfigError, CustomerError
from lightning_iterppo.functional.objectives import make_objective
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.judging import at_the_end
from lightning_iterppo.loading import load_language_model
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer, longest_text
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
    longest, room = longest_text(model.causal_lm.config), config.sampling.max_new_tokens
    renderer = ChatRenderer(model.tokenizer, config.model.system, window, limit=longest, room=room)
    policy, critic = config.policy, config.critic
    parts = Parts(
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
            pooling=critic.pooling,  # type: ignore[arg-type]
            layer=critic.layer,
            question=None if critic.question is None else renderer.question_ids(critic.question),
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
    if trainers.sharded:
        model.shard(trainers.mesh(), heads=[parts.policy.value_head, parts.critic.head])
    return parts


def customer_factory(spec: dict[str, Any], where: str, **offered: Any) -> Callable[[], Customer]:
    """Makes customers; the first one is made at once, so that a wrong one is found before any work.

    Args:
        spec: the recipe's section.
        where: its name.
        **offered: arguments for a class that takes them.

    Raises:
        ConfigError: the class cannot be made.
        CustomerError: it has not the methods of a customer.
    """
    make = cast(Callable[[], Customer], partial(instantiate, spec, where, **offered))
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
        overlap=loop.overlap,
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
    if customer is not None:
        # Once more, now that there is a model: it may play the customer too.
        host = ModelHost(parts.model, parts.renderer)
        customer = customer_factory(config.customer, "customer", host=host)
        if held_out is not None:
            held_out = customer_factory(config.held_out_customer, "held_out_customer", host=host)
        if config.loop.overlap and host.plays:
            raise ConfigError("loop.overlap trains while customers talk, but the same weights play them: make it false")
    learnt, estimate = at_the_end(logs, config, parts.renderer) if kept and not config.customer else (logs, None)
    loop = IterativePPOLoop(
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
        delivery=_delivery(config, parts.model) if talks and config.customer else None,
        warm_start=parts.warm_start,
        callbacks=[callback for callback in callbacks if kept or not getattr(callback, "needs_run_directory", False)],
        name=config.name,
        seed=config.seed,
    )
    loop.summary.start = config.model.start
    return loop


def _delivery(config: Recipe, model: LanguageModel) -> Delivery | None:
    """What gives the policy to the recipe's server, if it has one.

    Raises:
        ConfigError: the server cannot be made, or does not fit the adaptation.
    """
    if not config.engine:
        return None
    server = instantiate(config.engine, "engine")
    missing = [name for name in ("takes", "load", "engine") if not hasattr(server, name)]
    if missing:
        raise ConfigError(
            f"engine: {config.engine['_target_']} has no {missing[0]}; see generation.engine.PolicyServer for what a "
            "server needs"
        )

    def whole() -> LanguageModel:
        # In float32, whatever is trained beside: adding an adapter to bfloat16 weights would round most of it away.
        return load_language_model(replace(config, model=replace(config.model, dtype="float32")))

    return Delivery(server, model, whole)


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
