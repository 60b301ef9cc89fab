"""Pages with parts that a command writes: between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_iterppo.files import write_text_atomically


def filled(text: str, name: str, part: str, where: str = "the page") -> str:
    """A page's text with one of its parts replaced.

    Raises:
        ValueError: the page, which is called ``where``, does not have the part's two comments, once each and in order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended or begin in rest or end in before + after:
        raise ValueError(f"{where} must have {begin} and, after it, {end}, each once")
    return f"{before}{begin}\n{part}\n{end}{after}"


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Replaces parts of a page, all or none.

    Raises:
        ValueError: the page lacks one of them.
    """
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = filled(text, name, part, str(page))
    write_text_atomically(page, text)
