"""The examples work: a user's own customer, a short class in a file outside the package, trains by its import path."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from lightning_iterppo.cli import main
from lightning_iterppo.conversation import Conversation, Message
from lightning_iterppo.customers import Customer, CustomerReply
from lightning_iterppo.customers.verifiers import VerifiersCustomer
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.run_directory import RunDirectory
from lightning_iterppo.testing import check_customer

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
EXAMPLE, PLUGIN, ANIMALS = EXAMPLES / "own_customer", EXAMPLES / "plugin", EXAMPLES / "verifiers_animals"
TINY = (
    *("loop.iterations=1", "loop.conversations=12", "loop.evaluation_conversations=4", "loop.batch=12"),
    *("critic.epochs=1", "policy.rounds=2", "policy.conversations_per_round=4", "policy.samples_per_state=2"),
    *("trainer.accelerator=cpu", "trainer.threads=1", "model.scratch.hidden_size=16", "model.scratch.layers=1"),
)


@contextmanager
def somewhere_else(example: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An example's directory somewhere else, as the working directory; its modules are forgotten afterwards."""
    copied = place / "mine"
    shutil.copytree(example, copied, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    monkeypatch.chdir(copied)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = [path.stem for path in copied.glob("*.py")]
    for module in modules:
        monkeypatch.delitem(sys.modules, module, raising=False)
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "ITERPPO_RUN"):
        monkeypatch.delenv(name, raising=False)
    yield copied
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The customer of one's own."""
    with somewhere_else(EXAMPLE, tmp_path, monkeypatch) as copied:
        yield copied


@pytest.fixture
def animals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The environment of verifiers."""
    verifiers = pytest.importorskip("verifiers", reason="environments of verifiers need the extra `verifiers`")
    if not hasattr(verifiers, "MultiTurnEnv"):
        pytest.skip("this release of verifiers has no MultiTurnEnv")
    with somewhere_else(ANIMALS, tmp_path, monkeypatch) as copied:
        monkeypatch.syspath_prepend(str(copied))
        yield copied


def heard_after(conversation: Conversation) -> list[str]:
    """What came after each message."""
    return [*(turn.customer for turn in conversation.turns[1:]), conversation.closing]


def test_the_class_is_short_and_needs_nothing_but_the_protocol() -> None:
    tree = ast.parse((EXAMPLE / "booking.py").read_text(encoding="utf-8"))
    (guest,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert guest.bases == [] and guest.end_lineno is not None
    assert guest.end_lineno - guest.lineno + 1 <= 20
    imported = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert imported == ["lightning_iterppo.customers"]


def test_a_guest_books_when_asked_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place))
    from booking import Guest  # type: ignore[import-not-found]

    guest = Guest()
    assert isinstance(guest, Customer)

    def talk(seed: int, *said: str) -> list[CustomerReply]:
        history = [Message("customer", guest.reset(seed))]
        replies = []
        for text in said:
            history.append(Message("agent", text))
            replies.append(guest.reply(history))
            history.append(Message("customer", replies[-1].text))
        return replies

    hours = {"two": "seven", "six": "eight"}
    heard = {seed: talk(seed, "how many ?")[0].text for seed in range(20)}
    assert set(heard.values()) == set(hours)
    for seed, text in heard.items():
        asked, booked = talk(seed, "how many", hours[text])
        assert not asked.done and booked == CustomerReply("thanks", 1.0, True)
        (wrong,) = {"seven", "eight"} - {hours[text]}
        assert talk(seed, "how many", wrong)[1] == CustomerReply("no", 0.0, True)
        assert talk(seed, "hello", hours[text])[1] == CustomerReply("no", 0.0, True)


def test_it_trains_by_its_import_path(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "booking.yaml", "-o", str(run), *TINY]) == 0
    summary = RunDirectory.open(run).read_summary()
    assert (summary.recipe, summary.status) == ("booking", "finished")
    assert summary.before is not None and summary.after is not None and summary.after.conversations == 4
    assert summary.iterations[0].policy["kl_old"] is not None
    assert (run / "checkpoints" / "iteration-000" / "policy" / "model.safetensors").is_file()
    for conversation in read_conversations(run / "conversations" / "iteration-000.jsonl"):
        assert conversation.turns[0].customer == "a table" and len(conversation.turns) == 2


def test_its_arguments_are_checked(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "booking.yaml", "-o", str(tmp_path / "run"), "customer.huge=nine"]) == 2
    assert "has no argument 'huge'" in capsys.readouterr().err


def test_an_environment_of_verifiers_is_a_customer(animals: Path) -> None:
    from animals import ANIMALS, ANSWERS  # type: ignore[import-not-found]

    make = partial(VerifiersCustomer, "animals")
    found = check_customer(make, messages=[*ANSWERS, "otter", "mouse"], seeds=range(40))
    assert {conversation.outcome for conversation in found} == {0.0, 1.0}
    for conversation in found:
        said = [turn.message for turn in conversation.turns]
        assert not set(said[:-1]) & {*ANIMALS} and (len(said) == 4 or said[-1] in ANIMALS)
        if conversation.outcome:
            assert set(heard_after(conversation)[:-1]) <= {*ANIMALS[said[-1]]}


def test_its_logs_are_what_it_would_have_said(animals: Path) -> None:
    from animals import ANIMALS, logs

    found = logs(200, seed=1)
    for conversation in found:
        if conversation.outcome:
            assert set(heard_after(conversation)[:-1]) <= {*ANIMALS[conversation.turns[-1].message]}
    assert 0.15 < sum(conversation.outcome or 0.0 for conversation in found) / len(found) < 0.45


def test_an_environment_of_verifiers_trains(animals: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    few = ("logs.conversations=12", "warm_start.epochs=1", "policy.log_conversations=4", "policy.batch_conversations=4")
    assert main(["train", "animals.yaml", "-o", str(run), *TINY, *few]) == 0
    summary = RunDirectory.open(run).read_summary()
    assert (summary.recipe, summary.status, summary.failed) == ("animals", "finished", {})
    assert all(c.turns[0].customer == "ask" for c in read_conversations(run / "conversations" / "iteration-000.jsonl"))


def test_another_package_brings_a_customer_and_an_engine_by_name(tmp_path: Path) -> None:
    """The plugin as somebody installs it, without touching this package; its own tests run against it."""
    plugin = tmp_path / "plugin"
    shutil.copytree(PLUGIN, plugin, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    place = tmp_path / "site"
    how = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(place))
    subprocess.run([sys.executable, "-m", "pip", "install", *how, str(plugin)], check=True)
    paths = os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=plugin,
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout + done.stderr
