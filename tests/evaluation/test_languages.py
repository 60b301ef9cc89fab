"""The guard of a promotion that looks at languages."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import Any

import pytest

from lightning_iterppo.errors import ConfigError
from lightning_iterppo.evaluation.languages import language_guard, languages

ENGLISH = [
    "Hello! What are you looking for today?",
    "The red hat costs twenty dollars. Shall I put it aside for you?",
    "Yes, we have that one in blue and in green as well.",
    "May I have your phone number, so that we can call you?",
] * 5
GERMAN = [
    "Guten Tag, wie kann ich Ihnen helfen?",
    "Wir haben den Hut in Blau und in Rot, und er ist aus Wolle.",
    "Das ist ein guter Preis für diese Tasche.",
    "Soll ich Ihnen die Tasche bis morgen zurücklegen?",
] * 5


def test_languages_of_the_same_letters_are_told_apart() -> None:
    assert languages([*ENGLISH, *GERMAN], GERMAN) == [Counter(en=20, de=20), Counter(de=20)]


def test_what_is_too_short_for_a_language_does_not_count() -> None:
    assert languages(["no", "ok", "20", ""]) == [Counter()]


@pytest.mark.parametrize(
    ("policy", "passed", "shift"),
    [(ENGLISH, True, 0.0), (GERMAN, False, 1.0), ([*ENGLISH[:18], *GERMAN[:2]], True, 0.1)],
)
def test_the_guard_passes_who_speaks_the_references_languages(policy: list[str], passed: bool, shift: float) -> None:
    guard = language_guard(policy, ENGLISH, 0.1)
    assert (guard.name, guard.passed) == ("language", passed)
    assert guard.figures["shift"] == pytest.approx(shift)
    assert guard.figures["reference"] == {"en": 20}


def test_a_reference_of_two_languages_may_be_followed_in_both() -> None:
    both = [*ENGLISH[:10], *GERMAN[:10]]
    assert language_guard(both, both, 0.0).passed is True
    assert language_guard(ENGLISH, both, 0.4).passed is False, "a language went missing"


def test_a_few_texts_are_no_evidence() -> None:
    guard = language_guard(GERMAN[:9], ENGLISH, 0.1)
    assert guard.passed is None and "certain of 9 and 20" in guard.says


def test_without_the_package_the_guard_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match="py3langid"):
        languages(ENGLISH)
    guard = language_guard(ENGLISH, ENGLISH, 0.1)
    assert guard.passed is None and "pip install 'lightning-iterppo[language]'" in guard.says
