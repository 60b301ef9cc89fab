"""A broken record is an error with its file and line, which writes nothing, or is skipped and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_iterppo.cli import main
from lightning_iterppo.conversation import Conversation, ConversationError
from lightning_iterppo.data.importing import objects
from lightning_iterppo.errors import ConfigError, LogDataError, LogFormatError

USER, AGENT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}


def of(*messages: Any, **more: Any) -> str:
    return json.dumps({"id": "bad", "messages": list(messages), **more})


CHAT = [
    ("{nope", "not JSON: .*column 2"),
    ('{"id": NaN}', "not JSON: NaN"),
    ("[" * 100_000, "not JSON: .*deep"),
    ('"a"', "not a JSON object: found str"),
    ('{"id": "a", "talk": []}', "no messages: .*'talk'"),
    (of(), "no messages: "),
    (of("hi"), "a message that is no object: message 0"),
    (of(USER), "no agent message: "),
    (of(USER, {"role": "owner", "content": "x"}), "unknown role: message 1: 'role' is 'owner'.*roles:"),
    (of({"content": "x"}), "unknown role: message 0: 'role' is missing"),
    (of(AGENT, {"role": "user"}), "a message without text: message 1: 'content' is missing"),
    (of(AGENT, {"role": "user", "content": {"a": 1}}), "a message without text: message 1.*{'a': 1}"),
    (of(AGENT, {"role": "user", "content": [1]}), "a message with other parts than text: message 1: a part is 1"),
    (
        of(AGENT, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
        "a message with other parts than text: message 1: a part is 'image_url'; take",
    ),
    (of(AGENT, {"role": "user", "content": []}), "an empty message: message 1"),
    (
        of(USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}),
        "a tool call without text: message 1: .*empty_messages: drop.*roles: {tool: ignore}",
    ),
    ('{"id": ' + "1" * 5000 + "}", "not JSON: a whole number has too many digits"),
    (of(AGENT, {"role": "user", "content": " "}), "an empty message: message 1.*empty_messages: drop"),
    (of(AGENT, outcome="won"), "not a number: 'outcome' is 'won'.*outcome_values"),
    (of(AGENT, outcome=[1]), "not a number"),
    (of(AGENT, outcome=10**400), "not a number"),
    (of(AGENT, id=[1]), "an id that is no name"),
    (of({**AGENT, "reward": "much"}), "not a number: message 0: 'reward'"),
    (of({**AGENT, "reward": 1}, outcome=2), "rewards that are not the outcome: .*1, and the outcome is 2"),
    (of({**AGENT, "reward": 0}, outcome=2), "rewards that are not the outcome: .*0, and the outcome is 2"),
    (of({**AGENT, "reward": 1}, USER, AGENT), "rewards of some turns only: 1 of 2"),
    (of({**USER, "reward": 1}, AGENT), "a reward before the first agent message"),
    (of({**USER, "role": "system", "reward": 1}, AGENT), "a reward of a system message"),
    (of({**USER, "suggestion": "x"}, AGENT), "a suggestion that is not the agent's: message 0 is the customer's"),
    (of({**AGENT, "suggestion": "yo", "disposition": "edited"}), "a disposition that cannot be: message 0: edited"),
    (of({**AGENT, "suggestion": "yo", "disposition": "rejected"}), "a disposition that cannot be"),
    (of({**AGENT, "suggestion": "x", "disposition": "accepted"}), "a disposition that cannot be: .*another text"),
    (of({**AGENT, "suggestion": "x", "disposition": "unassisted"}), "a disposition that cannot be"),
    (of({**AGENT, "disposition": "edited"}), "a disposition without a suggestion"),
    (of({**AGENT, "suggestion": "x"}), "a suggestion without a disposition: .*without_disposition: edited"),
    (of({**AGENT, "suggestion": 5}), "a suggestion that is no text"),
    (of({**AGENT, "suggestion": "yo", "disposition": "acepted"}), "unknown disposition: .*did you mean accepted"),
    (of({**AGENT, "suggestion": "yo"}, AGENT), "neighbours that cannot be joined: message 1: .*accepted.*unassisted"),
    ('{"id": "x", "messages": [{"role": "agent", "content": "\\ud800"}]}', "not Unicode"),
    (of(AGENT, id="good"), "an id that was there before: 'good' is that of .*:1"),
]


@pytest.mark.parametrize(("line", "reason"), CHAT)
def test_a_bad_line_is_told_or_skipped(logs: Any, line: str, reason: str) -> None:
    good = logs.chat(USER, AGENT, id="good")
    path = logs.write("logs.jsonl", json.dumps(good) + "\n\n" + line + "\n")
    with pytest.raises(LogFormatError, match=f"^{path}:3: {reason}") as caught:
        logs.bring("chat", path)
    assert "\n" not in str(caught.value) and "--skip-bad" in str(caught.value)
    assert logs.nothing_left()
    found, report = logs.bring("chat", path, skip_bad=True)
    assert found == [Conversation.from_json(good)]
    assert report.dropped == {reason.split(":")[0]: 1}
    assert report.examples[0].startswith(f"{path}:3: ")
    assert (report.conversations_read, report.conversations_written) == (2, 1)


def test_a_line_that_is_not_utf_8(logs: Any, tmp_path: Path) -> None:
    (tmp_path / "logs.jsonl").write_bytes(json.dumps(logs.chat(AGENT)).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(LogFormatError, match=r"logs\.jsonl:2: not UTF-8"):
        logs.bring("chat", tmp_path / "logs.jsonl")


def said(token_ids: Any, logprobs: Any = ()) -> dict[str, Any]:
    made = {"text": "m", "token_ids": token_ids, "logprobs": list(logprobs)}
    return {"turns": [{"message": "m", "disposition": "accepted", "suggestion": made}]}


OWN: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "no turns: .*import chat"),
    ({"turns": [{"customer": "x"}]}, "not a conversation: "),
    ({"turns": [{"message": "m", "disposition": "accepted"}]}, "a disposition that cannot be: turn 0"),
    ({"turns": [{"message": "m", "suggestion": {"text": "n"}}]}, "a disposition that cannot be: turn 0: unassisted"),
    ({"turns": [{"message": "m", "reward": 1}], "outcome": 3}, "rewards that are not the outcome"),
    ({"turns": [{"message": " "}]}, "an empty message: turn 0"),
    (said([1.7]), 'not a conversation: turn 0: "token_ids" must be .* whole numbers from 0, found \\[1.7\\]'),
    (said([-1]), 'not a conversation: turn 0: "token_ids"'),
    (said([True]), 'not a conversation: turn 0: "token_ids"'),
    (said([1, 2], [-0.5]), 'not a conversation: turn 0: "logprobs" must be as many .* found 1 for 2'),
    (said([], [-0.5]), 'not a conversation: turn 0: "logprobs" must be as many'),
    (said([1], [True]), 'not a conversation: turn 0: "logprobs"'),
    (said([1], [10**400]), 'not a conversation: "logprobs" is too large'),
    (said([1, 2], [-0.5, 0.5]), "a log-probability above 0: turn 0: found 0.5"),
    ({**said([]), "id": ["x"]}, 'not a conversation: "id" must be text or a whole number'),
    ({**said([]), "seed": "abc"}, "not a conversation: \"seed\" must be a whole number, found 'abc'"),
    ({**said([]), "seed": 1.5}, 'not a conversation: "seed"'),
    ({**said([]), "metadata": []}, 'not a conversation: "metadata"'),
]


@pytest.mark.parametrize(("record", "reason"), OWN)
def test_our_own_form_is_checked(logs: Any, record: dict[str, Any], reason: str) -> None:
    path = logs.json({"id": "a", **record}, {"id": "good", **said([1], [-0.5])})
    with pytest.raises(LogFormatError, match=f":1: {reason}"):
        logs.bring("iterppo", path)
    assert logs.nothing_left()
    found, report = logs.bring("iterppo", path, skip_bad=True)
    assert [talk.id for talk in found] == ["good"]
    assert report.dropped == {reason.split(":")[0]: 1}


ARRAY = [
    ('{"id": NaN}', "not JSON: NaN"),
    ('{"id": "a"', "not JSON: the file ends before the array does"),
    ('{"id": "a', "not JSON: the file ends before the array does"),
    ('{"id": "a"}}', "not JSON: Extra data at column 12"),
    ('{"id":\n nope}', "not JSON: .* at line 2 of the record, column 2"),
    ("3", "not a JSON object: found int"),
    ("", "not JSON: a comma without a record"),
    (of(USER), "no agent message"),
    (of(AGENT, id="good"), "an id that was there before: 'good' is that of .*logs.json:2: record 1"),
]


@pytest.mark.parametrize(("element", "reason"), ARRAY)
def test_a_bad_record_of_an_array_is_told_by_its_number_and_its_line(logs: Any, element: str, reason: str) -> None:
    good = [logs.chat(USER, AGENT, id=name) for name in ("good", "last")]
    path = logs.write("logs.json", f"[\n{json.dumps(good[0])},\n\n {element},\n{json.dumps(good[1])}\n]\n")
    with pytest.raises(LogFormatError, match=f"^{path}:4: record 2: {reason}"):
        logs.bring("chat", path)
    assert logs.nothing_left()
    if "ends before" in reason:  # what is behind it cannot be told apart, so nothing can be skipped
        with pytest.raises(LogFormatError, match=reason):
            logs.bring("chat", path, skip_bad=True)
    else:
        found, report = logs.bring("chat", path, skip_bad=True)
        assert [talk.id for talk in found] == ["good", "last"]
        assert report.dropped == {reason.split(":")[0]: 1}
        assert report.examples[0].startswith(f"{path}:4: record 2: ")


def test_what_follows_an_array_is_not_lost(logs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps([logs.chat(AGENT)])
    monkeypatch.setattr(objects, "_CHUNK", len(line))
    for more in ("]", line, " " * 200_000 + line):
        with pytest.raises(LogFormatError, match=r"logs\.json:1: not JSON: something follows the array"):
            logs.bring("chat", logs.write("logs.json", line + more), skip_bad=True)
    assert logs.nothing_left()


@pytest.mark.parametrize(("donated", "outcome"), [(1.0, 0), (0.0, 1), (-1.0, 0), (None, 0)])
def test_a_donation_that_is_not_the_outcome(logs: Any, donated: float | None, outcome: int) -> None:
    with pytest.raises(LogFormatError, match=r":1: (no donation|an outcome that is not the donation)"):
        logs.bring("persuasion", logs.json(logs.chat(AGENT, outcome=outcome, donation_usd=donated)))


HEADER = "conversation,speaker,text,time,outcome"
TABLE = [
    ("a,customer,hi,1", 4, "a row of another length: 4 cells, but the header has 5"),
    ("a,owner,hi,2,1", 4, "unknown role: .*'speaker' is 'owner'"),
    ("a,customer,hi,2,0", 4, "two outcomes: 0 here, 1 in a row before"),
    ("a,customer,hi,,1", 3, "a row without a time: 1 of 2"),
    ("a,customer,hi,2026-01-01,1", 3, "times of two kinds: .*numbers"),
    ("a,customer,hi,soon,1", 4, "a time that is none: 'soon' is not ISO 8601"),
    ("a,customer,,0,1", 4, "an empty message"),
]


@pytest.mark.parametrize(("row", "line", "reason"), TABLE)
def test_a_bad_row_takes_its_conversation_with_it(logs: Any, row: str, line: int, reason: str) -> None:
    path = logs.write("t.csv", f"{HEADER}\nb,agent,yo,0,\na,agent,yo,1,1\n{row}\nb,customer,yes,1,\n")
    with pytest.raises(LogFormatError, match=f"^{path}:{line}: {reason}"):
        logs.bring("table", path)
    assert logs.nothing_left()
    found, report = logs.bring("table", path, skip_bad=True)
    assert [talk.id for talk in found] == ["b"]
    assert report.dropped == {reason.split(":")[0]: 1}
    assert report.rows_read == 4


def test_lines_are_counted_within_quotes_too(logs: Any) -> None:
    path = logs.write("t.csv", 'conversation,speaker,text\na,agent,"1\n2\n3"\n\na,owner,"x\ny"\n')
    with pytest.raises(LogFormatError, match=r"t\.csv:6: unknown role"):
        logs.bring("table", path)


def test_a_row_of_no_conversation(logs: Any) -> None:
    path = logs.write("t.csv", "conversation,speaker,text\na,agent,yo\n,agent,yo\n")
    with pytest.raises(LogFormatError, match=r"t\.csv:3: a row without a conversation"):
        logs.bring("table", path)
    found, report = logs.bring("table", path, skip_bad=True)
    assert len(found) == 1 and report.rows_dropped == {"a row without a conversation": 1}
    assert report.to_json()["rows"] == {"read": 2, "dropped": {"a row without a conversation": 1}}


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('conversation,speaker,text\na,agent,"yo\nb,agent,yo\n', ":2: not CSV"),
        ("conversation,speaker,said\na,agent,yo\n", ":1: there is no column 'text': .*fields: {text: NAME}"),
        ("conversation,text,text,speaker\n", ":1: two columns are called 'text'"),
        ("", ":1: the file is empty"),
    ],
)
def test_a_file_that_is_no_such_table_cannot_be_skipped(logs: Any, text: str, reason: str, skip_bad: bool) -> None:
    with pytest.raises(LogFormatError, match=reason):
        logs.bring("table", logs.write("t.csv", text), skip_bad=skip_bad)
    assert logs.nothing_left()


def test_bytes_that_are_not_utf_8_in_a_table(logs: Any, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"conversation,speaker,text\na,agent,yo\nb,agent,\xe4\n")
    with pytest.raises(LogFormatError, match=r"t\.csv:3: not UTF-8"):
        logs.bring("table", tmp_path / "t.csv")
    assert len(logs.bring("table", tmp_path / "t.csv", skip_bad=True)[0]) == 1


def test_a_row_of_a_parquet_file(logs: Any, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = [{"conversation": n, "speaker": who, "text": "x"} for n, who in enumerate(["agent", "agent", "owner"])]
    parquet.write_table(arrow.Table.from_pylist(made), tmp_path / "t.parquet")
    with pytest.raises(LogFormatError, match=r"t\.parquet:3: unknown role"):
        logs.bring("table", tmp_path / "t.parquet")
    with pytest.raises(LogFormatError, match="not Parquet"):
        logs.bring("table", logs.write("no.parquet", "x" * 100))


@pytest.mark.parametrize("column", ["outcome", "reward"])
def test_a_number_of_a_parquet_file_that_is_none_is_not_taken_for_unknown(
    logs: Any, tmp_path: Path, column: str
) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = [{"conversation": n, "speaker": "agent", "text": "x", column: value} for n, value in enumerate([None, 1.0])]
    made.append({**made[0], "conversation": 2, column: float("nan")})
    parquet.write_table(arrow.Table.from_pylist(made), tmp_path / "t.parquet")
    with pytest.raises(LogFormatError, match=rf"t\.parquet:3: not a number: '{column}' is nan; leave it empty"):
        logs.bring("table", tmp_path / "t.parquet")
    found, report = logs.bring("table", tmp_path / "t.parquet", skip_bad=True)
    assert [talk.outcome for talk in found] == [None, 1.0]
    assert report.dropped == {"not a number": 1}


def test_nothing_that_is_good_is_no_success(logs: Any) -> None:
    with pytest.raises(LogDataError, match=r"no conversation of .* is left to write: .*:1: no agent message"):
        logs.bring("chat", logs.json(logs.chat(USER)), skip_bad=True)
    with pytest.raises(LogDataError, match="no conversation"):
        logs.bring("chat", logs.write("empty.jsonl", "\n"))
    assert logs.nothing_left()


@pytest.mark.parametrize(
    ("form", "name", "reason"),
    [
        ("chatt", "a.jsonl", "no format 'chatt': did you mean chat"),
        ("chat", "none.jsonl", "there is no file"),
        ("chat", ".", "is a directory"),
        ("table", "a.jsonl", r"a \.csv, \.tsv or \.parquet file was expected"),
        ("datasets", "a.jsonl", "no dataset"),
        ("persuasion", "sub", r"holds neither train\.jsonl"),
    ],
)
def test_files_and_formats_that_do_not_fit(logs: Any, tmp_path: Path, form: str, name: str, reason: str) -> None:
    (tmp_path / "sub").mkdir()
    logs.write("a.jsonl", "{}")
    with pytest.raises(ConfigError, match=reason):
        logs.bring(form, tmp_path / name)


def test_the_command_says_so_in_one_line_and_writes_nothing(logs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = logs.json(logs.chat(AGENT), logs.chat(USER, id="b"))
    words = ["import", "chat", str(path), "-o", str(logs.output)]
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"iterppo: {path}:2: no agent message")
    assert printed.err.count("\n") == 1 and logs.nothing_left()
    assert main([*words, "--skip-bad", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dropped"] == {"total": 1, "no agent message": 1}
    assert len(report["examples"]) == 1
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    logs.output.unlink()
    assert main([*words, "--skip-bad"]) == 0
    printed = capsys.readouterr().out
    assert f"{path}:2: no agent message" in printed and "Next: iterppo fit-critic" in printed


@pytest.mark.parametrize("key", ["suggestion", "disposition", "reward"])
def test_the_chat_form_read_without_an_import_refuses_what_it_would_lose(key: str) -> None:
    with pytest.raises(ConversationError, match=f'message 0 has a "{key}".*import chat'):
        Conversation.from_json({"messages": [{**AGENT, key: 1}]})
