"""Personal data is replaced in every text that is written, counted, and nothing else is."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.data.importing import Mapping
from lightning_iterppo.data.importing.redaction import Redactor
from lightning_iterppo.data.logs import write_conversations
from lightning_iterppo.errors import ConfigError

pytest.importorskip("phonenumbers")
pytest.importorskip("stdnum")
CARD = "4111 1111 1111 1111"  # a test number of the card networks


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Write to Jo.Doe+x@mail.example.org, ok?", "Write to [email], ok?"),
        ("müller@example.com and a@b", "[email] and a@b"),
        ("call (212) 736-5000 or +49 30 2270", "call [phone] or [phone]"),
        ("call +49 30 227 32152 now", "call [phone] now"),
        ("030 227 32152 is not said to be of Germany", "030 227 32152 is not said to be of Germany"),
        (f"card {CARD}, 4111111111111111 and 4111-1111-1111-1111!", "card [card], [card] and [card]!"),
        ("4111 1111 1111 1112 fails its check digit", "4111 1111 1111 1112 fails its check digit"),
        (f"order 12 {CARD} 99", "order 12 [card] 99"),
        ("it costs 1999.00 since 2026-01-01, size 42", "it costs 1999.00 since 2026-01-01, size 42"),
        ("jörg@müller.de, info@пример.рф.", "[email], [email]."),
        ("jo\u0308rg@mu\u0308ller.de!", "[email]!"),
        ("邮箱anna@example.com请回复", "[email]请回复"),
        ("'o'neil@example.com' is quoted", "'[email]' is quoted"),
        ("4111.1111.1111.1111, 3782.822463.10005 and 4111\u00a01111\u00a01111\u00a01111", "[card], [card] and [card]"),
        ("π is 3.14159265358979, 4111.1111.1111.1112 fails", "π is 3.14159265358979, 4111.1111.1111.1112 fails"),
        ("", ""),
    ],
)
def test_what_is_found(text: str, clean: str) -> None:
    found: Counter[str] = Counter()
    assert Redactor(["email", "phone", "card"], Mapping()).text(text, found) == clean
    assert found.total() == clean.count("[")


def test_regions_and_patterns_of_the_mapping(logs: Any) -> None:
    mapping = logs.mapping("phone_regions: [DE]\nredact: {order: 'ORD-\\d{4}$'}\n")
    found: Counter[str] = Counter()
    assert Redactor(["phone"], mapping).text("030 227 32152 for ORD-1234", found) == "[phone] for [order]"
    assert found == {"order": 1, "phone": 1}
    assert Redactor([], mapping).names == ["order"]


def test_nothing_is_looked_for_that_was_not_asked_for() -> None:
    text = f"a@example.org {CARD} +1 212 736 5000"
    assert Redactor(["email"], Mapping()).text(text, Counter()) == f"[email] {CARD} +1 212 736 5000"
    assert not Redactor([], Mapping())


def test_it_is_replaced_wherever_it_stands_and_counted(logs: Any, tmp_path: Path) -> None:
    mail = "a@example.org"
    turns = (
        Turn(f"I am {mail}", f"hi {mail}", Suggestion(f"hi {mail}", (1, 2), (-1.0, -2.0), "v1"), "accepted"),
        Turn("no", f"at {mail}", Suggestion("at b@example.org", (3,), (-1.0,)), "edited"),
        Turn("so", "yes", Suggestion("yes", (4,), (-1.0,)), "accepted"),
    )
    made = Conversation("+12127365000", turns, system=mail, closing=mail, metadata={"from": [{"mail": mail}], "n": 1})
    write_conversations(tmp_path / "ours.jsonl", [made])
    (found,), report = logs.bring("iterppo", tmp_path / "ours.jsonl", redact=["email", "phone", "card"])
    assert mail not in logs.output.read_text(encoding="utf-8")
    assert found.turns[0] == Turn(
        "I am [email]", "hi [email]", Suggestion("hi [email]", policy_version="v1"), "accepted"
    )
    assert found.turns[1] == Turn("no", "at [email]", Suggestion("at [email]"), "edited")
    assert found.turns[2] == turns[2]
    assert (found.system, found.closing, found.metadata) == (
        "[email]",
        "[email]",
        {"from": [{"mail": "[email]"}], "n": 1},
    )
    assert report.to_json()["redacted"] == {
        "email": 8,
        "card": 0,
        "phone": 0,
        "ids_like_personal_data": 1,
        "suggestions_without_their_tokens": 2,
    }
    assert report.dispositions.edit_total > 0
    # What was cleaned can be imported again.
    logs.output.rename(tmp_path / "again.jsonl")
    assert logs.bring("iterppo", tmp_path / "again.jsonl")[0] == [found]


def test_numbers_and_keys_of_metadata_are_looked_at_too(logs: Any) -> None:
    plain = {"n": 3, "year": 2019, "at": 1767225600, "price": 1999.5, "yes": True, "none": None, "big": 1e300}
    more = {"phone_n": 6502530000, "cards": [4111111111111111, -4111111111111111.0]}
    keys = {"a@example.org": {"+1 212 736 5000": 1}, "b@example.org": 2, "[email] 2": 3}
    record = logs.chat(("user", "hi"), ("assistant", "yo"), **plain, **more, **keys)
    (found,), report = logs.bring("chat", logs.json(record), redact=["email", "phone", "card"])
    assert found.metadata == {
        **plain,
        "phone_n": "[phone]",
        "cards": ["[card]", "[card]"],
        "[email]": {"[phone]": 1},
        "[email] 2": 2,
        "[email] 2 2": 3,
    }
    assert report.redacted == {"email": 2, "phone": 2, "card": 2}


def test_dropped_conversations_are_not_counted(logs: Any) -> None:
    good = logs.chat(("user", "a@example.org"), ("assistant", "hi"))
    _, report = logs.bring("chat", logs.json(good, good), redact=["email"], skip_bad=True)
    assert report.redacted == {"email": 1} and report.dropped.total() == 1


@pytest.mark.parametrize(
    ("kinds", "text", "reason"),
    [
        (["emial"], "", "--redact: 'emial' is unknown: did you mean email"),
        (["phone"], "phone_regions: [UKK]", r"phone_regions: 'UKK' is unknown"),
        ([], "redact: {email: x}", "'email' must be another word"),
        ([], "redact: {'a b': x}", "'a b' must be another word"),
        ([], "redact: {a: '('}", r"redact\.a is not a regular expression"),
        ([], "redact: {a: 'x*'}", r"redact\.a finds the empty text"),
    ],
)
def test_what_cannot_be_looked_for(logs: Any, kinds: list[str], text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Redactor(kinds, logs.mapping(text))


def test_a_package_that_is_not_installed_says_how_to_install_it(logs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("phonenumbers", "stdnum", "stdnum.luhn", "datasets", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    path = logs.json(logs.chat(("assistant", "hi")))
    for kind, package in (("phone", "phonenumbers"), ("card", "python-stdnum")):
        with pytest.raises(ConfigError, match=rf"^{package} is needed .*pip install 'lightning-iterppo\[import\]'"):
            logs.bring("chat", path, redact=[kind])
    assert len(logs.bring("chat", path, redact=["email"])[0]) == 1
    with pytest.raises(ConfigError, match="datasets is needed"):
        logs.bring("datasets", path.parent)
    with pytest.raises(ConfigError, match="pyarrow is needed"):
        logs.bring("table", logs.write("t.parquet", json.dumps({})))
