"""A Hugging Face dataset that ``save_to_disk`` wrote: the chat form, the ShareGPT form, or one message a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_iterppo.data.importing import chat, sharegpt, table
from lightning_iterppo.data.importing.context import Context, Item
from lightning_iterppo.data.importing.mapping import Fields
from lightning_iterppo.data.importing.records import BadRecord, Builder, Place
from lightning_iterppo.errors import ConfigError, LogFormatError
from lightning_iterppo.extras import need

FIELDS = Fields()
#: The keys of a mapping file that mean something here.
USES = tuple(dict.fromkeys([*chat.USES, *(key for key in table.USES if key != "delimiter")]))
_BATCH = 256


def read(files: list[Path], context: Context) -> Iterator[Item]:
    """The conversations of the datasets, one after the other."""
    library = need("datasets", "to read a dataset on the disk", "import")
    for index, path in enumerate(files):
        found = _load(library, path)
        form = _form(path, found.column_names, context)
        named = dataclasses.replace(context, fields=context.mapping.fields.over(form.FIELDS))
        named.builder = Builder(context.mapping, named.fields)
        named.advance = _part(context, index, len(files))
        if form is table:
            if len(files) > 1:
                raise ConfigError(f"{path} has one message a row: such datasets are imported one at a time")
            columns = table.Columns(path, found.column_names, named)
            for number, row in _rows(found):
                columns.store([row[name] for name in found.column_names], Place(path, number), 0, None, named)
                if number % _BATCH == 0:
                    named.advance(number / len(found) / 2)
            yield from table.conversations(files, named)
        else:
            for number, row in _rows(found):
                if number % _BATCH == 0:
                    named.advance(number / len(found))
                place = Place(path, number)
                try:
                    yield place, chat.from_record(named, place, row)
                except BadRecord as bad:
                    yield place, bad
        context.rows, context.rows_dropped, context.not_kept = named.rows, named.rows_dropped, named.not_kept


def _load(library: Any, path: Path) -> Any:
    if not path.is_dir():
        raise ConfigError(f"there is no dataset {path}: give the directory that save_to_disk wrote")
    try:
        found = library.load_from_disk(str(path))
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise LogFormatError(path, 0, f"not a dataset on the disk: {' '.join(str(error).split())}") from error
    if isinstance(found, library.DatasetDict):
        raise ConfigError(
            f"{path} holds {', '.join(found)}: give one or several of them, e.g. {path / next(iter(found))}"
        )
    return found.with_format(None)


def _form(path: Path, columns: list[str], context: Context) -> Any:
    """Which form the rows have."""
    given = context.mapping.fields
    for form in (chat, sharegpt):
        if (given.messages or form.FIELDS.messages) in columns:
            return form
    if all((getattr(given, cell) or getattr(table.FIELDS, cell)) in columns for cell in ("conversation", "text")):
        return table
    raise LogFormatError(
        path,
        0,
        f"the columns are {', '.join(columns)}: 'messages', 'conversations', or 'conversation', 'speaker' and 'text' "
        "were expected; --mapping with fields says what they are called",
    )


def _rows(found: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for batch in found.iter(batch_size=_BATCH):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield number, dict(zip(batch, values, strict=True))


def _part(context: Context, index: int, count: int) -> Any:
    return lambda share: context.advance((index + share) / count)
