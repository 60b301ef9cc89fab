"""What a recipe's values must be, beyond their types: every range in one table, and the open sections' form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning_iterppo.config import Recipe, TrainerConfig
from lightning_iterppo.data.store.urls import holds_password, without_password
from lightning_iterppo.errors import ConfigError

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
DTYPES = ("auto", "float32", "bfloat16", "nf4")
ADAPTATIONS = ("lora", "dora", "full")
CRITIC_LOSSES = ("bce", "mse", "hl-gauss")
POOLINGS = ("last", "mean")
LOGGED_RATIOS = ("anchor", "round")
LOGGED_REWARDS = ("return", "q", "mix", "none")
# Of Lightning's, those that leave the trained weights in float32: a step of Adam's is smaller than what half precision
# can add to a weight. Frozen weights have a type of their own, `model.dtype`.
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")
# What DeepSpeed runs on under Lightning, and the precisions that do not scale the loss.
DEEPSPEED_ACCELERATORS = ("gpu", "cuda")
DEEPSPEED_PRECISIONS = ("32-true", "bf16-mixed", "32", "bf16")

Test = Callable[[Any], bool]


def _at_least(least: float) -> tuple[Test, str]:
    return lambda value: value >= least, f"at least {least:g}"


def _one_of(names: tuple[str, ...]) -> tuple[Test, str]:
    return lambda value: value in names, "one of " + ", ".join(names)


_POSITIVE: tuple[Test, str] = (lambda value: value > 0, "more than 0")
_BELOW_ONE: tuple[Test, str] = (lambda value: 0 <= value < 1, "at least 0 and less than 1")
_INSIDE: tuple[Test, str] = (lambda value: 0 < value < 1, "more than 0 and less than 1")
_UP_TO_ONE: tuple[Test, str] = (lambda value: 0 < value <= 1, "more than 0 and at most 1")
_CLOSED: tuple[Test, str] = (lambda value: 0 <= value <= 1, "from 0 to 1")

#: Every range in one place: key, test, and how the error message says it. A value of null is not tested.
_RULES: dict[str, tuple[Test, str]] = {
    "seed": _at_least(0),
    "model.dtype": _one_of(DTYPES),
    "model.scratch.hidden_size": _at_least(1),
    "model.scratch.layers": _at_least(1),
    "model.scratch.heads": _at_least(1),
    "model.scratch.max_length": _at_least(16),
    "model.window": _at_least(16),
    "model.window_first": _at_least(0),
    "model.adaptation.kind": _one_of(ADAPTATIONS),
    "model.adaptation.rank": _at_least(1),
    "model.adaptation.alpha": _at_least(1),
    "model.adaptation.dropout": _BELOW_ONE,
    "model.adaptation.top_layers": _at_least(1),
    "sampling.temperature": _at_least(0),
    "sampling.top_p": _UP_TO_ONE,
    "sampling.max_new_tokens": _at_least(1),
    "warm_start.epochs": _at_least(0),
    "warm_start.learning_rate": _POSITIVE,
    "warm_start.warmup_steps": _at_least(0),
    "warm_start.weight_decay": _at_least(0),
    "warm_start.batch_conversations": _at_least(1),
    "critic.loss": _one_of(CRITIC_LOSSES),
    "critic.gamma": _CLOSED,
    "critic.td_lambda": _CLOSED,
    "critic.epochs": _at_least(0),
    "critic.learning_rate": _POSITIVE,
    "critic.head_learning_rate": _POSITIVE,
    "critic.warmup_steps": _at_least(0),
    "critic.weight_decay": _at_least(0),
    "critic.batch_conversations": _at_least(1),
    "critic.validation_fraction": _INSIDE,
    "critic.patience": _at_least(1),
    "critic.history": _at_least(0),
    "critic.pooling": _one_of(POOLINGS),
    "critic.layer": _at_least(1),
    "critic.question": (lambda value: bool(str(value).strip()), "some text, or null"),
    "critic.head_prior": _POSITIVE,
    "critic.head_turns": _at_least(1),
    "critic.head_trust": (lambda value: 0 < value <= 1, "more than 0 and at most 1"),
    "policy.clip": _POSITIVE,
    "policy.learning_rate": _POSITIVE,
    "policy.value_learning_rate": _POSITIVE,
    "policy.value_clip": _POSITIVE,
    "policy.warmup_steps": _at_least(0),
    "policy.weight_decay": _at_least(0),
    "policy.adam_epsilon": _POSITIVE,
    "policy.ppo_epochs": _at_least(1),
    "policy.batch_conversations": _at_least(1),
    "policy.gae_lambda": _CLOSED,
    "policy.kl_coefficient": _at_least(0),
    "policy.kl_reference_coefficient": _at_least(0),
    "policy.kl_stop": _POSITIVE,
    "policy.whiten_floor": _POSITIVE,
    "policy.value_coefficient": _at_least(0),
    "policy.entropy_coefficient": _at_least(0),
    "policy.logged_reward": _one_of(LOGGED_REWARDS),
    "policy.logged_lambda": _CLOSED,
    "policy.logged_ratio": _one_of(LOGGED_RATIOS),
    "policy.fresh_weight": _at_least(0),
    "policy.samples_per_state": _at_least(1),
    "policy.rounds": _at_least(1),
    "policy.history": _at_least(0),
    "policy.log_conversations": _at_least(0),
    "policy.conversations_per_round": _at_least(1),
    "loop.iterations": _at_least(1),
    # Two, because the critic holds whole conversations out.
    "loop.conversations": _at_least(2),
    "loop.evaluation_conversations": _at_least(0),
    "loop.held_out_conversations": _at_least(0),
    "loop.judge_fraction": (lambda value: 0 <= value < 1, "at least 0 and less than 1"),
    "loop.evaluate_every": _at_least(0),
    "loop.batch": _at_least(1),
    "loop.failed_share": (lambda value: 0 <= value < 1, "at least 0 and less than 1"),
    "loop.customer_timeout": _POSITIVE,
    "trainer.accelerator": _one_of(ACCELERATORS),
    "trainer.precision": _one_of(PRECISIONS),
    "trainer.gradient_clip_val": _POSITIVE,
    "trainer.accumulate_grad_batches": _at_least(1),
    "trainer.micro_batch": (
        lambda value: value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1),
        "a whole number of at least 1, auto or null",
    ),
    "trainer.num_nodes": _at_least(1),
    "trainer.threads": _at_least(1),
}


def validate(recipe: Recipe) -> None:
    """Tests the ranges and the open sections.

    Raises:
        ConfigError: naming the first key that is wrong, its value, and what it must be.
    """
    for key, (test, expected) in _RULES.items():
        value: Any = recipe
        for part in key.split("."):
            value = None if value is None else getattr(value, part)
        if value is not None and not (test(value) and value != math.inf):
            raise ConfigError(f"{key} is {value}, but it must be {expected}")
    if not recipe.name or set(recipe.name) & set("/\\") or recipe.name.strip(".") == "":
        raise ConfigError(f"name is {recipe.name!r}, but it must be a name that can be a folder's")
    if recipe.model.adaptation.kind == "full" and recipe.model.adaptation.top_layers is not None:
        raise ConfigError("model.adaptation.top_layers is for lora and dora; full trains every layer: make it null")
    if recipe.model.dtype == "nf4" and recipe.model.adaptation.kind == "full":
        raise ConfigError("model.dtype nf4 is for weights that do not train, but model.adaptation is full: take lora")
    critic = recipe.critic
    if not critic.low < critic.high:
        raise ConfigError(f"critic.low is {critic.low:g}, but it must be below critic.high, which is {critic.high:g}")
    if critic.loss == "bce" and (critic.low, critic.high) != (0, 1):
        raise ConfigError(
            f"critic.loss bce fits returns from 0 to 1, but critic.low is {critic.low:g} and critic.high "
            f"{critic.high:g}: take critic.loss=mse or hl-gauss"
        )
    if critic.loss == "hl-gauss" and (critic.solve_head or critic.epochs == 0):
        raise ConfigError(
            "critic.loss hl-gauss has no head that can be solved for: add critic.solve_head=false and critic.epochs=4"
        )
    if critic.td_lambda < 1 and critic.epochs == 0:
        raise ConfigError("critic.td_lambda is for tuning the trunk, but critic.epochs is 0: raise it, or leave λ at 1")
    if critic.history_weights and (critic.history == 0 or critic.epochs == 0):
        raise ConfigError(
            "critic.history_weights is for earlier iterations' conversations, but critic.history or critic.epochs is 0"
        )
    policy = recipe.policy
    if policy.logged_lambda < 1 and policy.logged_reward not in ("return", "mix"):
        raise ConfigError(
            "policy.logged_lambda is for what logged actions earned, but policy.logged_reward is "
            f"{policy.logged_reward}: take return or mix, or leave λ at 1"
        )
    if policy.logged_reward == "none":
        for key, default in (("logged_ratio", "anchor"), ("log_actions", False), ("fresh_weight", 1.0)):
            if getattr(policy, key) != default:
                raise ConfigError(
                    f"policy.{key} is {getattr(policy, key)}, which is about logged actions, but policy.logged_reward "
                    "is none: take return, mix or q"
                )
    scratch = recipe.model.scratch
    if recipe.model.id == "scratch" and (scratch is None or not scratch.vocabulary):
        raise ConfigError("model.id is scratch, but model.scratch.vocabulary has no words: list them, or model=scratch")
    if recipe.model.id != "scratch" and scratch is not None:
        raise ConfigError(f"model.scratch is for model.id scratch, but that is {recipe.model.id}: add model.id=scratch")
    if scratch is not None and scratch.hidden_size % (2 * scratch.heads):
        raise ConfigError(
            f"model.scratch.hidden_size is {scratch.hidden_size}, but it must be a multiple of twice the heads "
            f"({2 * scratch.heads})"
        )
    if recipe.trainer.strategy == "fsdp" and recipe.model.dtype == "nf4":
        raise ConfigError("model.dtype nf4 has weights that trainer.strategy fsdp cannot shard: take bfloat16, or ddp")
    if recipe.trainer.strategy == "deepspeed" and recipe.model.compile:
        raise ConfigError(
            "model.compile is true, but trainer.strategy deepspeed adds gradients up in the order in which a process "
            "has them, which compiled layers may change: make it false, or take ddp"
        )
    _validate_trainer(recipe.trainer)
    _validate_open(recipe)


def _validate_trainer(trainer: TrainerConfig) -> None:
    devices, strategy = trainer.devices, trainer.strategy
    numbers = devices if isinstance(devices, list) else [devices]
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in numbers) and numbers != [] and devices != 0
    if not whole and not isinstance(devices, str):
        raise ConfigError(f"trainer.devices is {devices}, but it must be a number, a list of numbers, or auto")
    name = str(strategy.get("_target_")) if isinstance(strategy, dict) else str(strategy)
    if name == "deepspeed":
        _validate_deepspeed(trainer)
    elif name != "fsdp" and any(sharded in name.lower() for sharded in ("fsdp", "deepspeed", "modelparallel")):
        raise ConfigError(
            f"trainer.strategy is {name}, which shards the weights, or rounds them, in its own way: take fsdp, which "
            "shards them in the library's, or deepspeed, which is ZeRO's stage 2 and leaves them as they are, or ddp"
        )
    if name == "fsdp" and trainer.micro_batch == "auto":
        raise ConfigError(
            "trainer.micro_batch auto measures each process by itself, and with trainer.strategy fsdp all have to take "
            "the same steps: give a number"
        )
    if isinstance(strategy, dict):
        _need_target("trainer.strategy", strategy)
    elif not isinstance(strategy, str):
        raise ConfigError(f"trainer.strategy is {strategy}, but it must be a name or {{_target_: CLASS, …}}")


def _validate_deepspeed(trainer: TrainerConfig) -> None:
    if trainer.accelerator not in DEEPSPEED_ACCELERATORS:
        raise ConfigError(
            f"trainer.strategy deepspeed is for GPUs of CUDA, but trainer.accelerator is {trainer.accelerator}: make "
            "it gpu, or take ddp"
        )
    if trainer.precision not in DEEPSPEED_PRECISIONS:
        raise ConfigError(
            f"trainer.precision is {trainer.precision}, which trainer.strategy deepspeed does not scale gradients for: "
            "take bf16-mixed or 32-true"
        )
    if trainer.accumulate_grad_batches > 1:
        # Lightning and DeepSpeed each divide by it, and an epoch's last batches would wait for the next one's.
        raise ConfigError(
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, but with trainer.strategy "
            "deepspeed it must be 1: raise the batch_conversations, and trainer.micro_batch saves the memory"
        )
    if isinstance(trainer.devices, list) and trainer.devices != list(range(len(trainer.devices))):
        raise ConfigError(
            f"trainer.devices is {trainer.devices}, but trainer.strategy deepspeed takes the first GPUs: give their "
            f"number, and choose them by CUDA_VISIBLE_DEVICES={','.join(map(str, trainer.devices))}"
        )


def _validate_open(recipe: Recipe) -> None:
    if recipe.customer:
        _need_target("customer", recipe.customer)
    elif not recipe.logs:
        raise ConfigError(
            "the recipe has no customer and no logs: choose a customer (customer=shop), name a class "
            "(customer._target_=…), or learn from logs alone (data=logs data.path=FILE)"
        )
    if recipe.held_out_customer:
        _need_target("held_out_customer", recipe.held_out_customer)
    elif recipe.loop.held_out_conversations:
        raise ConfigError(
            f"loop.held_out_conversations is {recipe.loop.held_out_conversations}, but there is no held_out_customer: "
            "make it 0 or name one (held_out_customer._target_=…)"
        )
    _validate_engine(recipe)
    _validate_logs(recipe.logs)
    for key, spec in (("logs", recipe.logs), *((f"callbacks.{name}", each) for name, each in recipe.callbacks.items())):
        _keep_no_password(key, spec)
    for section, entries in (("logger", recipe.logger), ("callbacks", recipe.callbacks)):
        for name, spec in entries.items():
            if spec is None:
                continue
            if not isinstance(spec, dict):
                raise ConfigError(f"{section}.{name} is {spec!r}, but it must be {{_target_: CLASS, …}} or null")
            _need_target(f"{section}.{name}", spec)


def _validate_engine(recipe: Recipe) -> None:
    if not recipe.engine:
        if recipe.loop.overlap:
            raise ConfigError(
                "loop.overlap collects beside the training, but there is no engine: the weights in memory are the ones "
                "that change; name a server (engine=vllm), or make it false"
            )
        return
    _need_target("engine", recipe.engine)
    sampling = recipe.sampling
    if (sampling.temperature, sampling.top_p) != (1, 1):
        raise ConfigError(
            f"sampling.temperature is {sampling.temperature:g} and sampling.top_p {sampling.top_p:g}, but with an "
            "engine both must be 1: servers do not agree on whose log-probabilities they give at others"
        )


def _validate_logs(logs: dict[str, Any]) -> None:
    if not logs:
        return
    if "path" not in logs:
        return _need_target("logs", logs, " (a function), or logs.path=FILE")
    others = [key for key in logs if key != "path"]
    if others:
        raise ConfigError(f"logs has a path, so logs.{others[0]} has no meaning there: leave one of the two out")
    paths = logs["path"] if isinstance(logs["path"], list) else [logs["path"]]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise ConfigError(f"logs.path is {logs['path']!r}, but it must be a file or a list of files")


def _keep_no_password(key: str, spec: Any) -> None:
    """A recipe is written into the run's directory and shown, and a password belongs into neither."""
    url = spec.get("url") if isinstance(spec, dict) else None
    if isinstance(url, str) and holds_password(url):
        raise ConfigError(
            f"{key}.url is {without_password(url)}, but a recipe, which a run keeps, must hold no password: leave it "
            "out, and put it into PGPASSWORD or ~/.pgpass"
        )


def _need_target(key: str, spec: dict[str, Any], more: str = "") -> None:
    target = spec.get("_target_")
    if not isinstance(target, str) or not target.strip("."):
        found = "is missing" if target is None else f"is {target!r}"
        raise ConfigError(f"{key}._target_ {found}: it must be an import path, e.g. my_module.MyClass{more}")
