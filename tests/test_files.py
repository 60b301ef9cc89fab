"""A file or directory is whole or not there, whatever happens while it is written."""

from __future__ import annotations

import errno
import json
import os
import pickle
import stat
from pathlib import Path

import pytest

from lightning_iterppo.errors import IterPPOError, LogFormatError
from lightning_iterppo.files import replace_directory, write_json_atomically, write_text_atomically


def left_over(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def test_text_is_written_and_parents_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text_atomically(path, "gruß\n")
    assert path.read_bytes() == "gruß\n".encode()
    assert left_over(path.parent) == ["b.txt"]


def test_text_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    path.write_text("a much longer old text")
    write_text_atomically(str(path), "new")
    assert path.read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_modes_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("")
    write_text_atomically(tmp_path / "written", "")
    with replace_directory(tmp_path / "directory"):
        pass
    (tmp_path / "made").mkdir()
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in left_over(tmp_path)}
    assert modes["written"] == modes["ordinary"]
    assert modes["directory"] == modes["made"]


def test_json_round_trip(tmp_path: Path) -> None:
    record = {"a": [1, None, 0.5], "b": "é"}
    write_json_atomically(tmp_path / "r.json", record)
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    assert json.loads(text) == record
    assert text.endswith("}\n")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object()])
def test_what_json_cannot_say_leaves_the_old_file(tmp_path: Path, bad: object) -> None:
    path = tmp_path / "r.json"
    write_json_atomically(path, {"old": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json_atomically(path, {"new": bad})
    assert json.loads(path.read_text()) == {"old": 1}


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_told_as_it_is_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="No space") as caught:
        write_text_atomically(path, "new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert left_over(tmp_path) == ["r.txt"]


def test_a_directory_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "d"
    with replace_directory(path) as temporary:
        (temporary / "x").mkdir()
        (temporary / "x" / "file").write_text("1")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert (path / "x" / "file").read_text() == "1"
    assert left_over(path.parent) == ["d"]


def test_a_directory_replaces_the_old_one_wholly(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.mkdir()
    (path / "old").touch()
    with replace_directory(path) as temporary:
        (temporary / "new").touch()
        assert left_over(path) == ["old"]
    assert left_over(path) == ["new"]
    assert left_over(tmp_path) == ["d"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_keeps_the_old_directory(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "d"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(error), replace_directory(path) as temporary:
        (temporary / "new").touch()
        raise error
    assert left_over(path) == ["old"]
    assert left_over(tmp_path) == ["d"]


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_keeps_the_old_directory(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(OSError, match="No space"), replace_directory(path) as temporary:
        (temporary / "new").touch()
    assert left_over(path) == ["old"]
    assert left_over(tmp_path) == ["d"]


def test_a_file_in_the_place_of_a_directory_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.touch()
    with replace_directory(path):
        pass
    assert path.is_dir()
    assert left_over(tmp_path) == ["d"]


def test_a_log_error_says_where_and_survives_a_worker_process() -> None:
    error = LogFormatError("logs/a.jsonl", 3, "not JSON")
    assert str(error) == "logs/a.jsonl:3: not JSON"
    assert isinstance(error, IterPPOError)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.path, again.line, again.reason) == (str(error), error.path, 3, "not JSON")


def test_every_error_of_ours_is_in_the_tree_that_is_drawn() -> None:
    assert IterPPOError.__doc__ is not None
    for kind in IterPPOError.__subclasses__():
        if kind.__module__ == IterPPOError.__module__:
            assert kind.__name__ in IterPPOError.__doc__
