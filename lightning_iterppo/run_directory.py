"""The directory that a run leaves behind: where everything lies, and who may write there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lightning_iterppo.errors import RunDirectoryError
from lightning_iterppo.files import write_json_atomically, write_text_atomically
from lightning_iterppo.summary import Summary

RECIPE, SUMMARY, METRICS = "recipe.yaml", "summary.json", "metrics.csv"


class RunDirectory:
    """Paths of one run.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, recipe: str) -> RunDirectory:
        """A new run.

        Raises:
            RunDirectoryError: something is there already.
        """
        if (path / RECIPE).exists() or (path / SUMMARY).exists():
            raise RunDirectoryError(
                f"{path} already holds a run: choose another directory with -o, or continue it with --resume {path}"
            )
        if path.exists() and not path.is_dir():
            raise RunDirectoryError(f"{path} is a file: choose another directory with -o")
        if path.is_dir() and any(path.iterdir()):
            raise RunDirectoryError(f"{path} is not empty: choose another directory with -o")
        path.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path / RECIPE, recipe)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """A run that is there.

        Raises:
            RunDirectoryError: it is not one.
        """
        if not (path / RECIPE).is_file():
            raise RunDirectoryError(f"{path} is not a run: it has no {RECIPE}; give the directory that train wrote")
        return cls(path)

    @property
    def recipe(self) -> Path:
        """The composed recipe."""
        return self.path / RECIPE

    @property
    def summary(self) -> Path:
        """The figures."""
        return self.path / SUMMARY

    @property
    def metrics(self) -> Path:
        """Step metrics of Lightning's CSV logger."""
        return self.path / METRICS

    @property
    def last_checkpoint(self) -> Path:
        """What --resume needs."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def engine(self) -> Path:
        """The policy that a server samples from."""
        return self.path / "engine"

    def conversations(self, iteration: int | str) -> Path:
        """The conversations of an iteration, or of a named part of the run (``logs``, ``before``, ``after``)."""
        name = f"iteration-{iteration:03d}" if isinstance(iteration, int) else iteration
        return self.path / "conversations" / f"{name}.jsonl"

    def checkpoint(self, iteration: int) -> Path:
        """The policy and critic after an iteration."""
        return self.path / "checkpoints" / f"iteration-{iteration:03d}"

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint of the latest iteration that has one."""
        found = sorted(p for p in (self.path / "checkpoints").glob("iteration-*") if (p / "policy").is_dir())
        return found[-1] if found else None

    def write_summary(self, summary: Summary) -> None:
        """`summary.json`."""
        write_json_atomically(self.summary, summary.to_json())

    def read_summary(self) -> Summary:
        """`summary.json`.

        Raises:
            RunDirectoryError: it is not there or not readable.
        """
        try:
            return Summary.from_json(json.loads(self.summary.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunDirectoryError(f"{self.summary} cannot be read: {error}") from error

    def save_state(self, state: dict[str, Any]) -> None:
        """`checkpoints/last.ckpt`: whole or not there."""
        self.last_checkpoint.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.last_checkpoint.with_suffix(".tmp")
        try:
            torch.save(state, temporary)
            temporary.replace(self.last_checkpoint)
        finally:
            temporary.unlink(missing_ok=True)

    def load_state(self) -> dict[str, Any] | None:
        """What `save_state` wrote; None when the run stopped before its first phase ended.

        Raises:
            RunDirectoryError: the file is damaged.
        """
        if not self.last_checkpoint.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.last_checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0][:160]
            raise RunDirectoryError(f"{self.last_checkpoint} cannot be read ({reason})") from error
        return state
