"""From a recipe to files and back: what the command line calls, with a tiny model and a customer named by path."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_iterppo import build, operations
from lightning_iterppo.composition import compose, to_yaml
from lightning_iterppo.config import Recipe
from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.data.logs import read_conversations, write_conversations
from lightning_iterppo.errors import (
    ConfigError,
    CustomerError,
    IterPPOError,
    LogDataError,
    LogFormatError,
    RunDirectoryError,
)
from lightning_iterppo.estimation import estimate
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.models.backbones import load_backbone
from lightning_iterppo.models.scratch import ScratchConfig
from lightning_iterppo.run_directory import RunDirectory

WORDS = ["red", "blue", "?", "yes", "no"]
SMALL = [
    *("customer._target_=named_in_recipes.WordCustomer", "logs=none", "trainer=cpu", "callbacks.progress=null"),
    *("model.scratch.hidden_size=16", "model.scratch.layers=1", "model.scratch.heads=2"),
    *("model.scratch.vocabulary=[red,blue,'?',yes,no]", "sampling.max_new_tokens=3"),
    *("loop.iterations=2", "loop.conversations=20", "loop.evaluation_conversations=12", "loop.batch=10"),
    *("critic.epochs=2", "critic.batch_conversations=8", "critic.history=1"),
    *(
        "policy.rounds=2",
        "policy.batch_conversations=8",
        "policy.ppo_epochs=1",
        "policy.samples_per_state=2",
        "policy.conversations_per_round=16",
    ),
]

pytestmark = pytest.mark.usefixtures("word_customer")


def recipe(kind: str = "full", *more: str) -> Recipe:
    return compose("probe", [f"model/adaptation={kind}", *SMALL, *more])


@dataclass
class Run:
    """A finished run and the loop that made it."""

    path: Path
    loop: IterativePPOLoop
    kind: str

    @property
    def ids(self) -> Tensor:
        return torch.tensor([[3, 6, 8, 1, 4, 7, 1]])

    def logits(self) -> Tensor:
        model = self.loop.language_model
        with torch.no_grad(), model.using("policy"):
            logits: Tensor = model.causal_lm.eval()(self.ids).logits
        return logits


@pytest.fixture(scope="module", params=["full", "lora"])
def run(tmp_path_factory: pytest.TempPathFactory, request: Any, word_customer: Any) -> Run:
    path = tmp_path_factory.mktemp("built") / "run"
    config = recipe(request.param)
    loop = build.build_loop(config, kept=True)
    operations._begin_run(loop, config, path)
    loop.run()
    return Run(path, loop, request.param)


# -- training and what it writes -------------------------------------------------------------------------------------


def test_a_checkpoint_is_a_hugging_face_directory(run: Run) -> None:
    for iteration in (0, 1):
        place = run.path / "checkpoints" / f"iteration-00{iteration}"
        lora = ("adapter_model.safetensors", "adapter_config.json")
        for part in ("policy", "critic"):
            files = {path.name for path in (place / part).iterdir()}
            assert set(lora if run.kind == "lora" else ("model.safetensors", "config.json")) <= files
            assert "tokenizer.json" in files
        assert (place / "critic" / "head.safetensors").is_file()


def test_a_checkpoint_is_loaded_by_the_ecosystem(run: Run) -> None:
    directory = str(run.path / "checkpoints" / "iteration-001" / "policy")
    if run.kind == "lora":
        scratch = ScratchConfig(hidden_size=16, layers=1, heads=2, vocabulary=WORDS)
        base = load_backbone("scratch", dtype="float32", scratch=scratch, seed=1).model
        model: Any = PeftModel.from_pretrained(base, directory)
    else:
        model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(run.ids).logits, run.logits(), atol=1e-5, rtol=0)
    assert AutoTokenizer.from_pretrained(directory).decode(run.ids[0]) == "<customer> red ? <end> <agent> blue <end>"


def test_an_exported_model_has_the_policys_logits(run: Run, tmp_path: Path) -> None:
    made = operations.export(run.path, tmp_path / "out", None)
    assert made["model"] == str(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
    }
    with torch.no_grad():
        torch.testing.assert_close(model(run.ids).logits, run.logits(), atol=1e-4, rtol=0)
        operations.export(run.path, tmp_path / "first", 0)
        first = AutoModelForCausalLM.from_pretrained(tmp_path / "first")(run.ids).logits
    assert not torch.allclose(first, run.logits(), atol=1e-4)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == model.config.vocab_size == 11


def test_what_cannot_be_exported(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no checkpoint of iteration 9"):
        operations.export(run.path, tmp_path / "out", 9)
    with pytest.raises(RunDirectoryError, match="already exists"):
        operations.export(run.path, run.path, None)
    with pytest.raises(RunDirectoryError, match="is not a run"):
        operations.export(tmp_path, tmp_path / "out", None)
    RunDirectory.create(tmp_path / "new", to_yaml(recipe()))
    with pytest.raises(RunDirectoryError, match="no checkpoint yet"):
        operations.export(tmp_path / "new", tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def metrics(path: Path) -> list[dict[str, str]]:
    with open(path / "metrics.csv", encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def test_metrics_count_their_steps_over_the_whole_run(run: Run) -> None:
    rows = metrics(run.path)
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps)
    assert steps[-1] == run.loop.steps
    losses = [row for row in rows if "policy/loss" in row]
    assert len(losses) == 2 * 2 * 2
    assert len({row["step"] for row in losses}) == len(losses)
    assert len([row for row in rows if "critic/auroc" in row or "critic/brier" in row]) == 2 * 2  # one an epoch


def comparable(path: Path) -> dict[str, Any]:
    """What a run left behind, without what the clock decides."""
    summary = json.loads((path / "summary.json").read_text())
    for key in ("seconds", "evaluation_seconds", "peak_memory_bytes"):
        summary.pop(key)
    for iteration in summary["iterations"]:
        iteration.pop("seconds")
    talks = {file.name: file.read_text() for file in sorted((path / "conversations").iterdir())}
    return {"summary": summary, "metrics": metrics(path), "conversations": talks}


@pytest.mark.parametrize("phase", ["collect", "evaluate", "improve"])
def test_a_resumed_training_leaves_what_an_undisturbed_one_does(run: Run, tmp_path: Path, phase: str) -> None:
    if run.kind == "lora":
        pytest.skip("the loop's own tests interrupt both kinds")
    config = recipe(
        run.kind,
        "callbacks.stop._target_=named_in_recipes.InterruptOnce",
        f"callbacks.stop.phase={phase}",
        f"callbacks.stop.marker='{tmp_path}/marker'",
    )
    path = tmp_path / "run"
    with pytest.raises(Exception, match=f"^{phase}$"):
        operations.train(config, path, False)
    assert json.loads((path / "summary.json").read_text())["status"] == "failed"
    summary = operations.train(recipe("lora", "seed=9"), path, True)  # the recipe is the run's own
    assert summary.status == "finished"
    assert comparable(path) == comparable(run.path)
    assert [each.name for each in sorted((path / "checkpoints").glob("iteration-*"))] == [
        "iteration-000",
        "iteration-001",
    ]


def test_where_training_may_not_write(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        operations.train(recipe(), run.path, False)
    with pytest.raises(RunDirectoryError, match="is not a run"):
        operations.train(recipe(), tmp_path, True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="is a file"):
        operations.train(recipe(), tmp_path / "file", False)
    with pytest.raises(RunDirectoryError, match="not empty"):
        operations.train(recipe(), tmp_path, False)


# -- the other commands ----------------------------------------------------------------------------------------------


def test_evaluating_the_last_policy_gives_the_runs_figure(run: Run) -> None:
    after = run.loop.summary.after
    assert after is not None
    for place in (run.path, run.path / "checkpoints" / "iteration-001", run.path / "checkpoints/iteration-001/policy"):
        found = operations.evaluate(recipe(run.kind), place, None)
        assert (found["outcome_rate"], found["conversations"]) == (after.outcome_rate, 12)
    untrained = operations.evaluate(recipe(run.kind), None, 30)
    assert (untrained["policy"], untrained["conversations"]) == (None, 30)


def test_collecting_writes_whole_conversations(run: Run, tmp_path: Path) -> None:
    figures = operations.collect(recipe(run.kind), tmp_path / "talk.jsonl", run.path, 15)
    found = read_conversations(tmp_path / "talk.jsonl")
    assert len({talk.id for talk in found}) == 15 == figures["collected"]["conversations"]
    assert all(turn.suggestion is not None and turn.suggestion.logprobs for talk in found for turn in talk.turns)
    trained = [turn.message for talk in found for turn in talk.turns]
    operations.collect(recipe(run.kind), tmp_path / "untrained.jsonl", None, 15)
    assert trained != [t.message for talk in read_conversations(tmp_path / "untrained.jsonl") for t in talk.turns]


@pytest.mark.parametrize("kind", ["full", "lora", "dora"])
def test_a_critic_from_logs_and_an_improvement_with_it(
    make_loop: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    talks = make_loop().talk(30, "logs", training=True)
    write_conversations(tmp_path / "logs.jsonl", talks[:24])
    write_conversations(tmp_path / "held.jsonl", talks[24:])
    config = recipe(kind)
    figures = operations.fit_critic(config, [tmp_path / "logs.jsonl"], [tmp_path / "held.jsonl"], tmp_path / "critic")
    assert figures["turns"] == sum(len(talk.turns) for talk in talks[24:])
    assert figures["brier"] is not None
    weights = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    assert {weights, "head.safetensors"} <= {path.name for path in (tmp_path / "critic").iterdir()}
    with pytest.raises(RunDirectoryError, match="already exists"):
        operations.fit_critic(config, [tmp_path / "logs.jsonl"], [], tmp_path / "critic")

    made = operations.improve(recipe(kind), tmp_path / "critic", [tmp_path / "logs.jsonl"], tmp_path / "run")
    assert made["reward_mean"] is not None and 0 < made["reward_mean"] < 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], len(summary["iterations"]), summary["before"]) == ("finished", 1, None)
    assert (tmp_path / "run" / "checkpoints" / "iteration-000" / "policy" / weights).is_file()
    assert operations.evaluate(recipe(kind), tmp_path / "run", 5)["conversations"] == 5
    operations.export(tmp_path / "run", tmp_path / "model", None)

    with pytest.raises(RunDirectoryError, match=r"holds no critic .* fit-critic"):
        operations.improve(recipe(kind), tmp_path, [tmp_path / "logs.jsonl"], tmp_path / "run2")
    amounts = recipe(kind)
    amounts.critic.loss, amounts.critic.solve_head = "hl-gauss", False
    with pytest.raises(RunDirectoryError, match=r"is one of another critic\.loss"):
        operations.improve(amounts, tmp_path / "critic", [tmp_path / "logs.jsonl"], tmp_path / "run2")


@pytest.mark.parametrize(("key", "value"), [("pooling", "mean"), ("layer", 1), ("question", "Is it good?")])
def test_a_critic_is_read_as_it_was_fitted(make_loop: Callable[..., Any], tmp_path: Path, key: str, value: Any) -> None:
    talks = make_loop().talk(20, "logs", training=True)
    write_conversations(tmp_path / "logs.jsonl", talks)
    config = recipe("lora")
    setattr(config.critic, key, value)
    operations.fit_critic(config, [tmp_path / "logs.jsonl"], [], tmp_path / "critic")
    operations.score(tmp_path / "critic", tmp_path / "logs.jsonl", tmp_path / "scores.jsonl")
    with pytest.raises(
        RunDirectoryError, match=rf"was fitted with critic\.{key}={value}.* say \"critic\.{key}="
    ) as said:
        operations.improve(recipe("lora"), tmp_path / "critic", [tmp_path / "logs.jsonl"], tmp_path / "run")
    assert "\n" not in str(said.value)
    assert not (tmp_path / "run").exists()
    made = operations.improve(config, tmp_path / "critic", [tmp_path / "logs.jsonl"], tmp_path / "run")
    assert 0 < made["reward_mean"] < 1


def test_a_critic_and_an_improvement_begin_with_the_policy_they_are_given(run: Run, tmp_path: Path) -> None:
    logs = run.path / "conversations" / "iteration-001.jsonl"
    still = recipe(run.kind, "critic.epochs=0", "critic.solve_head=true", "policy.learning_rate=1e-12")
    operations.fit_critic(still, [logs], [], tmp_path / "critic", run.path)
    operations.improve(still, tmp_path / "critic", [logs], tmp_path / "run", run.path)
    weights = "adapter_model.safetensors" if run.kind == "lora" else "model.safetensors"
    given = load_file(run.path / "checkpoints" / "iteration-001" / "policy" / weights)
    for found in (tmp_path / "critic", tmp_path / "run" / "checkpoints" / "iteration-000" / "policy"):
        torch.testing.assert_close(load_file(found / weights), given, atol=1e-6, rtol=0)
    operations.fit_critic(still, [logs], [], tmp_path / "other")
    assert any(not torch.equal(tensor, given[key]) for key, tensor in load_file(tmp_path / "other" / weights).items())
    if run.kind == "lora":
        state = RunDirectory.open(tmp_path / "run").load_state()
        assert state is not None
        reference = state["modules"]["variants"]["reference"]
        torch.testing.assert_close(reference, given, atol=1e-6, rtol=0)
    with pytest.raises(RunDirectoryError, match=r"--policy .*holds no"):
        operations.fit_critic(still, [logs], [], tmp_path / "third", tmp_path)


#: Nine words, so that a prompt has 16 tokens at first and at least 20 from the second turn on.
TOLD = "model.system='red blue red blue red blue red blue red'"


def test_commands_say_how_many_histories_were_cut(tmp_path: Path) -> None:
    config = recipe("full", TOLD, "model.window=19", "critic.epochs=0")
    made = operations.collect(config, tmp_path / "logs.jsonl", None, 12)
    turns = [len(talk.turns) for talk in read_conversations(tmp_path / "logs.jsonl")]
    share = pytest.approx(sum(count - 1 for count in turns) / sum(turns))
    assert made["histories_cut"] == share and 0 < made["histories_cut"] < 0.6
    assert 0 < operations.evaluate(config, None, 12)["histories_cut"] < 0.6
    assert estimate(config, None, [tmp_path / "logs.jsonl"])["histories_cut"] == share
    operations.fit_critic(config, [tmp_path / "logs.jsonl"], [], tmp_path / "critic")
    scored = operations.score(tmp_path / "critic", tmp_path / "logs.jsonl", tmp_path / "scores.jsonl")
    assert scored["histories_cut"] == share
    assert "histories_cut" not in operations.evaluate(recipe("full", TOLD), None, 2)


def test_a_history_that_the_model_cannot_read_is_refused(tmp_path: Path) -> None:
    small = [TOLD, "model.scratch.max_length=22"]
    with pytest.raises(ConfigError, match=r"a history of 3 messages .* the model reads 22: .* model\.window=19$"):
        operations.collect(recipe("full", *small), tmp_path / "talk.jsonl", None, 12)
    assert not (tmp_path / "talk.jsonl").exists()
    cut = recipe("full", *small, "model.window=19", "model.window_first=0")
    assert operations.collect(cut, tmp_path / "talk.jsonl", None, 12)["collected"]["conversations"] == 12

    long = Conversation("a7", tuple(Turn("red ?", "red", reward=float(n == 3)) for n in range(4)), outcome=1.0)
    write_conversations(tmp_path / "logs.jsonl", [replace(long, id=str(n), turns=long.turns[3:]) for n in range(8)])
    short = recipe("full", "model.scratch.max_length=22", "critic.epochs=0")
    operations.fit_critic(short, [tmp_path / "logs.jsonl"], [], tmp_path / "critic")
    write_conversations(tmp_path / "long.jsonl", [long])
    with pytest.raises(LogDataError, match=r"conversation 'a7': .* the model reads 22: .* model\.window=22$"):
        operations.score(tmp_path / "critic", tmp_path / "long.jsonl", tmp_path / "scores.jsonl")
    with pytest.raises(LogDataError, match="conversation 'a7'"):
        operations.fit_critic(short, [tmp_path / "long.jsonl"], [tmp_path / "logs.jsonl"], tmp_path / "other")
    assert not (tmp_path / "scores.jsonl").exists() and not (tmp_path / "other").exists()


def test_logs_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(LogFormatError, match=r"bad\.jsonl:1: "):
        operations.fit_critic(recipe(), [tmp_path / "bad.jsonl"], [], tmp_path / "critic")
    with pytest.raises(LogFormatError, match="no such file"):
        operations.improve(recipe(), tmp_path, [tmp_path / "none.jsonl"], tmp_path / "run")
    assert not (tmp_path / "critic").exists() and not (tmp_path / "run").exists()


def test_logs_of_the_recipe_are_read_from_files(tmp_path: Path) -> None:
    line = {"id": "a", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}]}
    (tmp_path / "one.jsonl").write_text(json.dumps({**line, "outcome": 1}) + "\n")
    config = recipe("full", f"logs.path={tmp_path}/one.jsonl")
    assert [talk.outcome for talk in build.load_logs(config)] == [1.0]
    assert build.load_logs(recipe()) == []


def test_a_policy_that_is_none(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"--policy .*holds no"):
        operations.evaluate(recipe(run.kind), tmp_path, 5)
    other = "full" if run.kind == "lora" else "lora"
    with pytest.raises(RunDirectoryError, match="--policy"):
        operations.evaluate(recipe(other), run.path, 5)
    with pytest.raises(RunDirectoryError, match="another model or adaptation"):
        operations.evaluate(recipe(run.kind, "model.scratch.hidden_size=32"), run.path, 5)


def test_a_customer_that_cannot_answer_is_found_before_any_work() -> None:
    config = recipe("full", "customer._target_=named_in_recipes.Interrupted")
    with pytest.raises(CustomerError, match=r"customer: named_in_recipes\.Interrupted has no method reset"):
        build.build_loop(config, kept=True)


def test_more_top_layers_than_layers() -> None:
    with pytest.raises(ConfigError, match=r"model\.adaptation: top_layers is 3, but the model has 1 layers"):
        build.load_language_model(recipe("lora", "model.adaptation.top_layers=3"))


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["customer._target_=named_in_recipes.Interrupted"], CustomerError),
        (["callbacks.wrong._target_=named_in_recipes.WordCustomer"], ConfigError),
        (["model/adaptation=lora", "model.adaptation.top_layers=9"], ConfigError),
        (["logs=file", "logs.path=none.jsonl"], IterPPOError),
    ],
)
def test_a_recipe_that_cannot_begin_leaves_no_run_directory(
    tmp_path: Path, overrides: list[str], error: type[Exception]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(error):
        operations.train(recipe("full", *overrides), run, False)
    assert not run.exists()


def test_outcomes_that_are_no_probabilities_are_found_before_any_work(tmp_path: Path) -> None:
    logs = tmp_path / "logs.jsonl"
    turn = {"customer": "hat", "message": "red", "reward": 250}
    logs.write_text(json.dumps({"id": "a7", "turns": [turn], "outcome": 250}) + "\n", encoding="utf-8")
    with pytest.raises(LogDataError, match=r"conversation 'a7', turn 1: from here on it earned 250"):
        operations.train(recipe("full", "logs=file", f"logs.path={logs}"), tmp_path / "run", False)


def test_logs_of_which_no_outcome_is_known_are_imitated(tmp_path: Path) -> None:
    logs = tmp_path / "logs.jsonl"
    lines = [json.dumps({"id": str(n), "turns": [{"customer": "hat", "message": "red"}]}) for n in range(8)]
    logs.write_text("\n".join(lines), encoding="utf-8")
    summary = operations.train(
        recipe("full", "logs=file", f"logs.path={logs}", "loop.iterations=1"), tmp_path / "run", False
    )
    assert summary.logs is None and summary.status == "finished"


def test_a_callback_that_is_none(tmp_path: Path) -> None:
    config = recipe("full", "callbacks.wrong._target_=named_in_recipes.WordCustomer")
    with pytest.raises(ConfigError, match=r"callbacks\.wrong: named_in_recipes\.WordCustomer is not a lightning"):
        build.build_loop(config, kept=True)
