"""Every format becomes the conversations that it means, and the report says what was done to them."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.data.importing import FORMATS, objects
from lightning_iterppo.data.logs import write_conversations
from lightning_iterppo.errors import ConfigError

TALK = Conversation(
    "a", (Turn("hi", "hello"), Turn("shoes?", "yes, blue", reward=1.0)), system="sell", closing="bye", outcome=1.0
)
SAID = [("system", "sell"), ("user", "hi"), ("assistant", "hello"), ("user", "shoes?"), ("assistant", "yes, blue")]
SAID = [*SAID, ("user", "bye")]


def rows(name: str = "a", outcome: Any = 1) -> list[dict[str, Any]]:
    return [
        {"conversation": name, "speaker": role, "text": text, "outcome": outcome, "time": minute}
        for minute, (role, text) in enumerate(SAID)
    ]


def test_the_chat_form_is_read_as_it_is_everywhere_else(logs: Any) -> None:
    records = [
        logs.chat(*SAID, outcome=1),
        logs.chat(*SAID, id="b", shop={"name": "north"}),
        logs.chat(("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d"), id="c", outcome=0.5),
        logs.chat(("assistant", "hi"), ("system", "late"), ("system", "later"), ("user", "no"), id="d", outcome=0),
    ]
    found, report = logs.bring("chat", logs.json(*records))
    assert found == [Conversation.from_json(record) for record in records]
    assert found[0] == TALK
    assert found[1].outcome is None and found[1].turns[-1].reward == 0.0
    assert report.changes == {
        "messages joined with the one before": 2,
        "system messages joined with the one before": 1,
        "system messages moved to the beginning": 2,
    }
    assert (report.conversations_read, report.conversations_written, report.outcomes_known) == (4, 4, 3)


def test_our_own_form_stays_as_it_is(logs: Any, tmp_path: Path) -> None:
    made = [
        dataclasses.replace(
            TALK, turns=(Turn("", "hi", Suggestion("ho", (1, 2), (-0.5, -1.0), "v1"), "edited", 1.0),), seed=3
        ),
        dataclasses.replace(TALK, id="b", outcome=None, turns=(Turn("x", "y"),), metadata={"k": [1, None]}),
    ]
    write_conversations(tmp_path / "ours.jsonl", made)
    found, report = logs.bring("iterppo", tmp_path / "ours.jsonl")
    assert found == made
    assert report.changes == {} and report.dispositions.counts["edited"] == 1


def test_what_a_run_may_write_is_not_broken(logs: Any, tmp_path: Path) -> None:
    ended_at_once = Turn("hi", "", Suggestion("", (7,), (-0.5,), "v1"), "accepted")
    nothing_sent = Turn("and?", "", Suggestion("x", (1, 7), (0.0, 3e-7), "v1"), "rejected")
    made = [dataclasses.replace(TALK, turns=(ended_at_once, nothing_sent), outcome=0.0, seed=2**40)]
    write_conversations(tmp_path / "ours.jsonl", made)
    assert logs.bring("iterppo", tmp_path / "ours.jsonl")[0] == made


def test_fields_that_our_own_form_does_not_have_are_counted(logs: Any) -> None:
    made = TALK.to_json()
    made["turns"] = [
        {
            "customer": "hi",
            "message": "a",
            "note": 1,
            "disposition": "accepted",
            "suggestion": {"text": "a", "score": 2},
        },
        {"customer": "so", "message": "b", "note": 3, "reward": 1.0},
    ]
    _, report = logs.bring("iterppo", logs.json({**made, "shop": "x"}))
    assert report.not_kept == {"shop": 1, "turns.note": 2, "turns.suggestion.score": 1}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [8, 1 << 16])
def test_one_array_is_read_as_lines_are(
    logs: Any, monkeypatch: pytest.MonkeyPatch, indent: int | None, chunk: int
) -> None:
    monkeypatch.setattr(objects, "_CHUNK", chunk)
    odd = ('he said "]},{[" \\', 'end\\\\" ,\n')
    records = [logs.chat(("user", odd[0]), ("assistant", odd[1] * 5), id=str(number), tags=[{}]) for number in range(5)]
    text = json.dumps(records, indent=indent, ensure_ascii=False)
    found, report = logs.bring("chat", logs.write("logs.json", f"\ufeff\n{text}\n\n"))
    assert found == logs.bring("chat", logs.json(*records))[0]
    assert (len(found), report.dropped.total()) == (5, 0)
    shared = [{"conversations": [{"from": "gpt", "value": "yo"}]}]
    found, _ = logs.bring("sharegpt", logs.write("shared.json", json.dumps(shared * 2, indent=indent)))
    assert [talk.id for talk in found] == ["shared-1", "shared-2"]


def test_an_array_need_not_fit_into_memory(logs: Any) -> None:
    record = json.dumps(logs.chat(("user", "x" * 10_000), ("assistant", "yo")))
    path = logs.write("logs.json", "[" + ",".join([record] * 1000) + "]")
    records = objects.json_lines(path)
    tracemalloc.start()
    try:
        assert sum(1 for _ in records) == 1000
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 10
    finally:
        tracemalloc.stop()


def test_messages_in_parts_and_calls_of_tools(logs: Any) -> None:
    parts = [{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}
    told = {"role": "tool", "content": [{"type": "image_url"}], "tool_call_id": "c"}
    record = logs.chat({"role": "user", "content": parts}, call, told, ("assistant", "yo"))
    mapping = logs.mapping("empty_messages: drop\nroles: {tool: ignore}")
    found, report = logs.bring("chat", logs.json(record), mapping=mapping)
    assert found[0].turns == (Turn("hi\nthere", "yo"),)
    assert report.changes == {"empty messages left out": 1, "messages of ignored roles left out": 1}
    assert report.not_kept == {"tool_calls": 1, "tool_call_id": 1}


def test_sharegpt(logs: Any) -> None:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    record = {"id": "a", "conversations": [{"from": names[role], "value": text} for role, text in SAID], "outcome": 1}
    found, _ = logs.bring("sharegpt", logs.json(record))
    assert found == [TALK]


def test_a_conversation_without_an_id_is_named_after_its_line(logs: Any) -> None:
    record = {"messages": [{"role": "assistant", "content": "hi", "stamp": 3, "note": None}]}
    found, report = logs.bring("chat", logs.json(record, {**record, "id": 17}))
    assert [talk.id for talk in found] == ["logs-1", "17"]
    assert report.changes == {"conversations named after file and line": 1}
    assert report.not_kept == {"stamp": 2}


def as_csv(found: list[dict[str, Any]]) -> str:
    return "\n".join(
        ",".join(json.dumps(str(cell)) for cell in row) for row in [list(found[0]), *map(dict.values, found)]
    )


def test_rows_of_a_csv_may_lie_anywhere(logs: Any) -> None:
    mixed = [row for pair in zip(rows("b", 0), reversed(rows("a")), strict=True) for row in pair]
    first, second = logs.write("1.csv", as_csv(mixed[:5])), logs.write("2.csv", "\ufeff" + as_csv(mixed[5:]))
    found, report = logs.bring("table", first, second)
    assert [talk.id for talk in found] == ["b", "a"]
    assert found[1] == TALK
    assert found[0] == dataclasses.replace(
        TALK, id="b", outcome=0.0, turns=(TALK.turns[0], dataclasses.replace(TALK.turns[1], reward=0.0))
    )
    assert report.changes == {"conversations put into the order of their times": 1}
    assert report.rows_read == 12


def test_without_times_rows_stay_in_their_order_and_cells_may_have_lines(logs: Any) -> None:
    text = 'conversation,speaker,text,shop\n7,agent,"one\ntwo",north\n7,customer,"a, ""b""",north\n'
    found, report = logs.bring("table", logs.write("t.csv", text))
    assert found == [Conversation("7", (Turn("", "one\ntwo"),), closing='a, "b"')]
    assert report.not_kept == {"shop": 2}


def test_an_outcome_of_a_table_may_stand_in_one_row_or_none(logs: Any) -> None:
    text = "conversation,speaker,text,outcome\na,agent,hi,\nb,agent,ho,\na,customer,yes,True\n"
    found, report = logs.bring("table", logs.write("t.csv", text))
    assert [talk.outcome for talk in found] == [1.0, None]
    assert (report.outcomes_known, report.to_json()["outcomes"]["unknown"]) == (1, 1)


@pytest.mark.parametrize("times", ["whole numbers", "moments"])
def test_parquet(logs: Any, tmp_path: Path, times: str) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = [*reversed(rows("b", None)), *rows("a", 1.0)]
    if times == "moments":
        for row in made:
            row["time"] = datetime(2026, 1, 1) + timedelta(minutes=row["time"])
    parquet.write_table(arrow.Table.from_pylist(made), tmp_path / "t.parquet")
    found, report = logs.bring("table", tmp_path / "t.parquet")
    assert found[1] == TALK
    assert found[0].outcome is None and found[0].messages == TALK.messages
    assert report.rows_read == 12


@pytest.mark.parametrize("form", ["chat", "sharegpt", "table"])
def test_a_dataset_on_the_disk(logs: Any, tmp_path: Path, form: str) -> None:
    datasets = pytest.importorskip("datasets")
    records: list[dict[str, Any]] = {
        "chat": [logs.chat(*SAID, outcome=1)],
        "sharegpt": [
            {"id": "a", "outcome": 1, "conversations": [{"from": role, "value": text} for role, text in SAID]}
        ],
        "table": rows(),
    }[form]
    datasets.Dataset.from_list(records).save_to_disk(str(tmp_path / "saved"))
    found, report = logs.bring("datasets", tmp_path / "saved")
    assert found == [TALK]
    assert report.rows_read == (6 if form == "table" else None)


def test_a_dataset_of_several_splits_says_which_there_are(logs: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list([logs.chat(*SAID)])
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ConfigError, match=r"holds train, test: give one or several of them, e\.g\. .*train"):
        logs.bring("datasets", tmp_path / "saved")
    assert len(logs.bring("datasets", tmp_path / "saved" / "train")[0]) == 1


def test_persuasion_for_good_by_directory_and_by_amount(logs: Any, tmp_path: Path) -> None:
    given = logs.chat(("assistant", "give"), ("user", "ok"), outcome=1, donation_usd=2.5)
    kept = logs.chat(("assistant", "give"), ("user", "no"), id="b", outcome=0, donation_usd=0.0)
    logs.json(given, name="train.jsonl")
    logs.json(kept, name="validation.jsonl")
    found, _ = logs.bring("persuasion", tmp_path)
    assert [talk.outcome for talk in found] == [1.0, 0.0]
    assert found[0].metadata == {"donation_usd": 2.5}
    amount = logs.mapping("fields: {outcome: donation_usd}")
    found, _ = logs.bring("persuasion", tmp_path / "train.jsonl", mapping=amount)
    assert (found[0].outcome, found[0].turns[-1].reward, found[0].metadata) == (2.5, 2.5, {"outcome": 1})


def test_rewards_of_turns(logs: Any) -> None:
    record = logs.chat(
        {"role": "assistant", "content": "hi", "reward": 0},
        {"role": "user", "content": "I take one", "reward": 2},
        {"role": "assistant", "content": "another?", "reward": -0.5},
    )
    found, _ = logs.bring("chat", logs.json(record, {**record, "id": "b", "outcome": 1.5}))
    assert [turn.reward for turn in found[0].turns] == [2.0, -0.5]
    assert [talk.outcome for talk in found] == [1.5, 1.5]


def test_progress_goes_up_to_the_end(logs: Any) -> None:
    seen: list[float] = []
    many = [logs.chat(*SAID, id=str(number)) for number in range(200)]
    logs.bring("chat", logs.json(*many), on_progress=lambda share, count: seen.append(share))
    assert len(seen) >= 4 and seen == sorted(seen) and seen[-1] == 1.0 and seen[0] < 0.5
    table = logs.write("t.csv", as_csv([row for number in range(300) for row in rows(str(number))]))
    seen.clear()
    logs.bring("table", table, on_progress=lambda share, count: seen.append(share))
    assert len(seen) >= 4 and seen == sorted(seen) and seen[-1] == 1.0 and 0.5 in seen


def test_the_formats_of_the_command_line_are_all_of_them() -> None:
    assert sorted(FORMATS) == ["chat", "datasets", "iterppo", "persuasion", "sharegpt", "table"]
