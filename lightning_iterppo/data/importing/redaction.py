"""Personal data, found by its form and replaced by a word in brackets: ``[email]``, ``[phone]``, ``[card]``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.data.importing.mapping import Mapping
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.extras import need
from lightning_iterppo.recipe_files import nearest

KINDS = ("email", "phone", "card")
_MARKS = "\u0300-\u036f"  # the dots of an ü that is written as u and dots, which are no letters
#: The last part of a domain is of Latin letters or of others, not both: no space need follow it in Chinese.
_EMAIL = re.compile(
    rf"(?:[\w.%+\-{_MARKS}]|(?<=\w)['’](?=\w)){{1,64}}@(?:[\w\-{_MARKS}]{{1,63}}\.)+"
    rf"(?:[A-Za-z0-9\-\u00c0-\u024f{_MARKS}]{{1,63}}|[^\W\u0000-\u024f]{{1,63}})"
)
_DIGITS = re.compile(r"\d(?:[ \u00a0\u202f\-\u2010-\u2013]?\d){12,}")
#: Dots part decimals, versions and addresses too, so with them only groups as on a card are looked at.
_DOTTED = re.compile(r"(?<!\d)\d{4}\.(?:\d{4}\.\d{4}\.\d{4}|\d{6}\.\d{4,5})(?!\d)")
_CARD_DIGITS = (13, 19)  # ISO/IEC 7812: at least and at most in use
_PHONE_DIGITS = 7  # numbers with fewer are not looked for
_LARGEST = 10 ** _CARD_DIGITS[1]  # of the numbers of metadata that are looked at

#: Where something was found in a text: from, to.
Spans = list[tuple[int, int]]


class Redactor:
    """Replaces what is found; the mapping's own patterns first, then addresses, cards and phone numbers.

    Args:
        kinds: some of `KINDS`.
        mapping: with patterns of its own and the regions of phone numbers.

    Raises:
        ConfigError: an unknown kind or region, a pattern that is none, or a package that is not installed.
    """

    def __init__(self, kinds: Sequence[str], mapping: Mapping) -> None:
        for kind in kinds:
            if kind not in KINDS:
                raise ConfigError(f"--redact: {kind!r} is unknown: {nearest(kind, KINDS)}")
        self._finders: list[tuple[str, Callable[[str], Spans]]] = []
        self._in_ids = self._finders
        for name, pattern in mapping.redact.items():
            self._finders.append((name, _own(name, pattern)))
        if "email" in kinds:
            self._finders.append(("email", _emails))
        if "card" in kinds:
            luhn = need("stdnum.luhn", "to find card numbers", "import")
            self._finders += [("card", _dotted_cards(luhn)), ("card", _cards(luhn))]
        if "phone" in kinds:
            phones = need("phonenumbers", "to find phone numbers", "import")
            for region in mapping.phone_regions:
                if region not in phones.SUPPORTED_REGIONS:
                    near = nearest(region, sorted(phones.SUPPORTED_REGIONS))
                    raise ConfigError(f"--mapping: phone_regions: {region!r} is unknown: {near}")
                self._finders.append(("phone", _phones(phones, region)))
            # Any long id looks like a phone number of somewhere, so that in an id the country code is asked for.
            self._in_ids = [each for each in self._finders if each[0] != "phone"]
            self._in_ids.append(("phone", _phones(phones, None)))

    def __bool__(self) -> bool:
        return bool(self._finders)

    @property
    def names(self) -> list[str]:
        """What is looked for."""
        return list(dict.fromkeys(name for name, _ in self._finders))

    def text(self, text: str, found: Counter[str]) -> str:
        """The text without it; what was replaced is counted in ``found``."""
        for name, finder in self._finders:
            for start, end in reversed(finder(text)):
                text = f"{text[:start]}[{name}]{text[end:]}"
                found[name] += 1
        return text

    def suspects(self, name: str) -> bool:
        """Whether personal data is found in an id."""
        return any(finder(name) for _, finder in self._in_ids)

    def conversation(self, conversation: Conversation, found: Counter[str]) -> Conversation:
        """The conversation without it: messages, suggestions, system message and metadata with its keys, not the id.

        Token ids and log-probabilities of a suggestion that is changed are left out: they would spell the old text.
        """
        if not self._finders:
            return conversation
        return replace(
            conversation,
            turns=tuple(self._turn(turn, found) for turn in conversation.turns),
            system=None if conversation.system is None else self.text(conversation.system, found),
            closing=self.text(conversation.closing, found),
            metadata=self._any(conversation.metadata, found),
        )

    def _turn(self, turn: Turn, found: Counter[str]) -> Turn:
        suggestion = turn.suggestion
        if suggestion is not None:
            text = self.text(suggestion.text, found)
            if text != suggestion.text:
                suggestion = Suggestion(text, policy_version=suggestion.policy_version)
        customer, message = self.text(turn.customer, found), self.text(turn.message, found)
        return replace(turn, customer=customer, message=message, suggestion=suggestion)

    def _any(self, value: Any, found: Counter[str]) -> Any:
        if isinstance(value, str):
            return self.text(value, found)
        if isinstance(value, list):
            return [self._any(each, found) for each in value]
        if isinstance(value, dict):
            kept: dict[str, Any] = {}
            for key, each in value.items():
                clean = name = self.text(key, found)
                count = 1
                while name in kept:  # two keys may be personal data, and neither's value is lost
                    count += 1
                    name = f"{clean} {count}"
                kept[name] = self._any(each, found)
            return kept
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST:
            digits = str(abs(int(value)))
            clean = digits if value != int(value) else self.text(digits, found)
            return value if clean == digits else clean
        return value


def _own(name: str, pattern: str) -> Callable[[str], Spans]:
    if name in KINDS or not re.fullmatch(r"[\w-]+", name):
        raise ConfigError(f"--mapping: redact: {name!r} must be another word than {', '.join(KINDS)}")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"--mapping: redact.{name} is not a regular expression: {error}") from error
    if compiled.search(""):
        raise ConfigError(f"--mapping: redact.{name} finds the empty text, so it would be found everywhere")
    return lambda text: [match.span() for match in compiled.finditer(text)]


def _emails(text: str) -> Spans:
    return [match.span() for match in _EMAIL.finditer(text)] if "@" in text else []


def _phones(library: Any, region: str | None) -> Callable[[str], Spans]:
    def find(text: str) -> Spans:
        if sum(map(str.isdigit, text)) < _PHONE_DIGITS:
            return []
        return [(match.start, match.end) for match in library.PhoneNumberMatcher(text, region)]

    return find


def _dotted_cards(luhn: Any) -> Callable[[str], Spans]:
    return lambda text: [
        match.span() for match in _DOTTED.finditer(text) if luhn.is_valid(match.group().replace(".", ""))
    ]


def _cards(luhn: Any) -> Callable[[str], Spans]:
    """Runs of groups of digits, with the check digit of ISO/IEC 7812, wherever in a longer run they stand."""
    least, most = _CARD_DIGITS

    def find(text: str) -> Spans:
        found: Spans = []
        for run in _DIGITS.finditer(text):
            groups = [match.span() for match in re.finditer(r"\d+", run.group())]
            first = 0
            while first < len(groups):
                for last in range(len(groups) - 1, first - 1, -1):
                    start, end = groups[first][0], groups[last][1]
                    digits = re.sub(r"\D", "", run.group()[start:end])
                    if least <= len(digits) <= most and luhn.is_valid(digits):
                        found.append((run.start() + start, run.start() + end))
                        first = last
                        break
                first += 1
        return found

    return find
