"""The command line, run in process: what is printed, where runs go, and the one line of every failure."""

from __future__ import annotations

import argparse
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

import lightning_iterppo
from lightning_iterppo.cli import main
from lightning_iterppo.cli_commands import recipe_of
from lightning_iterppo.composition import compose, load_recipe, to_yaml
from lightning_iterppo.config import Recipe
from lightning_iterppo.conversation import Conversation, ConversationError, Turn
from lightning_iterppo.errors import ConfigError, LogFormatError
from lightning_iterppo.summary import Rate, Summary

Fails = Callable[..., str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("LOCAL_RANK", "NODE_RANK", "ITERPPO_RUN"):
        monkeypatch.delenv(name, raising=False)
    # Set and restored around each test: `main` sets them for good.
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    return tmp_path


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must fail with exit code 2 and one line, and gives the line."""

    def run(*words: str, code: int = 2) -> str:
        assert main(words) == code
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("iterppo: ") and printed.err.count("\n") == 1
        return printed.err

    return run


class Operations:
    """Stands for `operations`, which needs a model: keeps its calls, and raises or returns what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.raises: BaseException | None = None
        self.announced: str | None = None

    def train(self, config: Recipe, run: Path, resume: bool) -> Summary:
        self.calls.append(("train", config, run, resume))
        self.announced = os.environ.get("ITERPPO_RUN")
        run.mkdir(parents=True, exist_ok=True)
        (run / "recipe.yaml").write_text(to_yaml(config), encoding="utf-8")
        if self.raises is not None:
            raise self.raises
        return SUMMARY

    def collect(self, config: Recipe, output: Path, policy: Path | None, conversations: int | None) -> dict[str, Any]:
        self.calls.append(("collect", config, output, policy, conversations))
        return {"outcome_rate": 0.25, "ci95": [0.2, 0.3], "conversations": conversations, "held_out": {"auroc": None}}

    def fit_critic(
        self, config: Recipe, data: list[Path], validation: list[Path], output: Path, policy: Path | None
    ) -> dict[str, Any]:
        self.calls.append(("fit_critic", config, data, validation, output, policy))
        return {"auroc": 0.75}

    def score(self, critic: Path, data: Path, output: Path) -> dict[str, Any]:
        self.calls.append(("score", critic, data, output))
        return {"q_mean": 0.5}

    def improve(self, config: Recipe, critic: Path, data: list[Path], run: Path, policy: Path | None) -> dict[str, Any]:
        self.calls.append(("improve", config, critic, data, run, policy))
        return {"kl_old": 0.5}

    def evaluate(self, config: Recipe, policy: Path | None, conversations: int | None) -> dict[str, Any]:
        self.calls.append(("evaluate", config, policy, conversations))
        return {"outcome_rate": 0.25}

    def export(self, run: Path, output: Path, iteration: int | None, dtype: str) -> dict[str, Any]:
        self.calls.append(("export", run, output, iteration, dtype))
        return {"model": str(output), "dtype": dtype}


def talk(said: str, outcome: float) -> Conversation:
    return Conversation("c", (Turn("Hello [there]?", said, reward=outcome),), closing="Bye.", outcome=outcome)


SUMMARY = Summary(
    recipe="shop",
    seed=1,
    status="finished",
    before=Rate(0.3375, (0.281, 0.4), 240, 0.3375),
    after=Rate(0.625, (0.56, 0.68), 240, 0.625),
    after_held_out=Rate(0.5, (0.4, 0.6), 120, 0.5),
    examples=(talk("Buy it now!", 0.0), talk("What do you need it for?", 1.0)),
)


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> Operations:
    made = Operations()
    monkeypatch.setitem(sys.modules, "lightning_iterppo.operations", made)
    monkeypatch.setattr(lightning_iterppo, "operations", made, raising=False)
    return made


def a_run(path: Path, recipe: str = "shop") -> Path:
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(to_yaml(compose(recipe)), encoding="utf-8")
    return path


# -- printing -------------------------------------------------------------------------------------------------------


def test_show_prints_a_recipe_that_reads_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "shop", "policy.clip=0.1", "model/adaptation=full"]) == 0
    (here / "shown.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_recipe(here / "shown.yaml") == compose("shop", ["policy.clip=0.1", "model/adaptation=full"])


def test_recipe_defaults_to_shop(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "seed=9"]) == 0
    assert capsys.readouterr().out.startswith("name: shop\nseed: 9\n")


def test_recipes_lists_recipes_and_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    for word in ("shop-full", "probe", "model/adaptation", "ddp-cpu"):
        assert word in printed


def test_help_lists_what_works_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    names = ("train", "collect", "fit-critic", "score", "improve", "evaluate", "estimate", "promote", "export")
    names = (*names, "import", "store", "attribute", "recipes", "show", "doctor")
    for name in names:
        assert f"\n    {name}" in printed
        assert main([name, "--help"]) == 0
    for later in ("serve", "report"):
        assert f"\n    {later}" not in printed
    capsys.readouterr()
    assert main([]) == 0
    assert "usage: iterppo" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert lightning_iterppo.__version__ in capsys.readouterr().out


def test_starting_does_not_import_torch() -> None:
    code = (
        "import sys, lightning_iterppo.cli as cli; "
        "assert cli.main(['show', 'shop']) == 0 and cli.main(['recipes']) == 0; "
        "sys.exit(bool({'torch', 'transformers', 'lightning'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lightning_iterppo import doctor

    finding = doctor.Finding("disk", "ok", "much")
    monkeypatch.setattr(doctor, "diagnose", lambda: [finding])
    assert main(["doctor"]) == 0
    assert "much" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "diagnose", lambda: [doctor.Finding("disk", "problem", "none", "free some")])
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["status"] == "problem"


# -- train ----------------------------------------------------------------------------------------------------------


def test_train_ends_with_everything_worth_knowing(operations: Operations, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "shop", "-o", "my runs/1", "seed=4", "policy.clip=0.3"]) == 0
    printed = capsys.readouterr().out
    for text in (
        *("33.8 %", "28.1 to 40.0", "62.5 %", "240", "new kinds", "not measured", "50.0 %"),
        *("Buy it now!", "What do you need it for?", "[there]", "Bye.", "outcome: 1"),
        *("The run is in my runs/1", "iterppo export 'my runs/1' -o 'my runs/1/model'"),
    ):
        assert text in printed
    name, config, run, resume = operations.calls[0]
    assert (name, run, resume, config.seed, config.policy.clip) == ("train", Path("my runs/1"), False, 4, 0.3)
    assert operations.announced == "my runs/1" and "ITERPPO_RUN" not in os.environ


def test_training_from_logs_ends_with_what_they_say(
    operations: Operations, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"reasons": [], "doubly_robust": {"value": 0.734, "ci95": [0.698, 0.765]}}
    logs = {"conversations": 380, "return_mean": 0.646}
    monkeypatch.setattr(SUMMARY, "estimate", {**said, "logs": logs})
    assert main(["train", "shop", "-o", "run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "would earn: 0.734 (95 % interval 0.698 to 0.765), by 380 conversations" in printed
    monkeypatch.setattr(SUMMARY, "estimate", {"reasons": ["nobody knows"]})
    assert main(["train", "shop", "-o", "run2"]) == 0
    assert "the logs cannot tell: nobody knows" in capsys.readouterr().out


def test_train_json_prints_the_summary_only(operations: Operations, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--json", "-o", "run"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(SUMMARY.to_json()))


def test_default_run_directories_are_fresh(operations: Operations) -> None:
    assert main(["train", "probe"]) == 0
    assert main(["train", "probe"]) == 0
    first, second = (call[2] for call in operations.calls)
    assert first != second and first.parent == second.parent == Path("runs/probe")


def test_runs_that_begin_side_by_side_have_directories_of_their_own(
    operations: Operations, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before either has written anything, which takes until the model is loaded."""
    found: list[Path] = []

    def train(config: Any, run: Path, resume: bool) -> Any:
        found.append(run)
        if len(found) < 3:
            assert main(["train", "probe"]) == 0
        return SUMMARY

    monkeypatch.setattr(operations, "train", train)
    assert main(["train", "probe"]) == 0
    assert len(set(found)) == 3
    assert not (here / "runs").exists()  # nothing came of them


def test_a_file_in_the_way_of_runs_is_named(
    operations: Operations, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "runs").write_text("")
    assert main(["train", "probe"]) == 2
    assert "runs/probe cannot hold a run" in capsys.readouterr().err


def test_resume_takes_the_recipe_of_the_run(operations: Operations, here: Path) -> None:
    run = a_run(here / "run", "probe")
    assert main(["train", "--resume", str(run)]) == 0
    _, config, where, resume = operations.calls[0]
    assert (config, where, resume) == (compose("probe"), run, True)


def test_processes_beside_the_first_use_its_directory_and_print_nothing(
    operations: Operations, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("ITERPPO_RUN", "first/run")
    (Path("first/run")).mkdir(parents=True)
    (Path("first/run/recipe.yaml")).touch()
    assert main(["train", "probe"]) == 0
    assert operations.calls[0][2] == Path("first/run")
    assert capsys.readouterr().out == ""
    monkeypatch.delenv("ITERPPO_RUN")
    assert main(["train", "probe"]) == 2
    assert "-o RUN" in capsys.readouterr().err


# -- the other commands ---------------------------------------------------------------------------------------------


def test_words_between_options_are_told_apart(operations: Operations, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.jsonl").touch()
    Path("odd=name.jsonl").touch()
    words = ["fit-critic", "--data", "a.jsonl", "odd=name.jsonl", "critic.epochs=2", "-o", "dir", "probe", "seed=5"]
    assert main(words) == 0
    _, config, data, validation, output, policy = operations.calls[0]
    assert (config.name, config.critic.epochs, config.seed) == ("probe", 2, 5)
    assert (data, validation, output) == ([Path("a.jsonl"), Path("odd=name.jsonl")], [], Path("dir"))
    assert policy is None
    assert "0.75" in capsys.readouterr().out


def test_every_command_reaches_its_function(
    operations: Operations, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.jsonl").touch()
    Path("critic").mkdir()
    run = a_run(here / "run")
    assert main(["collect", "probe", "-o", "c.jsonl", "-n", "7"]) == 0
    assert "0.2 to 0.3" in capsys.readouterr().out
    assert main(["evaluate", "probe", "--policy", "critic", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"outcome_rate": 0.25}
    improve = ["improve", "probe", "--critic", "critic", "--data", "a.jsonl", "-o", "improved"]
    assert main([*improve, "--policy", "nowhere"]) == 2
    assert "no policy nowhere" in capsys.readouterr().err
    assert main([*improve, "--policy", str(run)]) == 0
    assert operations.calls[-1][-1] == run
    assert main(["export", str(run), "-o", "model", "--iteration", "1"]) == 0
    assert "The model is in model" in capsys.readouterr().out
    assert main(["export", str(run), "-o", "model", "--dtype", "bfloat16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": "model", "dtype": "bfloat16"}
    assert operations.calls.pop()[1:] == (run, Path("model"), None, "bfloat16")
    assert main(["score", "critic", "a.jsonl", "-o", "q.jsonl"]) == 0
    assert [call[0] for call in operations.calls] == ["collect", "evaluate", "improve", "export", "score"]
    assert operations.calls[0][3:] == (None, 7) and operations.calls[3][1:] == (run, Path("model"), 1, "float32")
    assert operations.calls[4][1:] == (Path("critic"), Path("a.jsonl"), Path("q.jsonl"))


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], ["'trian'", "did you mean train?"]),
        (["serve", "run"], ["no command 'serve'"]),
        (["train", "shp"], ["'shp'", "did you mean shop?"]),
        (["train", "shop", "policy.clipp=1"], ["policy.clipp", "policy.clip?", "policy/logged.yaml"]),
        (["show", "shop", "policy.clip=abc"], ["policy.clip", "a number"]),
        (["show", "shop", "probe"], ["'probe'", "override"]),
        (["train", "--resum", "x"], ["--resum"]),
        (["train", "shop", "-o"], ["-o"]),
        (["train", "--resume", "nowhere"], ["no run nowhere"]),
        (["train", "--resume", "empty"], ["empty is not a run", "recipe.yaml"]),
        (["train", "--resume", "runs"], ["did you mean runs/b?"]),
        (["train", "--resume", "runs/b", "-o", "x"], ["--resume", "-o"]),
        (["train", "--resume", "runs/b", "seed=3"], ["seed=3", "another run: iterppo train runs/b/recipe.yaml seed=3"]),
        (["train", "probe", "--resume", "runs/b"], ["a run of shop", "'probe'"]),
        (["train", "-o", "runs/b"], ["already holds a run", "--resume runs/b", "-o"]),
        (["train", "-o", "file.txt"], ["file.txt is a file"]),
        (["collect", "-o", "file.txt"], ["file.txt", "overwritten"]),
        (["collect"], ["-o/--output"]),
        (["collect", "-o", "x", "-n", "0"], ["--conversations"]),
        (["fit-critic", "--data", "nowhere.jsonl", "-o", "x"], ["no file nowhere.jsonl"]),
        (["score", "nowhere", "file.txt", "-o", "x"], ["no critic nowhere"]),
        (["score", "empty", "nowhere.jsonl", "-o", "x"], ["no file nowhere.jsonl"]),
        (["score", "empty", "file.txt", "-o", "file.txt"], ["file.txt", "overwritten"]),
        (["improve", "--critic", "nowhere", "--data", "file.txt", "-o", "x"], ["no critic nowhere"]),
        (["evaluate", "--policy", "nowhere"], ["no policy nowhere"]),
        (["export", "nowhere", "-o", "x"], ["no run nowhere"]),
        (["export", "runs/b", "-o", "x", "--dtype", "int8"], ["--dtype", "float32"]),
        (["export", "runs/b", "-o", "runs/a"], ["runs/a", "overwritten"]),
        (["export", "runs/b", "y", "-o", "x"], ["'y'"]),
    ],
)
def test_bad_input_is_one_line(
    operations: Operations, here: Path, fails: Fails, words: list[str], said: list[str]
) -> None:
    (here / "empty").mkdir()
    (here / "file.txt").write_text("x", encoding="utf-8")
    a_run(here / "runs/a")
    a_run(here / "runs/b")
    line = fails(*words)
    for each in said:
        assert each in line
    assert operations.calls == []


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--debug", "train", "shp"], ["train", "shp", "--debug"]):
        assert main(words) == 2
        printed = capsys.readouterr().err
        assert "Traceback" in printed and printed.splitlines()[-1].startswith("iterppo: ")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LogFormatError("logs.jsonl", 12, "not JSON"), "logs.jsonl:12: not JSON"),
        (ConversationError('"turns" must be a list'), '"turns" must be a list'),
        (PermissionError(errno.EACCES, "Permission denied", "x/y"), "x/y: Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x/y"), "there is no file x/y"),
        (MemoryError(), "out of memory"),
        (TemplateError("Roles must alternate"), "the model's chat template fails: Roles must alternate"),
        (OSError(errno.ENOSPC, "No space left on device", "run/a"), "disk is full while writing run/a; free space and"),
        (RuntimeError("PytorchStreamWriter failed writing file data/1"), "iterppo train --resume run"),
    ],
)
def test_known_failures_are_one_line(operations: Operations, fails: Fails, error: Exception, said: str) -> None:
    operations.raises = error
    assert said in fails("train", "-o", "run")


def test_a_full_disk_under_another_exception(operations: Operations, fails: Fails) -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as full:
            raise RuntimeError("could not save\nthe checkpoint") from full
    except RuntimeError as error:
        operations.raises = error
    line = fails("train", "-o", "my run")
    assert "disk is full while writing my run; free space and run iterppo train --resume 'my run'" in line


def test_a_misconfigured_callback_is_one_line(operations: Operations, fails: Fails) -> None:
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    operations.raises = MisconfigurationException("nowhere\nto write")
    assert "nowhere to write" in fails("train", "-o", "run")


def test_a_defect_is_an_internal_error(operations: Operations, fails: Fails) -> None:
    operations.raises = ZeroDivisionError("division by zero")
    line = fails("train", "-o", "run", code=1)
    assert "internal error: ZeroDivisionError" in line and "--debug" in line


def test_an_interrupt_says_how_to_go_on(operations: Operations, fails: Fails) -> None:
    operations.raises = KeyboardInterrupt()
    assert "iterppo train --resume run" in fails("train", "-o", "run", code=130)


def test_an_interrupt_that_lightning_made_an_exit(operations: Operations, fails: Fails) -> None:
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)
    except SystemExit as error:
        operations.raises = error
    assert "iterppo train --resume run" in fails("train", "-o", "run", code=130)


def test_a_request_to_terminate_says_how_to_go_on(operations: Operations, fails: Fails) -> None:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    operations.raises = SIGTERMException()
    assert "iterppo train --resume run" in fails("train", "-o", "run", code=143)


def test_a_closed_pipe_is_no_failure_worth_a_line() -> None:
    command = f"{sys.executable} -m lightning_iterppo.cli show shop | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("name: shop\n", "")


def test_conversations_beside_a_recipe_take_the_place_of_its_logs() -> None:
    """The recipe persuasion leaves its logs' path to the user, who has named the files already."""
    given = argparse.Namespace(recipe="persuasion", overrides=["seed=5"], data=[Path('a "b".jsonl'), Path("c,d.jsonl")])
    recipe = recipe_of(given)
    assert recipe.logs["path"] == ['a "b".jsonl', "c,d.jsonl"] and recipe.seed == 5
    given.overrides = ["logs.path=own.jsonl"]
    assert recipe_of(given).logs["path"] == "own.jsonl"
    given.data = []
    given.overrides = []
    with pytest.raises(ConfigError, match=r"logs\.path has no value"):
        recipe_of(given)
