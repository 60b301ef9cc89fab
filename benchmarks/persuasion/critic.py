"""The critic on Persuasion for Good: fitted on its training conversations, measured on its validation conversations.

``python benchmarks/persuasion/critic.py DIRECTORY``, which holds ``train.jsonl`` and ``validation.jsonl``, runs
``iterppo fit-critic persuasion critic=asking`` with a question about this outcome, and ``iterppo score``, writes the
figures to ``benchmarks/results/persuasion/`` and puts them, and what the critic says of three conversations, into
``docs/attribution.md``. ``--write`` only writes the table of what is recorded there. Words like ``critic=reading`` or
``critic.layer=30`` change the recipe and record nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_iterppo import operations
from lightning_iterppo.composition import compose
from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.logs import read_conversations
from lightning_iterppo.evaluation.attribution import attribute, draw, markdown, read_scores
from lightning_iterppo.files import write_json_atomically
from lightning_iterppo.functional.calibration import calibration_figures
from lightning_iterppo.machine import describe_machine

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from pages import fill  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "persuasion" / "critic.json"
PAGE = ROOT / "docs" / "attribution.md"
SAMPLES: Final = 1000
#: What the outcome is, as the customer would ask it: they play for their payment, and the charity is this one.
QUESTION: Final = "Do you think that I will donate some of my payment to Save the Children?"
#: A turn is of the last quarter when so much of the conversation's turns came before it.
LATE: Final = 0.75


def figures(q: NDArray[np.float64], outcome: NDArray[np.float64]) -> dict[str, float | None]:
    """AUROC, Brier score and calibration error of some turns."""
    predicted, seen = torch.tensor(q), torch.tensor(outcome)
    found = calibration_figures(predicted, seen, (predicted - seen).square())
    return {name: found[name] for name in ("auroc", "brier", "brier_constant", "ece")}


def measured(conversations: list[Conversation], scores: dict[str, list[float]]) -> dict[str, Any]:
    """Figures over all turns and over those of the last quarter, with 95 % intervals over conversations."""
    rng = np.random.default_rng(1)
    parts: dict[str, list[tuple[NDArray[np.float64], float]]] = {"all": [], "late": []}
    for conversation in conversations:
        q = np.array(scores[conversation.id])
        assert conversation.outcome is not None, "these conversations all have an outcome"
        parts["all"].append((q, float(conversation.outcome > 0)))
        parts["late"].append((q[np.arange(len(q)) >= LATE * len(q)], float(conversation.outcome > 0)))
    found = {}
    for name, groups in parts.items():
        of = lambda chosen, groups=groups: figures(  # noqa: E731
            np.concatenate([groups[i][0] for i in chosen]),
            np.concatenate([np.full(len(groups[i][0]), groups[i][1]) for i in chosen]),
        )
        value = of(range(len(groups)))
        sampled = [of(rng.integers(len(groups), size=len(groups))) for _ in range(SAMPLES)]
        intervals = {
            key: [float(x) for x in np.quantile([s[key] for s in sampled if s[key] is not None], [0.025, 0.975])]
            for key in value
        }
        found[name] = {"value": value, "ci95": intervals, "turns": sum(len(q) for q, _ in groups)}
    return found


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table, with where it comes from."""
    lines = ["| turns | AUROC | Brier score | of a constant | calibration error |", "| --- | --- | --- | --- | --- |"]
    for name, title in (("all", "all"), ("late", "the last quarter")):
        part = record["figures"][name]
        cells = [
            f"{part['value'][k]:.3f} ({part['ci95'][k][0]:.3f} to {part['ci95'][k][1]:.3f})" for k in ("auroc", "brier")
        ]
        cells += [f"{part['value']['brier_constant']:.3f}", f"{part['value']['ece']:.3f}"]
        lines.append(f"| {title} ({part['turns']}) | {' | '.join(cells)} |")
    machine = record["machine"]
    fitted = record["fitted"]
    if fitted["auroc"] is not None:
        cells = [f"{fitted[name]:.3f}" for name in ("auroc", "brier", "brier_constant")]
        lines.append(
            f"| of the training conversations, cross-validated ({fitted['turns']:.0f}) | {' | '.join(cells)} | – |"
        )
    lines += [
        "",
        f"`python benchmarks/persuasion/critic.py DIRECTORY`: {record['date']}, {record['conversations']} "
        f"conversations, {machine['processor']}, fitted in {record['seconds'] / 60:.1f} minutes.",
    ]
    return "\n".join(lines)


def chosen(conversations: list[Conversation], scores: Path) -> dict[str, Conversation]:
    """The shortest that gave, the shortest that did not, and of the shortest half the one that was moved most."""
    short = sorted(conversations, key=lambda c: len(c.messages))[: len(conversations) // 2]
    gave, did_not = next(c for c in short if c.outcome), next(c for c in short if not c.outcome)

    def moved(conversation: Conversation) -> float:
        steps = attribute(conversation, read_scores(scores, conversation.id))
        return max((abs(step.change) for step in steps if step.change is not None), default=0.0)

    rest = [c for c in short if c not in (gave, did_not)]
    return {"gave": gave, "did-not": did_not, "moved": max(rest, key=moved)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", help="with train.jsonl and validation.jsonl")
    parser.add_argument("--write", action="store_true", help="only write the table of what is recorded")
    parser.add_argument("--critic", type=Path, help="one that was fitted so before: only for the three conversations")
    parser.add_argument("overrides", nargs="*", help="key=value for the recipe; nothing is recorded then")
    arguments = parser.parse_args()
    if arguments.write:
        fill(PAGE, {"figures": table(json.loads(RESULTS.read_text(encoding="utf-8")))})
        return
    if arguments.directory is None:
        parser.error("say where train.jsonl and validation.jsonl are")
    train, validation = (arguments.directory / f"{name}.jsonl" for name in ("train", "validation"))
    asked = ["critic=asking", f'critic.question="{QUESTION}"']
    if any(word.startswith("critic=") for word in arguments.overrides):
        asked = []
    config = compose("persuasion", [*asked, f'logs.path="{train}"', *arguments.overrides])
    with tempfile.TemporaryDirectory() as place:
        critic, scores = arguments.critic or Path(place) / "critic", Path(place) / "scores.jsonl"
        started = time.perf_counter()
        found: dict[str, Any] = {}
        if arguments.critic is None:
            found = operations.fit_critic(config, [train], [validation] if config.critic.epochs else [], critic)
        seconds = time.perf_counter() - started
        operations.score(critic, validation, scores)
        conversations = list(read_conversations(validation))
        q = {c.id: [score.q for score in read_scores(scores, c.id)] for c in conversations}
        record = {
            "figures": measured(conversations, q),
            # Of the training conversations, each predicted by a head that was fitted without it; with epochs, held out.
            "fitted": {name: found.get(name) for name in ("auroc", "brier", "brier_constant", "turns")},
            "conversations": len(conversations),
            "seconds": seconds,
            "date": time.strftime("%Y-%m-%d"),
            "machine": describe_machine(),
        }
        print(table(record))
        if arguments.overrides:
            return
        if arguments.critic is None:
            write_json_atomically(RESULTS, record)
        parts = {"figures": table(json.loads(RESULTS.read_text(encoding="utf-8")))}
        for name, conversation in chosen(conversations, scores).items():
            steps = attribute(conversation, read_scores(scores, conversation.id))
            title = f"{conversation.id}, {'gave' if conversation.outcome else 'gave nothing'}"
            draw(steps, title, PAGE.parent / "images" / f"attribution-{name}.svg")
            parts[name] = markdown(steps)
        fill(PAGE, parts)


if __name__ == "__main__":
    main()
