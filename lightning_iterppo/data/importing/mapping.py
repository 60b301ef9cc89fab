"""The mapping file: the names that somebody's logs use, and the choices that only their owner can make."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from lightning_iterppo.conversation import Disposition
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.recipe_files import nearest

MappedRole = Literal["customer", "agent", "system", "ignore"]


@dataclass(frozen=True)
class Fields:
    """What a format calls its fields or columns; None where it has none.

    Args:
        conversation: the conversation's id.
        messages: the list of messages.
        speaker: who said a message.
        text: what was said.
        time: when; rows of a conversation are put into this order.
        outcome: the undiscounted total reward of the conversation; missing where it is not known.
        reward: what a message earned.
        suggestion: what was suggested to the agent before the message was sent.
        disposition: what became of the suggestion.
    """

    conversation: str | None = None
    messages: str | None = None
    speaker: str | None = None
    text: str | None = None
    time: str | None = None
    outcome: str | None = None
    reward: str | None = None
    suggestion: str | None = None
    disposition: str | None = None

    def over(self, defaults: Fields) -> Fields:
        """These names, and those of ``defaults`` where there is none."""
        given = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(defaults, **given)


#: What the forms call alike that say more of a message than who said what.
FIELDS = Fields(outcome="outcome", reward="reward", suggestion="suggestion", disposition="disposition")
#: The keys of a mapping file that mean something for all of them.
USES = (
    *(f"fields.{name}" for name in ("conversation", "speaker", "text", "outcome")),
    *(f"fields.{name}" for name in ("reward", "suggestion", "disposition")),
    *("roles", "dispositions", "outcome_values", "without_disposition", "empty_messages"),
)


@dataclass(frozen=True)
class OutcomeColumns:
    """What the file of delayed outcomes calls its columns."""

    conversation: str = "id"
    outcome: str = "outcome"


@dataclass(frozen=True)
class Mapping:
    """A mapping file.

    Args:
        fields: names of fields or columns, where they are not the format's own.
        roles: whose a speaker's messages are: customer, agent or system; or ignore, which leaves them out.
        dispositions: what a word of the logs means: accepted, edited, rejected or unassisted.
        outcome_values: the number that a word stands for, e.g. ``won: 1``.
        without_disposition: what a suggestion without a disposition is, when another text was sent: an ``error``,
            ``edited``, or ``rejected``. (When the same text was sent it was accepted.)
        empty_messages: what a message without text is: an ``error``, or one to ``drop``.
        time_format: how times are written, as for `datetime.strptime`; default: ISO 8601, or seconds.
        delimiter: what stands between the columns of a CSV file.
        outcomes: the columns of the file of delayed outcomes.
        redact: patterns to replace by ``[NAME]``, as regular expressions.
        phone_regions: where phone numbers without a country code are from, as ISO 3166 codes.
    """

    fields: Fields = field(default_factory=Fields)
    roles: dict[str, MappedRole] = field(default_factory=dict)
    dispositions: dict[str, Disposition] = field(default_factory=dict)
    outcome_values: dict[str, float] = field(default_factory=dict)
    without_disposition: Literal["error", "edited", "rejected"] = "error"
    empty_messages: Literal["error", "drop"] = "error"
    time_format: str | None = None
    delimiter: str = ","
    outcomes: OutcomeColumns = field(default_factory=OutcomeColumns)
    redact: dict[str, str] = field(default_factory=dict)
    phone_regions: list[str] = field(default_factory=lambda: ["US"])

    def keys_set(self) -> list[str]:
        """The keys that say something else than the default, those of ``fields`` with their section."""
        found = [f"fields.{key}" for key, value in dataclasses.asdict(self.fields).items() if value is not None]
        default = Mapping()
        rest = [each.name for each in dataclasses.fields(self) if each.name != "fields"]
        return found + [name for name in rest if getattr(self, name) != getattr(default, name)]

    def check_used(self, used: Iterable[str], what: str) -> None:
        """Tests that every key that is set means something.

        Raises:
            ConfigError: one does not.
        """
        used = list(used)
        for key in self.keys_set():
            if key not in used:
                raise ConfigError(f"--mapping: {key} has no meaning for {what}: leave it out")


def load_mapping(path: Path) -> Mapping:
    """Reads a mapping file.

    Raises:
        ConfigError: it is no YAML, or a key or value of it is not one of `Mapping`; with the nearest valid one.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"--mapping: there is no file {path}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    found = _typed(Mapping, {} if content is None else content, "", path)
    assert isinstance(found, Mapping)
    if len(found.delimiter) != 1 or found.delimiter in '"\r\n':
        raise ConfigError(f"{path}: delimiter must be one character, found {found.delimiter!r}")
    return found


def _typed(hint: Any, value: Any, key: str, path: Path) -> Any:
    """A value of YAML as the type that the schema says."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        for name in _section(value, key, path):
            if name not in hints:
                whole = f"{key}.{name}".strip(".")
                options = [f"{key}.{each}".strip(".") for each in hints]
                raise ConfigError(f"{path}: unknown key {whole}: {nearest(whole, options)}")
        given = {name: _typed(hints[name], each, f"{key}.{name}".strip("."), path) for name, each in value.items()}
        return hint(**given)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        (inner,) = [each for each in get_args(hint) if each is not type(None)]
        return None if value is None else _typed(inner, value, key, path)
    if origin is dict:
        inner = get_args(hint)[1]
        section = _section(value, key, path)
        for name in section:
            if isinstance(name, bool):
                raise ConfigError(f"{path}: YAML reads a key of {key} as {str(name).lower()}: put it into quotes")
        return {str(name): _typed(inner, each, f"{key}.{name}", path) for name, each in section.items()}
    if origin is list:
        if not isinstance(value, list):
            raise ConfigError(f"{path}: {key} must be a list, found {value!r}")
        return [_typed(get_args(hint)[0], each, key, path) for each in value]
    if origin is Literal:
        options = list(get_args(hint))
        if value not in options:
            near = nearest(str(value), options)
            raise ConfigError(f"{path}: {key} must be one of {', '.join(options)}, found {value!r}: {near}")
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise ConfigError(f"{path}: {key} must be a number, found {value!r}")
        return float(value)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{path}: {key} must be text, found {value!r} (put it into quotes)")
    return value


def _section(value: Any, key: str, path: Path) -> dict[Any, Any]:
    if not isinstance(value, dict):
        place = f"{key} is a section" if key else "it must hold a section, KEY: VALUE"
        raise ConfigError(f"{path}: {place}, found {value!r}")
    return value
