"""What README.md and docs/ say is so: snippets run, commands exist, recipes compose, names are the code's."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_iterppo import callbacks
from lightning_iterppo.cli import _parser
from lightning_iterppo.composition import available_groups, available_recipes, compose
from lightning_iterppo.config import OPEN_SECTIONS, Recipe
from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.scratch import ScratchConfig
from lightning_iterppo.summary import IterationRecord, Rate, Summary

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
MODEL_LINE = 'LanguageModel.load("smollm2")'
WORDS = "Hi, do you have running shoes? Yes! What run on? Never mind. Great, I take them. Do it? No. Roads".split()


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def snippet(needle: str) -> str:
    (found,) = [block for block in blocks(README, "python") if needle in block]
    return found


def tiny_model(*_: Any) -> LanguageModel:
    scratch = ScratchConfig(hidden_size=32, layers=2, heads=2, vocabulary=WORDS, max_length=128)
    return LanguageModel.load("scratch", scratch=scratch)


@pytest.fixture
def chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of logs that the snippets read, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(README, "json")
    lost = json.loads(example)
    hello, _, _ = lost["messages"]
    said = {"role": "assistant", "content": "Yes! Roads?"}
    taken = {"role": "user", "content": "Great, I take them."}
    won = {"messages": [hello, said, taken], "outcome": 1}
    lines = [json.dumps({**(won if i % 2 else lost), "id": str(i)}) for i in range(20)]
    path = tmp_path / "my_chats.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def execute(code: str) -> dict[str, Any]:
    assert code.count(MODEL_LINE) == 1, "the snippet loads the default model, in one line"
    names: dict[str, Any] = {"tiny_model": tiny_model}
    L.seed_everything(1, verbose=False)
    exec(compile(code.replace(MODEL_LINE, "tiny_model()"), "README.md", "exec"), names)
    return names


def test_the_first_lines_are_the_two_commands() -> None:
    lines = [line for line in README.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert lines[0].startswith("# ")
    assert [line.split("#")[0].strip() for line in lines[2:4]] == ["make quickstart", "make test"]


def test_the_critic_alone(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = snippet("QCritic(")
    assert len([line for line in code.splitlines() if line.strip()]) <= 18
    names = execute(code)
    figures = names["critic"].figures
    assert 0 <= figures["brier"] <= 1 and figures["turns"] == len(names["held_out"]) == 4
    scored = re.findall(r"^(0\.\d\d|1\.00)  (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert len(scored) == 4 and scored[0][1].startswith("Yes!")


def test_the_policy_alone(chats: Path) -> None:
    before = tiny_model().variant_tensors("policy")
    names = execute(snippet("PPOPolicy("))
    policy, rounds = names["policy"], names["rounds"]
    assert rounds.round == names["trainer"].max_epochs == 5
    assert policy.figures["reward_mean"] is not None and policy.figures["kl_old"] > 0
    after = {key: tensor for key, tensor in policy.model.causal_lm.state_dict().items()}
    assert before and after and all(torch.isfinite(tensor).all() for tensor in after.values())
    model = AutoModelForCausalLM.from_pretrained(chats.parent / "agent")
    assert model.config.model_type == "llama"


def test_a_prompt_without_a_log_is_a_state(chats: Path) -> None:
    (expression,) = re.findall(r"`(Conversation\(.*\))`", README.read_text(encoding="utf-8"))
    prompt = eval(expression, {"Conversation": Conversation, "Turn": Turn})
    code = snippet("PPOPolicy(").replace("max_epochs=5", "max_epochs=1")
    code = code.replace('read_conversations("my_chats.jsonl")', "[prompt]")
    names: dict[str, Any] = {"tiny_model": tiny_model, "prompt": prompt}
    exec(compile(code.replace(MODEL_LINE, "tiny_model()"), "README.md", "exec"), names)
    assert names["rounds"].round == 1


def test_the_customer_is_the_example() -> None:
    assert snippet("CustomerReply") == (ROOT / "examples" / "own_customer" / "booking.py").read_text(encoding="utf-8")


def test_every_link_leads_somewhere() -> None:
    for path in (README, *DOCS):
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("#"):
                titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
                assert target[1:] in [title.lower().replace(" ", "-") for title in titles], f"{path.name}: {target}"
            elif not target.startswith("http"):
                assert (path.parent / target).exists() or "results" in target, f"{path.name}: {target}"


def commands() -> argparse._SubParsersAction[Any]:
    parser, _ = _parser()
    (action,) = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    return action


def test_the_table_of_commands_is_complete() -> None:
    rows = re.findall(r"^\| (`iterppo .*?) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    said = [match for row in rows for match in re.findall(r"`iterppo ([\w-]+)", row)]
    assert set(said) == set(commands().choices)
    for row in rows:
        name = row.split()[1].strip("`,")
        known = {option for action in commands().choices[name]._actions for option in action.option_strings}
        assert set(re.findall(r"(?<=[ \[])--?[a-z]+", row)) <= known, row


def command_lines() -> list[tuple[str, str]]:
    """`iterppo train …` and `iterppo show …` as they stand in code, by file."""
    found = []
    for path in (README, *DOCS):
        text = path.read_text(encoding="utf-8")
        for line in re.findall(r"(?:^|`)(iterppo (?:train|show) [a-z][^`#\n]*)", text, re.MULTILINE):
            found.append((path.name, line.strip()))
    return found


@pytest.mark.parametrize(("file", "line"), command_lines(), ids=lambda value: value)
def test_a_command_line_composes(file: str, line: str) -> None:
    recipe, *overrides = shlex.split(line)[2:]
    if recipe.endswith(".yaml"):
        recipe = "shop"  # a file of the reader's
    compose(recipe, [each for each in overrides if "=" in each and not each.endswith("=…")])


# The YAML of docs/logs.md is a mapping file: tests/data/test_import_page.py imports with it.
@pytest.mark.parametrize("path", [README, *(d for d in DOCS if d.name != "logs.md")], ids=lambda path: path.name)
def test_a_recipe_composes(path: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(path, "yaml")):
        head = "" if "defaults:" in block else "defaults: [shop, _self_]\n"
        file = tmp_path / f"recipe{number}.yaml"
        file.write_text(head + block, encoding="utf-8")
        compose(str(file))


def test_the_snippets_of_the_docs_are_python() -> None:
    for path in DOCS:
        for block in blocks(path, "python"):
            compile(block, path.name, "exec")


def test_recipes_groups_and_sections_are_all_named() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for info in available_recipes():
        assert any(row.startswith(f"| `{info.name}` |") for row in rows), info.name
    for group, options in available_groups().items():
        (row,) = [row for row in rows if f"`{group}`" in row.split("|")[1] and f"`{options[0]}`" in row]
        for option in options:
            assert f"`{option}`" in row, f"{group}={option}"
    for field in dataclasses.fields(Recipe):
        assert any(f"`{field.name}`" in row.split("|")[1] for row in rows), field.name
    for section in OPEN_SECTIONS:
        assert f"`{section}`" in text


def test_every_key_of_the_summary_is_explained() -> None:
    text = (ROOT / "docs" / "run-directory.md").read_text(encoding="utf-8")
    rate = Rate(0.5, (0.4, 0.6), 10, 0.5)
    record = IterationRecord(0, rate)
    nested = [f"{section}.{key}" for section in ("critic", "policy", "suggestions") for key in getattr(record, section)]
    plain = [*Summary("shop", 1).to_json(), *dataclasses.asdict(rate), *dataclasses.asdict(record)]
    plain = [key for key in plain if key not in ("critic", "policy", "suggestions")]
    for key in [*plain, *nested, *record.seconds, *record.tokens]:
        assert f"`{key}`" in text, key


def test_every_callback_and_argument_is_explained() -> None:
    text = (ROOT / "docs" / "callbacks.md").read_text(encoding="utf-8")
    for name in callbacks.__all__:
        made = getattr(callbacks, name)
        if name == "OuterCallback":
            for hook in [each for each in vars(made) if each.startswith("on_")]:
                assert f"| `{hook}` |" in text, hook
            continue
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        for argument, parameter in inspect.signature(made).parameters.items():
            if argument == "console" and name == "RichProgress":
                continue  # an object, which no recipe can give
            assert f"`{argument}`" in row, f"{name}({argument})"
            default = parameter.default
            if default is not None and default is not inspect.Parameter.empty:
                said = re.search(rf"`{argument}` \((.*?)\)", row)
                assert said is not None, f"{name}({argument})"
                assert type(default)(json.loads(said[1])) == default, f"{name}({argument})"
