"""The example of docs/logs.md does what the page says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from lightning_iterppo.data.importing.mapping import Mapping

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "logs.md").read_text(encoding="utf-8")


def block(name: str, language: str) -> str:
    found = re.search(rf"`{re.escape(name)}`[^`]*```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None, name
    return found[1]


def test_the_example_is_imported(logs: Any) -> None:
    (first, second), report = logs.bring(
        "table",
        logs.write("messages.csv", block("messages.csv", "csv")),
        mapping=logs.mapping(block("mapping.yaml", "yaml")),
        outcomes=logs.write("sales.csv", block("sales.csv", "csv")),
        redact=["email"],
    )
    assert [turn.disposition for turn in first.turns + second.turns] == ["accepted", "edited", "rejected"]
    assert (first.outcome, second.outcome) == (1.0, 0.0)
    assert first.turns[1].message == "Thank you! Mail [email] with questions."
    assert report.conversations_written == 2


def test_every_key_of_a_mapping_is_on_the_page() -> None:
    table = PAGE.partition("## The mapping file")[2]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert listed == [each.name for each in dataclasses.fields(Mapping)]
