"""`iterppo store`: what goes in and out by the command line, what it prints, and the one line of every mistake."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command

from lightning_iterppo.cli import _parse, main
from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.data.logs import read_conversations, write_conversations
from lightning_iterppo.data.store import ConversationStore, schema
from lightning_iterppo.data.store.database import Database

Says = Callable[..., Any]
CHAT = '{"id": "17", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes!"}]}\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    (tmp_path / "chat.jsonl").write_text(CHAT, encoding="utf-8")
    return tmp_path


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Says:
    """Runs `iterppo store …` and gives what it prints as JSON."""

    def run(*words: str) -> Any:
        assert main(["store", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `iterppo store …`, which must fail with exit code 2 and one line, and gives the line."""

    def run(*words: str) -> str:
        assert main(["store", *words]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("iterppo: ") and printed.err.count("\n") == 1
        return printed.err

    return run


def talks() -> list[Conversation]:
    """Two policies' conversations, with suggestions of every disposition, and one of people alone."""
    made: list[Conversation] = []
    for version in ("v1", "v2"):
        for number in range(4):
            first = Suggestion("Hello", (1,), (-0.5,), version)
            second = Suggestion("abcd", (2,), (-0.25,), version)
            turns = (
                Turn("hi", "Hello", first, "accepted"),
                Turn("so?", "abxx", second, "edited" if number else "rejected", float(number == 1)),
            )
            outcome = None if number == 3 else float(number == 1)
            made.append(Conversation(f"{version}-{number}", turns, outcome=outcome, policy_version=version))
    return [*made, Conversation("people", (Turn("hi", "Hello"),))]


def test_from_files_into_a_store_and_back(url: str, says: Says) -> None:
    write_conversations("logs.jsonl", talks())
    assert says("add", url, "logs.jsonl", "chat.jsonl") == {"store": str(Database(url)), "added": 10, "known": 0}
    assert says("add", url, "logs.jsonl")["known"] == 9
    assert says("export", url, "-o", "out.jsonl")["conversations"] == 10
    assert read_conversations("out.jsonl") == [*talks(), *read_conversations("chat.jsonl")]
    chosen = ("--policy-version", "v1", "v2", "--known-outcomes")
    assert says("export", url, "-o", "known.jsonl", *chosen)["conversations"] == 6
    with ConversationStore(url) as store:
        store.add([replace(talks()[0], id="mine")], run="mine", iteration=3)
    assert says("export", url, "-o", "mine.jsonl", "--run", "mine", "--iteration", "3")["conversations"] == 1


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_outcomes_that_came_later(says: Says, fails: Callable[..., str], here: Path, form: str) -> None:
    write_conversations("logs.jsonl", talks())
    says("add", "s.db", "logs.jsonl")
    pairs = [("v1-3", "won"), ("nobody", "lost"), ("v2-3", "lost"), ("v1-3", "won"), ("v1-1", 1), ("people", "")]
    (here / "mapping.yaml").write_text(
        "outcome_values: {won: 1, lost: 0}\noutcomes: {conversation: who, outcome: how}\n"
    )
    if form == "csv":
        (here / "o.csv").write_text("who,how\n" + "".join(f"{name},{value}\n" for name, value in pairs))
    else:
        lines = [json.dumps({"who": name, "how": value}) + "\n" for name, value in pairs]
        (here / "o.jsonl").write_text("".join(lines))
    assert says("outcomes", "s.db", f"o.{form}", "--mapping", "mapping.yaml") == {
        **{"store": "s.db", "read": 4, "repeated": 1, "empty": 1, "dropped": {}},
        **{"recorded": 2, "known": 1, "without_conversation": 1},
    }
    (here / "back.csv").write_text("id,outcome\nv1-2,1\nv1-3,0\nbroken\n")
    assert "back.csv:4: a row of another length" in fails("outcomes", "s.db", "back.csv")
    assert "'v1-" in fails("outcomes", "s.db", "back.csv", "--skip-bad")
    found = says("outcomes", "s.db", "back.csv", "--skip-bad", "--correct")
    assert (found["recorded"], found["dropped"]) == (2, {"a row of another length": 1})
    with ConversationStore("s.db") as store:
        ended = {each.id: each.outcome for each in store.conversations()}
    assert ended["v1-3"] == 0.0 and ended["v1-2"] == 1.0 and ended["v2-3"] == 0.0 and ended["people"] is None


def test_show_counts_by_policy(url: str, says: Says, capsys: pytest.CaptureFixture[str]) -> None:
    write_conversations("logs.jsonl", talks())
    says("add", url, "logs.jsonl")
    with ConversationStore(url) as store:
        store.record_outcome("v2-1", 0.0, correct=True)
        store.record_outcome("v2-3", 2.0)
        store.add_iteration("mine", 0, {})
    found = says("show", url)
    first, second, people = found.pop("policy_versions")
    assert found == {
        **{"store": str(Database(url)), "form": schema.newest_version(), "conversations": 9},
        **{"outcomes_known": 7, "outcomes_recorded": 8, "iterations": 1},
    }
    assert (first["policy_version"], first["conversations"], first["suggestions"]) == ("v1", 4, 8)
    assert first["shares"] == {"accepted": 0.5, "edited": 0.375, "rejected": 0.125, "unassisted": 0.0}
    assert first["acceptance_rate"] == 0.5 and first["edit_distance"] == 0.5
    assert first["outcome"]["outcome_rate"] == pytest.approx(1 / 3) and first["outcome"]["conversations"] == 3
    assert first["outcome"]["ci95"] == pytest.approx([0.0615, 0.7923], abs=1e-3)
    assert second["outcome"]["outcome_rate"] == 0.25 and second["outcome"]["return_mean"] == 0.5
    assert (people["policy_version"], people["outcome"], people["acceptance_rate"]) == (None, None, None)
    assert main(["store", "show", url]) == 0
    printed = capsys.readouterr().out
    assert (
        "v1: 4 conversations; outcome rate 33.3 % (6.1 to 79.2) of 3 known; 8 suggestions: accepted 50.0 %" in printed
    )
    assert "no policy: 1 conversations; no outcome known; no suggestions" in printed


def test_an_empty_store_has_nothing_to_show(says: Says) -> None:
    ConversationStore("s.db").close()
    assert says("show", "s.db")["policy_versions"] == []


def test_an_older_store_is_upgraded(fails: Callable[..., str], says: Says) -> None:
    database, config = Database("old store.db"), schema._config()
    with database.writing() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    database.close()
    assert "run `iterppo store upgrade 'old store.db'`" in fails("add", "old store.db", "chat.jsonl")
    newest = schema.newest_version()
    assert says("upgrade", "old store.db") == {"store": "old store.db", "form_before": "0001", "form": newest}
    assert says("add", "old store.db", "chat.jsonl")["added"] == 1


def test_mistakes_are_one_line_and_leave_nothing(here: Path, fails: Callable[..., str], says: Says) -> None:
    (here / "broken.jsonl").write_text(CHAT.replace("17", "18") + "{nope\n")
    (here / "nameless.jsonl").write_text(CHAT.replace('"id": "17", ', ""))
    (here / "empty.jsonl").write_text("\n")
    (here / "other.jsonl").write_text(CHAT.replace("18", "19") + CHAT.replace("Yes", "No"))
    (here / "o.csv").write_text("id,outcome\n17,1\n")
    (here / "mapping.yaml").write_text("fields: {conversation: id}\n")
    says("add", "s.db", "chat.jsonl")
    for words, said in (
        (["add", "s.db", "none.jsonl"], "there is no file none.jsonl"),
        (["add", "s.db", "broken.jsonl"], "broken.jsonl:2: not JSON"),
        (["add", "s.db", "nameless.jsonl"], "nameless.jsonl:1: no id"),
        (["add", "s.db", "empty.jsonl"], "the file holds no conversation"),
        (["add", "s.db", "other.jsonl"], "conversation '17' is in the store already"),
        (["outcomes", "none.db", "o.csv"], "there is no store none.db"),
        (["outcomes", "s.db", "chat.txt"], "there is no file chat.txt"),
        (["outcomes", "s.db", "s.db"], "a .csv or a .jsonl file was expected"),
        (["outcomes", "s.db", "o.csv", "--mapping", "mapping.yaml"], "fields.conversation has no meaning for outcomes"),
        (["export", "s.db", "-o", "chat.jsonl"], "chat.jsonl is there already"),
        (["export", "s.db", "-o", "x.jsonl", "--policy-version", "v9"], "s.db has no such conversation"),
        (["export", "none.db", "-o", "x.jsonl"], "there is no store none.db"),
        (["show", "none.db"], "there is no store none.db"),
        (["upgrade", "none.db"], "there is no store none.db"),
        (["show", "mysql://me:secret@host/x"], "mysql://me:***@host/x"),
        (["sho", "s.db"], "invalid choice: 'sho'"),
        (["show"], "required: URL"),
        ([], "required: COMMAND"),
        (["show", "s.db", "postgresql://me:secret@host/x"], "postgresql://me:***@host/x' is one word too many"),
    ):
        found = fails(*words)
        assert said in found and "secret" not in found, words
    assert says("show", "s.db")["conversations"] == 1
    assert not (here / "x.jsonl").exists() and not (here / "none.db").exists()


@pytest.mark.parametrize("place", ["new.db", "s.db"])
def test_files_that_are_refused_make_no_store_and_change_none(
    here: Path, fails: Callable[..., str], says: Says, place: str
) -> None:
    says("add", "s.db", "chat.jsonl")
    for name, text in {
        "broken": CHAT.replace("17", "18") + "{nope\n",
        "nameless": CHAT.replace("17", "18") + CHAT.replace('"id": "17", ', ""),
        "empty": "\n",
        "twice": CHAT.replace("17", "18") + CHAT + CHAT.replace("Yes", "No"),
        "long": CHAT.replace("17", "17" * 300),
    }.items():
        (here / f"{name}.jsonl").write_text(text)
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    for name in ("broken", "nameless", "empty", "twice", "long"):
        fails("add", place, f"{name}.jsonl")
        assert {path.name: path.read_bytes() for path in here.iterdir()} == before, name


@pytest.mark.parametrize("somebody", [True, False])
def test_a_store_that_cannot_be_put_in_its_place_is_written_there(
    here: Path, says: Says, monkeypatch: pytest.MonkeyPatch, somebody: bool
) -> None:
    """Because somebody else made one meanwhile, to which it is added, or because the file system has no links."""
    link = os.link

    def late(made: Path, place: Path) -> None:
        if not somebody:
            raise PermissionError(1, "Operation not permitted")
        with ConversationStore(str(place)) as store:
            store.add(talks()[:2])
        link(made, place)

    monkeypatch.setattr(os, "link", late)
    assert says("add", "new.db", "chat.jsonl") == {"store": "new.db", "added": 1, "known": 0}
    assert says("show", "new.db")["conversations"] == (3 if somebody else 1)
    assert {path.name for path in here.iterdir()} == {"chat.jsonl", "new.db"}


def test_a_journal_that_another_store_left_does_not_come_into_a_new_one(here: Path, says: Says) -> None:
    with ConversationStore("new.db") as store:
        store.add(talks())
        journal = (here / "new.db-wal").read_bytes()
    (here / "new.db").unlink()
    (here / "new.db-wal").write_bytes(journal)
    says("add", "new.db", "chat.jsonl")
    assert says("show", "new.db")["conversations"] == 1


def test_the_commands_of_the_page_are_commands() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "store.md"
    lines = re.findall(r"^(iterppo .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) > 5
    for line in lines:
        _parse(shlex.split(line, comments=True)[1:])


def test_a_traceback_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "show", "s.db", "postgresql://me:secret@host/x", "--debug"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed and "me:***@host" in printed and "secret" not in printed


def test_without_the_packages_it_says_what_to_install(here: Path) -> None:
    code = (
        "import sys; sys.modules['sqlalchemy'] = None; from lightning_iterppo.cli import main; "
        "sys.exit(main(['store', 'add', 's.db', 'chat.jsonl']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "iterppo: sqlalchemy is needed for a store of conversations and is not installed: "
        "pip install 'lightning-iterppo[store]'\n"
    )
