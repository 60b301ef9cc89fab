"""A run that starts from another run's policy, in the same adaptation or in any other one."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lightning_iterppo import build, operations
from lightning_iterppo.behaviour import action_logprobs
from lightning_iterppo.composition import compose, load_recipe, to_yaml
from lightning_iterppo.config import Recipe
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.errors import ConfigError, RunDirectoryError
from lightning_iterppo.loading import load_language_model, whole_policy
from lightning_iterppo.models.language_model import CRITIC, POLICY, REFERENCE, LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.run_directory import RunDirectory

KINDS = ["lora", "lora-top", "full", "dora"]
SMALL = [
    *("customer._target_=named_in_recipes.WordCustomer", "logs=none", "trainer=cpu", "callbacks.progress=null"),
    *("model.scratch.hidden_size=16", "model.scratch.layers=2", "model.scratch.heads=2"),
    *("model.scratch.vocabulary=[red,blue,'?',yes,no]", "sampling.max_new_tokens=3"),
    *("loop.iterations=1", "loop.conversations=12", "loop.evaluation_conversations=0", "loop.batch=12"),
    *("critic.epochs=0", "critic.solve_head=true", "critic.history=0", "policy.learning_rate=1e-2", "policy.rounds=1"),
    *("policy.ppo_epochs=1", "policy.samples_per_state=2", "policy.conversations_per_round=8"),
]

pytestmark = pytest.mark.usefixtures("word_customer")


def recipe(kind: str, *more: str, start: Path | None = None) -> Recipe:
    config = copy.deepcopy(_composed(kind, more))
    if start is not None:
        config.model.start = str(start)
    return config


@cache
def _composed(kind: str, more: tuple[str, ...]) -> Recipe:
    top = ["model.adaptation.top_layers=1"] if kind == "lora-top" else []
    return compose("probe", [f"model/adaptation={kind}", *top, *SMALL, *more])


@dataclass(frozen=True)
class Trained:
    """A finished run, and the log-probabilities of its conversations under its last policy."""

    path: Path
    policy: Tensor


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, word_customer: Any) -> dict[str, Trained]:
    """A finished run of every adaptation."""
    place = tmp_path_factory.mktemp("runs")
    found = {}
    for kind in KINDS:
        run = place / kind
        operations.train(recipe(kind), run, False)
        model = load_language_model(recipe(kind))
        untrained = logprobs(model, run)
        operations.load_policy(model, run)
        found[kind] = Trained(run, logprobs(model, run))
        assert not torch.allclose(found[kind].policy, untrained, atol=1e-2)  # there is something to take over
    return found


@pytest.fixture(scope="module")
def runs(trained: dict[str, Trained]) -> dict[str, Path]:
    return {kind: run.path for kind, run in trained.items()}


def logprobs(model: LanguageModel, run: Path, variant: str = POLICY) -> Tensor:
    """Of every message of a run's conversations."""
    renderer = ChatRenderer(model.tokenizer)
    talks = read_conversations(run / "conversations" / "iteration-000.jsonl")
    found = action_logprobs(model, [renderer.render(talk).tree for talk in talks], variant, rows=8)
    return torch.tensor([value for row in found for value in row])


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_a_run_goes_on_in_any_adaptation(trained: dict[str, Trained], tmp_path: Path, source: str, target: str) -> None:
    run, policy = trained[source].path, trained[source].policy
    config = recipe(target, start=run)
    model = load_language_model(config)
    for variant in (POLICY, REFERENCE, CRITIC):
        torch.testing.assert_close(logprobs(model, run, variant), policy, atol=1e-4, rtol=0)
    # One step of training works and changes it.
    summary = operations.train(config, tmp_path / "run", False)
    place = run / "checkpoints" / "iteration-000" / "policy"
    assert summary.status == "finished" and summary.start == str(place.resolve())
    operations.load_policy(model, tmp_path / "run")
    moved = (logprobs(model, run) - policy).abs().max()
    assert 1e-3 < moved < 10


def test_a_run_that_went_on_twice_is_repeated_and_exported(trained: dict[str, Trained], tmp_path: Path) -> None:
    """An adapter beside merged weights, which came of an adapter beside merged weights."""
    source = trained["full"]
    operations.train(recipe("lora", start=source.path), tmp_path / "second", False)
    operations.train(recipe("dora", start=tmp_path / "second"), tmp_path / "third", False)
    written = load_recipe(tmp_path / "third" / "recipe.yaml")
    policy = (tmp_path / "second" / "checkpoints" / "iteration-000" / "policy").resolve()
    assert written.model.start == str(policy) == json.loads((tmp_path / "third" / "summary.json").read_text())["start"]
    begun = load_language_model(written)
    operations.export(tmp_path / "second", tmp_path / "begun", None)
    same_logits(tmp_path / "begun", begun)
    operations.load_policy(begun, tmp_path / "third")
    operations.export(tmp_path / "third", tmp_path / "model", None)
    same_logits(tmp_path / "model", begun)
    with pytest.raises(AssertionError, match="not close"):
        same_logits(tmp_path / "begun", begun)


def same_logits(exported: Path, model: LanguageModel) -> None:
    """What plain transformers makes of a directory is what the policy says."""
    plain = AutoModelForCausalLM.from_pretrained(exported)
    ids = torch.tensor([[3, 6, 8, 1, 4, 7, 1]])
    with torch.no_grad(), model.using(POLICY):
        torch.testing.assert_close(plain(ids).logits, model.causal_lm.eval()(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("lora", "full"),
        pytest.param("lora", "lora", marks=pytest.mark.slow),
        pytest.param("full", "dora", marks=pytest.mark.slow),
    ],
)
def test_a_continued_run_is_resumed(runs: dict[str, Path], tmp_path: Path, source: str, target: str) -> None:
    """What stands by itself needs the run that it came from no more; an adapter beside merged weights does."""
    origin = shutil.copytree(runs[source], tmp_path / "origin")
    stop = [
        *("callbacks.stop._target_=named_in_recipes.InterruptOnce", "callbacks.stop.phase=improve"),
        *("loop.iterations=2", "policy.batch_conversations=2"),
    ]
    marker = f"callbacks.stop.marker='{tmp_path}/marker'"
    with pytest.raises(Exception, match=r"^improve$"):
        operations.train(recipe(target, *stop, marker, start=origin), tmp_path / "run", False)
    if target != "dora":
        shutil.rmtree(origin)
        assert operations.train(recipe("lora"), tmp_path / "run", True).start is not None
        operations.export(tmp_path / "run", tmp_path / "model", None)
        return
    state = RunDirectory.open(tmp_path / "run").load_state()
    shutil.copytree(runs["lora"], origin, dirs_exist_ok=True)  # another policy in the same place
    with pytest.raises(RunDirectoryError, match=r"model\.start is no longer the policy"):
        operations.train(recipe("lora"), tmp_path / "run", True)
    assert state is not None
    shutil.rmtree(origin)
    with pytest.raises(RunDirectoryError, match=r"model\.start is .*holds no policy"):
        operations.train(recipe("lora"), tmp_path / "run", True)


def test_the_newest_policy_or_the_one_that_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["lora"], tmp_path / "run")
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "iteration-000", checkpoints / "iteration-001")
    config = recipe("full", start=run)
    operations.pin_start(config)
    assert config.model.start == str((checkpoints / "iteration-001" / "policy").resolve())
    for place in (checkpoints / "iteration-000", checkpoints / "iteration-000" / "policy"):
        config = recipe("full", start=place)
        operations.pin_start(config)
        assert config.model.start == str((checkpoints / "iteration-000" / "policy").resolve())


def test_an_adapter_beside_merged_weights_is_taken_for_no_other(runs: dict[str, Path], tmp_path: Path) -> None:
    """Its shapes are those of an adapter beside the model's own weights, and what they compute is something else."""
    operations.train(recipe("lora", start=runs["full"]), tmp_path / "run", False)
    started = recipe("lora", start=runs["full"])
    for config, place in ((recipe("lora"), tmp_path / "run"), (started, runs["lora"])):
        with pytest.raises(RunDirectoryError, match=r"--policy .*is one of other weights: take the recipe of its run"):
            operations.evaluate(config, place, 4)
    found = operations.evaluate(load_recipe(tmp_path / "run" / "recipe.yaml"), tmp_path / "run", 4)
    assert found["conversations"] == 4


def test_an_adapter_of_another_rank_is_merged(trained: dict[str, Trained], runs: dict[str, Path]) -> None:
    begun = load_language_model(recipe("lora", "model.adaptation.rank=3", start=runs["lora"]))
    torch.testing.assert_close(logprobs(begun, runs["lora"]), trained["lora"].policy, atol=1e-4, rtol=0)
    assert begun.started_from is not None
    as_it_is = load_language_model(recipe("lora", start=runs["lora"]))
    assert as_it_is.started_from is None
    adapter = load_file(runs["lora"] / "checkpoints/iteration-000/policy/adapter_model.safetensors")
    assert sum(map(torch.numel, as_it_is.variant_tensors(POLICY).values())) == sum(map(torch.numel, adapter.values()))


def test_frozen_weights_that_hold_a_policy_are_not_rounded(runs: dict[str, Path]) -> None:
    for dtype, expected in (("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = load_language_model(recipe("dora", f"model.dtype={dtype}", start=runs["lora"]))
        assert model.head_weight.dtype == expected


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (["model.scratch.hidden_size=32"], ConfigError, "another one of that id"),
        (["model=smollm2", "model.scratch=null"], ConfigError, "a run of model.id scratch, .* model is smollm2"),
    ],
)
def test_a_run_of_another_model_is_one_line(
    runs: dict[str, Path], tmp_path: Path, overrides: list[str], error: type[Exception], said: str
) -> None:
    config = recipe("lora", *overrides, start=runs["full"])
    with pytest.raises(error, match=rf"^model\.start is .*{said}") as caught:
        operations.train(config, tmp_path / "run", False)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_what_is_no_policy_of_a_run(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"model\.start is .*/nowhere, which holds no policy"):
        operations.train(recipe("lora", start=tmp_path / "nowhere"), tmp_path / "run", False)
    with pytest.raises(RunDirectoryError, match="is not a run, and no policy of one"):
        operations.export(tmp_path, tmp_path / "out", None)
    operations.export(runs["lora"], tmp_path / "model", None)
    with pytest.raises(RunDirectoryError, match=r"lies in no run.*model\.id"):
        operations.train(recipe("lora", start=tmp_path / "model"), tmp_path / "run", False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_started_policy_imitates_nobody_unless_asked_to(runs: dict[str, Path], tmp_path: Path) -> None:
    start = f"model.start={runs['lora']}"
    assert compose("shop").warm_start.epochs == 2
    assert compose("shop", [start]).warm_start.epochs == 0
    assert compose("shop", [start, "warm_start.epochs=1"]).warm_start.epochs == 1
    mine = tmp_path / "mine.yaml"
    text = f"defaults: [shop, _self_]\nmodel:\n  start: {runs['lora']}\n"
    mine.write_text(text)
    assert compose(str(mine)).warm_start.epochs == 0
    mine.write_text(text + "warm_start:\n  epochs: 3\n")
    assert compose(str(mine)).warm_start.epochs == 3
    written = tmp_path / "recipe.yaml"
    written.write_text(to_yaml(compose("shop", [start, "warm_start.epochs=1"])))
    assert compose(str(written)).warm_start.epochs == 1
    assert compose(str(written), [start]).warm_start.epochs == 0


def test_logs_of_a_started_run_still_fit_its_critic(runs: dict[str, Path], tmp_path: Path) -> None:
    logs = runs["full"] / "conversations" / "iteration-000.jsonl"
    config = recipe("lora", "logs=file", f"logs.path={logs}", f"model.start={runs['full']}")
    loop = build.build_loop(config, kept=False)
    assert loop.logs and loop.settings.critic_logs and loop.settings.warm_start_epochs == 0


def test_a_critic_begins_with_the_started_policy(runs: dict[str, Path], tmp_path: Path) -> None:
    logs = runs["lora"] / "conversations" / "iteration-000.jsonl"
    config = recipe("full", start=runs["lora"])
    operations.fit_critic(config, [logs], [], tmp_path / "critic")
    whole = whole_policy(runs["lora"] / "checkpoints" / "iteration-000" / "policy").model.state_dict()
    for key, tensor in load_file(tmp_path / "critic" / "model.safetensors").items():
        torch.testing.assert_close(tensor, whole[key], atol=1e-6, rtol=0)
    found = operations.score(tmp_path / "critic", logs, tmp_path / "scores.jsonl")
    assert found["conversations"] == 12


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_model_has_the_policys_logits(runs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    operations.export(runs[kind], tmp_path / "model", None)
    model = load_language_model(recipe(kind))
    operations.load_policy(model, runs[kind])
    same_logits(tmp_path / "model", model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow), "float16"])
def test_an_export_of_a_type(runs: dict[str, Path], tmp_path: Path, kind: str, dtype: str) -> None:
    made = operations.export(runs[kind] / "checkpoints" / "iteration-000", tmp_path / "model", None, dtype)
    wanted = getattr(torch, dtype)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {wanted}
    assert made["dtype"] == dtype and made["parameters"] == sum(map(torch.numel, saved.values()))
    assert made["bytes"] == (tmp_path / "model" / "model.safetensors").stat().st_size
    whole = whole_policy(Path(made["policy"])).model.state_dict()
    assert all(torch.equal(tensor, whole[key].to(wanted)) for key, tensor in saved.items())
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == ([1], 0)
    assert "<agent>" in (tmp_path / "model" / "chat_template.jinja").read_text()
