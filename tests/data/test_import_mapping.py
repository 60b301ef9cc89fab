"""A mapping says what somebody's logs call things; a key that means nothing is an error."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from lightning_iterppo import cli_import
from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.data.importing import load_mapping
from lightning_iterppo.errors import ConfigError, LogFormatError

NAMES = r"""
fields: {conversation: ticket, speaker: who, text: said, time: at, outcome: result}
roles: {visitor: customer, clerk: agent, note: ignore}
outcome_values: {won: 1, lost: 0}
empty_messages: drop
time_format: "%d.%m.%Y %H:%M"
delimiter: ";"
"""


def test_another_shops_names(logs: Any) -> None:
    text = (
        "ticket;who;said;at;result\n"
        "1;clerk;hello;02.01.2026 09:00;won\n"
        "1;visitor;hi;31.12.2025 23:59;\n"
        "1;note;vip;02.01.2026 09:01;\n"
        "1;visitor;;02.01.2026 09:02;won\n"
    )
    found, report = logs.bring("table", logs.write("t.csv", text), mapping=logs.mapping(NAMES))
    assert found == [Conversation("1", (Turn("hi", "hello", reward=1.0),), outcome=1.0)]
    assert report.changes == {
        "conversations put into the order of their times": 1,
        "messages of ignored roles left out": 1,
        "empty messages left out": 1,
    }


def test_names_of_nested_fields(logs: Any) -> None:
    names = "fields: {conversation: key, messages: log, speaker: by, text: body, outcome: sale}\nroles: {x: agent}"
    record = {"key": 5, "log": [{"by": "x", "body": "hi"}], "sale": True, "outcome": "other"}
    found, _ = logs.bring("chat", logs.json(record), mapping=logs.mapping(names))
    assert found == [Conversation("5", (Turn("", "hi", reward=1.0),), outcome=1.0, metadata={"outcome": "other"})]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("roels: {a: agent}", "unknown key roels: did you mean roles"),
        ("fields: {speeker: a}", r"unknown key fields\.speeker: did you mean fields\.speaker"),
        ("fields: [a]", r"fields is a section, found \['a'\]"),
        ("fields: {speaker: 5}", r"fields\.speaker must be text, found 5"),
        ("roles: {a: agnt}", r"roles\.a must be one of .*found 'agnt': did you mean agent"),
        ("dispositions: {a: kept}", r"dispositions\.a must be one of accepted"),
        ("outcome_values: {won: yes}", r"outcome_values\.won must be a number, found True"),
        ("outcome_values: {yes: 1}", "reads a key of outcome_values as true: put it into quotes"),
        ("without_disposition: accepted", "without_disposition must be one of error, edited, rejected"),
        ("phone_regions: US", "phone_regions must be a list"),
        ("delimiter: ab", "delimiter must be one character"),
        ("[1]", "it must hold a section"),
        ("a: [", "is not YAML"),
    ],
)
def test_what_is_wrong_in_a_mapping_is_named_with_the_nearest(logs: Any, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        logs.mapping(text)
    assert "mapping.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_mapping_changes_nothing_and_a_missing_one_is_told(logs: Any, tmp_path: Path) -> None:
    assert logs.mapping("# nothing").keys_set() == []
    with pytest.raises(ConfigError, match=r"there is no file .*none\.yaml"):
        load_mapping(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("chat", "fields: {time: at}"),
        ("chat", 'delimiter: ";"'),
        ("table", "fields: {messages: log}"),
        ("iterppo", "roles: {a: agent}"),
        ("persuasion", "roles: {a: agent}"),
        ("chat", "outcomes: {outcome: sale}"),
        ("chat", "phone_regions: [DE]"),
    ],
)
def test_a_key_that_means_nothing_here_is_an_error(logs: Any, form: str, text: str) -> None:
    path = logs.json(logs.chat(("assistant", "hi")))
    key = text.split(": ")[0] + ("" if "{" not in text or "fields" not in text else r"\.")
    with pytest.raises(ConfigError, match=rf"--mapping: {key}.* has no meaning for .*: leave it out"):
        logs.bring(form, path, mapping=logs.mapping(text))


def test_a_column_that_the_mapping_names_must_be_there(logs: Any) -> None:
    path = logs.write("t.csv", "conversation,speaker,text,won\na,agent,hi,1\n")
    with pytest.raises(LogFormatError, match=r"t\.csv:1: there is no column 'wonn': did you mean won\?"):
        logs.bring("table", path, mapping=logs.mapping("fields: {outcome: wonn}"))


def test_the_example_of_every_key_is_one_of_the_command(logs: Any) -> None:
    parser = argparse.ArgumentParser()
    cli_import.add_options(parser)
    words = parser.parse_args(["chat", "a", "b", "-o", "c", "--mapping", "m", "--outcomes", "o", "--redact", "email"])
    assert (words.format, words.files, words.skip_bad) == ("chat", [Path("a"), Path("b")], False)
