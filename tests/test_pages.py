"""Pages of which commands write parts: what is marked is replaced, all of it or nothing."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

PAGE = "a\n<!-- one:begin -->\nold\n<!-- one:end -->\nb\n<!-- two:begin -->\n<!-- two:end -->\n"


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    return importlib.import_module("pages")


def test_parts_are_replaced_and_the_rest_stays(pages: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    pages.fill(page, {"two": "second", "one": "first"})
    text = page.read_text(encoding="utf-8")
    assert text == PAGE.replace("old", "first").replace("<!-- two:begin -->\n", "<!-- two:begin -->\nsecond\n")


@pytest.mark.parametrize(
    "text", ["", PAGE.replace("one:end", "end"), PAGE + PAGE, "<!-- one:end -->\n" + PAGE, PAGE.replace("one", "1")]
)
def test_a_page_without_a_part_stays_as_it_is(pages: ModuleType, tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"page\.md must have <!-- one:begin -->"):
        pages.fill(page, {"one": "first"})
    assert page.read_text(encoding="utf-8") == text
