"""Small files of logs for the tests of importing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.importing import ImportReport, Mapping, import_logs, load_mapping
from lightning_iterppo.data.logs import read_conversations


class Logs:
    """Writes logs into a directory and imports them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.output = place / "imported.jsonl"

    def write(self, name: str, text: str) -> Path:
        path = self.place / name
        path.write_text(text, encoding="utf-8")
        return path

    def json(self, *records: Any, name: str = "logs.jsonl") -> Path:
        return self.write(name, "".join(json.dumps(record) + "\n" for record in records))

    def chat(self, *messages: tuple[str, str] | dict[str, Any], id: str = "a", **more: Any) -> dict[str, Any]:
        """A record of the chat form; a message is a role and a text, or the whole object."""
        made = [m if isinstance(m, dict) else {"role": m[0], "content": m[1]} for m in messages]
        return {"id": id, "messages": made, **more}

    def mapping(self, text: str) -> Mapping:
        return load_mapping(self.write("mapping.yaml", text))

    def bring(self, form: str, *files: Path, **options: Any) -> tuple[list[Conversation], ImportReport]:
        """What was written, and the report."""
        self.output.unlink(missing_ok=True)
        report = import_logs(form, files, self.output, **options)
        return read_conversations(self.output), report

    def nothing_left(self) -> bool:
        """Whether neither the output nor a part of it is there."""
        return not [path for path in self.place.iterdir() if "imported" in path.name]


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)
