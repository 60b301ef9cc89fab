"""Recipes: what they compose to, what replaces what, and the one line that every mistake gets."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from lightning_iterppo import config_rules
from lightning_iterppo.composition import (
    available_groups,
    available_recipes,
    compose,
    instantiate,
    load_recipe,
    to_yaml,
)
from lightning_iterppo.config import Recipe
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.functional.objectives import CriticLoss
from lightning_iterppo.improvement import LoggedReward
from lightning_iterppo.policy import LoggedRatio

OURS = "lightning_iterppo/recipes"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def message(recipe: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(recipe, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


# -- what there is --------------------------------------------------------------------------------------------------


def test_every_recipe_composes_and_has_a_description() -> None:
    found = available_recipes()
    assert {"shop", "shop-full", "probe"} <= {info.name for info in found}
    for info in found:
        assert info.description
        # Somebody's own conversations are nothing that we have.
        needs = ["data.path=x.jsonl"] if info.name == "persuasion" else []
        assert compose(info.name, needs).name == info.name


def test_every_group_has_two_members_and_every_option_composes() -> None:
    needs = {
        "model=hub": ["model.id=some/model"],
        "logs=file": ["logs.path=x.jsonl"],
        "logs=store": ["logs.url=x.db"],
        "callbacks=store": ["callbacks.store.url=x.db"],
    }
    for group, options in available_groups().items():
        assert len(options) >= 2, group
        for option in options:
            choice = f"{group}={option}"
            compose("shop", [choice, *needs.get(choice, [])])


def test_recipe_read_back_is_equal(here: Path) -> None:
    for overrides in (
        [],
        ["trainer=ddp-cpu", "logs.path=[a.jsonl,b.jsonl]"],
        ["model/adaptation=full", "policy.learning_rate=1e-5", "policy.kl_stop=null"],
        ["model=scratch", "model.system='line: one # \"two\"'", "customer.depth.level=3"],
    ):
        recipe = compose("shop", overrides)
        path = write(here / "recipe.yaml", to_yaml(recipe))
        assert load_recipe(path) == recipe


# -- overrides ------------------------------------------------------------------------------------------------------


def test_groups_and_values() -> None:
    recipe = compose("shop", ["model/adaptation=full", "policy.clip=0.1", "trainer=ddp-cpu", "seed=3"])
    assert (recipe.model.adaptation.kind, recipe.policy.clip, recipe.seed) == ("full", 0.1, 3)
    assert (recipe.trainer.accelerator, recipe.trainer.devices) == ("cpu", 2)
    assert recipe.trainer.strategy["process_group_backend"] == "gloo"
    assert compose("shop-full").model.adaptation == recipe.model.adaptation


def test_how_many_layers_train_is_the_adaptations_word() -> None:
    assert compose("shop").model.adaptation.top_layers == 12
    assert compose("shop") == compose("shop", ["model/adaptation=lora-top"])
    for word in ("lora", "full"):
        assert compose("shop", [f"model/adaptation={word}"]).model.adaptation.top_layers is None
    one = compose("probe", ["model/adaptation=lora-top", "model.adaptation.top_layers=1"]).model.adaptation
    assert (one.kind, one.top_layers) == ("lora", 1)


def test_a_value_beats_a_group_in_any_order() -> None:
    assert compose("shop", ["critic.epochs=9", "critic=small"]).critic.epochs == 9


def test_another_class_does_not_get_the_former_arguments() -> None:
    base = compose("shop", ["customer.shelf=4"])
    assert base.customer["shelf"] == 4
    recipe = compose("shop", ["customer.shelf=4", "customer._target_=my_module.MyCustomer", "customer.mood=bad"])
    assert recipe.customer == {"_target_": "my_module.MyCustomer", "shelf": 4, "mood": "bad"}
    assert compose("shop", ["customer._target_=my_module.MyCustomer"]).customer == {"_target_": "my_module.MyCustomer"}
    assert compose("shop", ["logs._target_=my_module.logs"]).logs == {"_target_": "my_module.logs"}
    # The class it had already keeps its arguments.
    target = base.logs["_target_"]
    assert compose("shop", [f"logs._target_={target}"]).logs == base.logs


def test_a_path_of_logs_replaces_a_function_of_logs() -> None:
    assert compose("shop", ["logs.path=[a.jsonl,b.jsonl]"]).logs == {"path": ["a.jsonl", "b.jsonl"]}
    assert compose("shop", ["logs=none"]).logs == {}


def test_the_held_out_customer_goes_with_its_customer() -> None:
    shop = compose("shop")
    assert shop.held_out_customer and shop.loop.held_out_conversations > 0
    for change in ("customer=probe", "customer._target_=my_module.MyCustomer"):
        recipe = compose("shop", [change])
        assert recipe.held_out_customer == {} and recipe.loop.held_out_conversations == 0
    recipe = compose("shop", ["customer=probe", "held_out_customer._target_=my_module.Other"])
    assert recipe.held_out_customer == {"_target_": "my_module.Other"}


def test_beside_another_customer_our_logs_only_teach_to_speak() -> None:
    shop = compose("shop")
    assert shop.critic.use_logs and shop.policy.log_conversations > 0
    other = compose("shop", ["customer._target_=my_module.MyCustomer"])
    assert other.logs == shop.logs
    assert not other.critic.use_logs and other.policy.log_conversations == 0
    own = compose("shop", ["customer._target_=my_module.MyCustomer", "logs.path=mine.jsonl"])
    assert own.critic.use_logs and own.policy.log_conversations == shop.policy.log_conversations
    told = compose("shop", ["customer._target_=my_module.MyCustomer", "critic.use_logs=true"])
    assert told.critic.use_logs and told.policy.log_conversations == 0


def test_open_sections_take_new_keys_and_lose_old_ones() -> None:
    recipe = compose(
        "shop",
        [
            "~callbacks.progress",
            "callbacks.stop._target_=my_module.Stop",
            "callbacks.stop.target=0.9",
            "logger.csv=null",
        ],
    )
    assert "progress" not in recipe.callbacks
    assert recipe.callbacks["stop"] == {"_target_": "my_module.Stop", "target": 0.9}
    assert recipe.logger == {"csv": None}


def test_a_strategy_by_name_replaces_one_with_arguments() -> None:
    assert compose("shop", ["trainer=ddp-cpu", "trainer.strategy=ddp"]).trainer.strategy == "ddp"
    assert compose("shop", ["trainer.strategy._target_=a.B"]).trainer.strategy == {"_target_": "a.B"}


# -- a user's own files ---------------------------------------------------------------------------------------------


def test_own_recipe_builds_on_ours(here: Path) -> None:
    write(
        here / "mine.yaml",
        "defaults: [shop, {override /trainer: cpu}, _self_]\n"
        "customer: {_target_: my_module.MyCustomer, depth: 3}\n"
        "policy: {clip: 0.3}\n",
    )
    recipe = compose("mine.yaml")
    assert (recipe.name, recipe.policy.clip, recipe.trainer.accelerator) == ("mine", 0.3, "cpu")
    assert recipe.customer == {"_target_": "my_module.MyCustomer", "depth": 3}
    assert recipe.held_out_customer == {}
    assert recipe.policy.rounds == compose("shop").policy.rounds


def test_own_recipe_on_own_recipe_with_own_group_in_an_odd_directory(here: Path) -> None:
    place = here / "my recipes, 'old'"
    write(place / "base.yaml", "defaults: [shop, _self_]\ncustomer: {_target_: a.B, depth: 3}\n")
    write(place / "top.yaml", "defaults: [base, _self_]\ncustomer: {depth: 4}\n")
    write(place / "customer/mine.yaml", "_target_: a.C\nwidth: 1\n")
    assert compose(str(place / "top.yaml")).customer == {"_target_": "a.B", "depth": 4}
    assert compose(str(place / "top.yaml"), ["customer=mine"]).customer == {"_target_": "a.C", "width": 1}
    assert compose(str(place / "top.yaml"), ["customer=probe"]).customer == compose("probe").customer


def test_groups_apply_to_a_composed_recipe(here: Path) -> None:
    write(here / "recipe.yaml", to_yaml(compose("shop")))
    recipe = compose("recipe.yaml", ["trainer=cpu", "customer=probe", "loop.iterations=9"])
    assert (recipe.name, recipe.trainer.accelerator, recipe.loop.iterations) == ("shop", "cpu", 9)
    assert recipe.customer == compose("probe").customer


def test_composing_leaves_hydra_to_others() -> None:
    from hydra.core.global_hydra import GlobalHydra

    compose("shop")
    assert not GlobalHydra.instance().is_initialized()


# -- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "override", "said"),
    [
        ("shp", "", ["'shp'", "did you mean shop?"]),
        ("nowhere.yaml", "", ["nowhere.yaml"]),
        ("mine.yml", "", [".yaml"]),
        ("shop", "policy.clipp=0.1", ["policy.clipp", "did you mean policy.clip?", f"{OURS}/policy/logged.yaml"]),
        ("shop-full", "critic.epoch=1", ["critic.epoch", "did you mean critic.epochs?", OURS]),
        ("shop", "model.adaptation.ranks=1", ["model.adaptation.rank?", f"{OURS}/model/adaptation/lora-top.yaml"]),
        ("shop", "loop.iteration=1", ["loop.iterations?", f"{OURS}/shop.yaml"]),
        ("shop", "clip=0.1", ["did you mean policy.clip?"]),
        ("shop", "trainr=cpu", ["did you mean trainer?"]),
        ("shop", "policy.clip.x=1", ["policy.clip is a number"]),
        ("shop", "trainer=ddpcpu", ["trainer", "'ddpcpu'", "did you mean ddp-cpu?"]),
        ("shop", "model/adaption=full", ["'model/adaption'", "model/adaptation"]),
        ("shop", "policy.clip=abc", ["policy.clip", "'abc'", "a number", f"{OURS}/policy/logged.yaml"]),
        ("shop", "loop.iterations=0.5", ["loop.iterations", "0.5", "a whole number"]),
        ("shop", "policy.whiten=maybe", ["policy.whiten", "'maybe'", "true or false"]),
        ("shop", "seed=null", ["seed", "null", "a whole number"]),
        ("shop", "policy=null", ["policy is null", "section"]),
        ("shop", "policy.clip=-1", ["policy.clip", "-1", "more than 0"]),
        ("shop", "policy.learning_rate=inf", ["policy.learning_rate", "inf"]),
        ("shop", "critic.validation_fraction=1", ["critic.validation_fraction", "less than 1"]),
        ("shop", "trainer.accelerator=cuda:0", ["trainer.accelerator", "cuda:0", "one of auto, cpu"]),
        ("shop", "trainer.micro_batch=0", ["trainer.micro_batch is 0", "at least 1, auto or null"]),
        ("shop", "trainer.strategy=deepspeed_stage_3", ["trainer.strategy is deepspeed_stage_3", "take fsdp"]),
        ("shop", "trainer.strategy=deepspeed_stage_2", ["trainer.strategy is deepspeed_stage_2", "or deepspeed"]),
        ("shop", "trainer.precision=bf16-true", ["trainer.precision is bf16-true", "32-true, bf16-mixed"]),
        ("shop", "trainer.devices=false", ["trainer.devices"]),
        ("shop", "policy.logged_reward=both", ["policy.logged_reward", "return, q, mix, none"]),
        ("shop", "critic.loss=l2", ["critic.loss", "one of bce, mse, hl-gauss"]),
        ("probe", "policy.logged_lambda=0.9", ["policy.logged_lambda", "policy.logged_reward is none"]),
        ("probe", "policy.fresh_weight=0.5", ["policy.fresh_weight is 0.5", "policy.logged_reward is none"]),
        ("probe", "policy.log_actions=true", ["policy.log_actions is True", "policy.logged_reward is none"]),
        ("shop", "critic.td_lambda=0.9", ["critic.td_lambda", "critic.epochs is 0"]),
        ("shop", "critic.history_weights=true", ["critic.history_weights", "critic.history or critic.epochs is 0"]),
        ("shop", "policy.logged_ratio=batch", ["policy.logged_ratio", "anchor, round"]),
        ("shop", "critic.high=0", ["critic.low is 0", "below critic.high"]),
        ("shop", "critic.high=250", ["critic.loss bce", "critic.high 250", "critic.loss=mse"]),
        ("shop", "critic.loss=hl-gauss", ["critic.solve_head=false", "critic.epochs=4"]),
        ("shop", "name=../x", ["name", "../x"]),
        ("shop", "model=hub", ["model.id", f"{OURS}/model/hub.yaml"]),
        ("shop", "logs=file", ["logs.path", "add logs.path="]),
        ("shop", "logs.path=3", ["logs.path", "a file or a list of files"]),
        ("persuasion", "seed=1", ["logs.path", "add logs.path="]),
        ("shop", "logs=store", ["logs.url", "add logs.url="]),
        ("shop", "callbacks=store", ["callbacks.store.url", "add callbacks.store.url="]),
        ("shop", "logs.url=postgresql://me:pw@h/x", ["logs.url is postgresql://me:***@h/x", "PGPASSWORD"]),
        ("shop", "callbacks.x.url=postgresql://me:pw@h/x", ["callbacks.x.url is postgresql://me:***@h/x"]),
        ("shop", "callbacks.x=3", ["callbacks.x"]),
        ("shop", "callbacks.x.depth=3", ["callbacks.x._target_ is missing"]),
        ("shop", "~callbacks.progres", ["callbacks.progres", "did you mean progress?"]),
        ("shop", "~policy.clip", ["only keys of customer"]),
        ("shop", "loop", ["'loop'", "key=value"]),
        ("shop", "policy.clip=0.1,0.2", ["several values", "[a,b]"]),
        ("shop", "logs.path=a=b", ["logs.path=a=b", "quotes"]),
        ("shop", "policy.clip=${nowhere}", ["policy.clip", "nowhere"]),
        ("shop", "hydra.run.dir=x", ["unknown key hydra"]),
        ("shop", "model.scratch.layers=3", ["model.scratch", "model.id=scratch"]),
        ("shop", "model.id=scratch", ["model.scratch.vocabulary"]),
    ],
)
def test_a_mistake_is_one_line(here: Path, recipe: str, override: str, said: list[str]) -> None:
    text = message(recipe, *([override] if override else []))
    for each in said:
        assert each in text


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model.dtype=nf4", "model.dtype nf4 has weights that trainer.strategy fsdp cannot shard"),
        ("trainer.micro_batch=auto", "trainer.micro_batch auto measures each process by itself"),
    ],
)
def test_what_cannot_be_sharded_is_one_line(word: str, said: str) -> None:
    assert said in message("shop", "trainer=fsdp", word)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trainer.accelerator=cpu", "deepspeed is for GPUs of CUDA, but trainer.accelerator is cpu"),
        ("trainer.accelerator=auto", "deepspeed is for GPUs of CUDA, but trainer.accelerator is auto"),
        ("trainer.precision=16-mixed", "take bf16-mixed or 32-true"),
        (
            "trainer.accumulate_grad_batches=2",
            "accumulate_grad_batches is 2, but with trainer.strategy deepspeed it must be 1",
        ),
        ("trainer.devices=[2,3]", "choose them by CUDA_VISIBLE_DEVICES=2,3"),
        ("model.compile=true", "model.compile is true, but trainer.strategy deepspeed adds gradients up in the order"),
    ],
)
def test_what_deepspeed_cannot_do_as_ddp_does_it_is_one_line(word: str, said: str) -> None:
    assert compose("shop", ["trainer=deepspeed", "trainer.devices=[0,1]"]).trainer.strategy == "deepspeed"
    assert said in message("shop", "trainer=deepspeed", word)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("defaults: [shop, _self_]\npolicy: {clipp: 3}\n", ["policy.clipp in mine.yaml", "policy.clip?"]),
        ("defaults: [shop, _self_]\npolicy: {clip: abc}\n", ["policy.clip", "'abc'", "mine.yaml"]),
        ("defaults: [shop, _self_]\npolicy: 7\n", ["policy is 7", "mine.yaml"]),
        ("defaults: [shop, _self_]\npolicy: {clip: [\n", ["mine.yaml:3", "YAML"]),
        ("defaults: [shopp, _self_]\n", ["'shopp'", "did you mean shop?"]),
        ("defaults: [mine, _self_]\n", ["builds on itself"]),
        ("defaults: shop\n", ["defaults must be a list"]),
        ("defaults: [shop, {override /trainer: cpuu}]\n", ["trainer: cpuu", "did you mean cpu?"]),
        ("defaults: [shop, {override /tainer: cpu}]\n", ["tainer"]),
        ("defaults: [{plicy: small}]\n", ["'plicy'", "policy"]),
        ("- a\n", ["mine.yaml", "list"]),
        ("seed: 3\nseed: 4\n", ["mine.yaml:2", "duplicate"]),
        ("seed: 3\n", ["no customer"]),
    ],
)
def test_a_mistake_in_a_file_names_the_file(here: Path, text: str, said: list[str]) -> None:
    write(here / "mine.yaml", text)
    found = message("mine.yaml")
    for each in said:
        assert each in found


def test_the_words_of_a_recipe_are_those_of_the_code() -> None:
    assert get_args(CriticLoss) == config_rules.CRITIC_LOSSES
    assert get_args(LoggedReward) == config_rules.LOGGED_REWARDS
    assert get_args(LoggedRatio) == config_rules.LOGGED_RATIOS


def test_defaults_of_the_schema_are_valid() -> None:
    from lightning_iterppo.config_rules import validate

    validate(Recipe(name="x", customer={"_target_": "a.B"}))


# -- objects by import path -----------------------------------------------------------------------------------------

MODULE = """
class Plain:
    def __init__(self, depth=1, *, inner=None, seed=None):
        if depth < 0:
            raise ValueError("depth is below 0")
        self.depth, self.inner, self.seed = depth, inner, seed

class Strict:
    def __init__(self, needed):
        self.needed = needed

number = 3
"""


@pytest.fixture
def module(here: Path, request: pytest.FixtureRequest) -> str:
    name = f"targets_of_{abs(hash(request.node.name))}"
    write(here / f"{name}.py", MODULE)
    return name


def test_instantiate_from_the_working_directory(module: str) -> None:
    spec = {"_target_": f"{module}.Plain", "depth": 2, "inner": {"_target_": f"{module}.Plain"}}
    made = instantiate(spec, "customer", seed=7, unknown=8)
    assert (made.depth, made.seed, made.inner.depth) == (2, 7, 1)
    assert instantiate({**spec, "seed": 1}, seed=7).seed == 1
    assert "_target_" in spec


@pytest.mark.parametrize(
    ("target", "arguments", "said"),
    [
        ("nowhere_at_all.Thing", {}, ["customer", "no module 'nowhere_at_all'"]),
        ("Thing", {}, ["'Thing'", "module.Class"]),
        ("{module}.Plan", {}, ["{module}.py) has no Plan", "did you mean Plain?"]),
        ("{module}.number", {}, ["int", "neither a class nor a function"]),
        ("{module}.Plain", {"dept": 1}, ["customer.dept", "did you mean depth?"]),
        ("{module}.Strict", {}, ["needs needed", "customer.needed="]),
        ("{module}.Plain", {"depth": -1}, ["ValueError", "depth is below 0"]),
    ],
)
def test_a_target_that_does_not_fit_is_one_line(
    module: str, target: str, arguments: dict[str, int], said: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        instantiate({"_target_": target.format(module=module), **arguments}, "customer")
    assert "\n" not in str(caught.value)
    for each in said:
        assert each.replace("{module}", module) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [("import nowhere_at_all\n", "ModuleNotFoundError"), ("def x(:\n", ":1:"), ("1 / 0\n", "ZeroDivisionError")],
)
def test_a_module_that_does_not_import_says_where(here: Path, text: str, said: str) -> None:
    name = f"broken_{abs(hash(text))}"
    write(here / f"{name}.py", text)
    with pytest.raises(ConfigError) as caught:
        instantiate({"_target_": f"{name}.Thing"}, "customer")
    assert said in str(caught.value) and f"{name}.py:1" in str(caught.value)


def test_learning_from_logs_alone_is_one_iteration_without_a_customer() -> None:
    short = compose("shop", ["data=logs", "data.path=mine.jsonl"])
    assert (short.customer, short.held_out_customer, short.logs) == ({}, {}, {"path": "mine.jsonl"})
    assert (short.loop.iterations, short.loop.held_out_conversations) == (1, 0)
    assert short == compose("shop", ["customer=none", "logs=file", "logs.path=mine.jsonl"])
    assert compose("shop", ["data=logs", "data.path=mine.jsonl", "loop.iterations=3"]).loop.iterations == 3
    assert compose("persuasion", ["data.path=mine.jsonl"]).customer == {}
