"""`iterppo estimate` and `iterppo promote`: their words, what they print, and their exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from lightning_iterppo import cli_commands as commands
from lightning_iterppo import cli_output as output
from lightning_iterppo.errors import ConfigError, RunDirectoryError

#: `iterppo promote` ends with it when the candidate shall not be deployed.
KEEP: Final = 3


def add_off_policy(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the two commands.

    Args:
        add: makes a command's parser from its name, its function, what it does, and whether it takes a recipe.
    """
    one = add("estimate", estimate, "what a policy would earn, from logs that other policies made")
    one.add_argument("--policy", type=Path, metavar="DIR", help="the policy; default: the recipe's model as it is")
    one.add_argument(
        "--data",
        type=Path,
        nargs="+",
        metavar="FILE",
        required=True,
        help="logs with suggestions' log-probabilities",
    )
    _add_json(one)

    one = add("promote", promote, "whether a run's policy shall be deployed, and why (exit code 3: no)", recipe=False)
    one.add_argument("run", type=Path, metavar="RUN", help="the run; the decision goes to RUN/promotion.json")
    one.add_argument("--candidate", type=Path, metavar="DIR", help="a policy; default: that of the newest checkpoint")
    one.add_argument(
        "--current",
        type=Path,
        metavar="DIR",
        help="what it would replace; default: the checkpoint before, or what the run started from; --fresh needs none",
    )
    one.add_argument("--data", type=Path, nargs="+", metavar="FILE", default=[], help="logs to compare them by")
    one.add_argument(
        "--fresh",
        type=Path,
        nargs=2,
        metavar=("CANDIDATE.jsonl", "CURRENT.jsonl"),
        action="append",
        default=[],
        help="fresh conversations of either instead; may be repeated",
    )
    one.add_argument("--reference", type=Path, metavar="DIR", help="whose text is the measure; default: the run's own")
    for name, default, what in _LIMITS:
        one.add_argument(f"--{name}", type=float, default=default, metavar="X", help=f"{what}; default: {default:g}")
    _add_json(one)


_LIMITS: Final = (
    ("min-probability", 0.9, "least probability that the candidate is better"),
    ("max-regret", 0.02, "largest expected regret of deploying it, in units of the outcome"),
    ("max-kl", 1.0, "largest KL to the reference, in nats a token"),
    ("max-perplexity-ratio", 3.0, "largest perplexity under the reference, over the reference's own"),
    ("max-length-ratio", 2.0, "largest length of a response over the reference's, and its inverse the least"),
    ("min-distinct-ratio", 0.8, "least share of different word pairs in a response, over the reference's"),
    ("max-script-shift", 0.1, "largest share of letters in another script than the reference's"),
    ("max-language-shift", 0.1, "largest share of responses in another language than the reference's"),
)


def _add_json(one: argparse.ArgumentParser) -> None:
    one.add_argument("--json", action="store_true", help="print the figures as JSON and nothing else")


def estimate(arguments: argparse.Namespace, job: commands.Job) -> int:
    """`iterppo estimate`."""
    config = commands.recipe_of(arguments)
    commands._need_policy(arguments.policy)
    commands.need_files(arguments.data)
    commands._operations(job)  # which silences Lightning
    from lightning_iterppo import estimation

    found = estimation.estimate(config, arguments.policy, arguments.data)
    output.figures(found, arguments.json)
    if found["reasons"] and not arguments.json:
        output.say("", f"these logs cannot tell: {'; '.join(found['reasons'])}")
    return 0


def promote(arguments: argparse.Namespace, job: commands.Job) -> int:
    """`iterppo promote`."""
    commands._need_run(arguments.run)
    for option in ("candidate", "current", "reference"):
        place = getattr(arguments, option)
        if place is not None and not place.is_dir():
            raise RunDirectoryError(f"--{option}: there is no policy {place}")
    if bool(arguments.data) == bool(arguments.fresh):
        raise ConfigError(
            "say either --data FILE… (logs that did not train the candidate) or --fresh CANDIDATE.jsonl CURRENT.jsonl"
        )
    commands.need_files([*arguments.data, *(file for pair in arguments.fresh for file in pair)])
    for name, _, _ in _LIMITS:
        if not getattr(arguments, name.replace("-", "_")) >= 0:
            raise ConfigError(f"--{name} must not be negative")
    commands._operations(job)
    from lightning_iterppo import promotion
    from lightning_iterppo.evaluation.guards import FluencyLimits

    gate = promotion.Gate(
        arguments.min_probability,
        arguments.max_regret,
        FluencyLimits(
            arguments.max_kl,
            arguments.max_perplexity_ratio,
            arguments.max_length_ratio,
            arguments.min_distinct_ratio,
            arguments.max_script_shift,
            arguments.max_language_shift,
        ),
    )
    found = promotion.promote(
        arguments.run,
        candidate=arguments.candidate,
        current=arguments.current,
        data=arguments.data,
        fresh=[(pair[0], pair[1]) for pair in arguments.fresh],
        reference=arguments.reference,
        gate=gate,
    )
    if arguments.json:
        output.say_json(found)
    else:
        _say(found, arguments.run / promotion.PROMOTION)
    return 0 if found["decision"] == "promote" else KEEP


def _say(found: dict[str, Any], file: Path) -> None:
    output.figures({name: found[name] for name in _SHOWN}, False)
    for guard in found["guards"]:
        verdict = {True: "passed", False: "FAILED", None: "not measured"}[guard["passed"]]
        output.say(f"guard {guard['name']}: {verdict}: {guard['says']}")
    output.say("", *(f"against it: {reason}" for reason in found["reasons"]), f"The evidence is in {file}")


_SHOWN: Final = (
    *("decision", "candidate", "current", "verdict", "difference", "ci95", "probability_better", "expected_regret"),
)
