"""Keeps `metrics.csv` whole over a resume: Lightning's CSV logger begins by deleting the file it finds."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger


@contextmanager
def continue_metrics(path: Path, *, last_step: int | None) -> Iterator[Callable[[Sequence[Logger]], None]]:
    """Reads the file's rows before the loggers are made, and gives a function that hands them to the CSV logger.

    Args:
        path: the run's `metrics.csv`.
        last_step: rows up to this step stay; later ones are of a phase that will be repeated. None keeps nothing.
    """
    rows: list[dict[str, Any]] = []
    if last_step is not None and path.is_file():
        with open(path, encoding="utf-8", newline="") as file:
            rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
        rows = [row for row in rows if float(row.get("step", 0)) <= last_step]

    def attach(loggers: Sequence[Logger]) -> None:
        for logger in loggers:
            if isinstance(logger, CSVLogger) and rows:
                logger.experiment.metrics.extend(rows)
                logger.save()

    yield attach
