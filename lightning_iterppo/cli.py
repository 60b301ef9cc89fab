"""`iterppo`: the command line. Words into a command, and every failure into one line and an exit code.

Exit codes: 0 success, 1 a defect of the library (or a problem that `iterppo doctor` found), 2 bad input,
3 `iterppo promote` says no, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from lightning_iterppo import cli_attribution, cli_store
from lightning_iterppo import cli_commands as commands
from lightning_iterppo.cli_errors import explain, was_interrupted
from lightning_iterppo.cli_estimate import add_off_policy
from lightning_iterppo.cli_import import add_options, import_logs
from lightning_iterppo.cli_output import quoted
from lightning_iterppo.data.store.urls import without_password
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.processes import is_first
from lightning_iterppo.recipe_files import nearest

_OVERRIDE = re.compile(r"^(\+{0,2}[A-Za-z_][\w./@-]*=|~[A-Za-z_])")
_RECIPE = "the name of a recipe (`iterppo recipes` lists them) or a YAML file; default: shop"
_KEYS = "what to change in it, e.g. policy.clip=0.1 or model/adaptation=full"


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (`{self.prog} --help` says more)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after ``iterppo``; by default those of the process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    job = commands.Job(debug=debug)
    try:
        arguments = _parse(words)
        commands.quiet(debug)
        code: int = arguments.command(arguments, job)
        sys.stdout.flush()  # Here, so that a closed pipe is noticed inside the try.
        return code
    except BrokenPipeError:
        # Whoever read us, `head` for example, has seen enough. Python would complain once more while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        return _stopped(error, job, 130)
    except SystemExit as error:
        # During a fit Lightning turns an interrupt and a request to terminate into exits.
        if was_interrupted(error):
            return _stopped(error, job, 130)
        if type(error).__name__ == "SIGTERMException":
            return _stopped(error, job, 143)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        if debug:
            _trace(error)
        text = explain(error, job.run, job.resumable)
        if text is None:
            name, detail = type(error).__name__, " ".join(str(error).split())
            hint = "" if debug else "; the same command with --debug shows where"
            _complain(f"internal error: {name}: {detail}{hint}")
            return 1
        _complain(text)
        return 2


def _complain(text: str) -> None:
    """One line on standard error; a process beside the first says which it is."""
    rank = "" if is_first() else f" (process {os.environ.get('LOCAL_RANK')})"
    print(f"iterppo{rank}: {without_password(' '.join(text.split()))}", file=sys.stderr, flush=True)


def _trace(error: BaseException) -> None:
    """A traceback, in which a password of a URL has no place either."""
    print(without_password("".join(traceback.format_exception(error))), end="", file=sys.stderr, flush=True)


def _stopped(error: BaseException, job: commands.Job, code: int) -> int:
    if job.debug:
        _trace(error)
    if is_first():
        again = f"; go on with: iterppo train --resume {quoted(job.run)}" if job.run and job.resumable else ""
        _complain(f"stopped{again}")
    return code


def _parse(words: list[str]) -> argparse.Namespace:
    parser, names = _parser()
    first = next((word for word in words if not word.startswith("-")), None)
    if first is not None and first not in names:
        raise ConfigError(f"there is no command {first!r}: {nearest(first, names)}")
    if first is None and not {"-h", "--help", "--version"} & set(words):
        parser.print_help()
        raise SystemExit(0 if not set(words) - {"--debug"} else 2)
    arguments, rest = parser.parse_known_args(words)
    unknown = next((word for word in rest if word.startswith("-")), None)
    if unknown is not None:
        raise ConfigError(f"there is no option {unknown} of {first} (`iterppo {first} --help` says more)")
    if hasattr(arguments, "words"):
        _sort_words(arguments, rest)
    elif rest:
        raise ConfigError(f"{rest[0]!r} is one word too many (`iterppo {first} --help` says more)")
    return arguments


def _sort_words(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Tells the recipe and the overrides apart, wherever between the options they stand."""
    words = [*arguments.words, *rest]
    for option in ("data", "validation"):
        # `--data FILE… seed=1`: an override behind a list of files is no file.
        files: list[Path] = getattr(arguments, option, None) or []
        strays = [file for file in files if _OVERRIDE.match(str(file)) and not file.exists()]
        words += [str(file) for file in strays]
        if strays:
            setattr(arguments, option, [file for file in files if file not in strays])
    recipes = [word for word in words if not _OVERRIDE.match(word)]
    arguments.overrides = [word for word in words if _OVERRIDE.match(word)]
    if len(recipes) > 1:
        raise ConfigError(f"{recipes[1]!r} is neither the recipe ({recipes[0]}) nor an override like policy.clip=0.1")
    arguments.recipe = recipes[0] if recipes else None


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    parser = _Parser(
        prog="iterppo",
        description="Trains a language-model agent on the outcome of whole conversations, by iterative PPO.",
        epilog="The first thing to run: `iterppo train probe`, then `iterppo train shop`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"iterppo {version('lightning-iterppo')}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks, warnings and logs")
    found = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    def add(name: str, function: commands.Command, text: str, recipe: bool = True) -> argparse.ArgumentParser:
        one = found.add_parser(
            name, help=text.replace("%", "%%"), description=text[0].upper() + text[1:] + ".", allow_abbrev=False
        )
        one.set_defaults(command=function)
        one.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks and logs")
        if recipe:
            one.usage = f"iterppo {name} [RECIPE] [options] [key=value …]"
            one.add_argument("words", nargs="*", metavar="RECIPE key=value", help=f"{_RECIPE}; then {_KEYS}")
        return one

    def add_json(one: argparse.ArgumentParser) -> None:
        one.add_argument("--json", action="store_true", help="print the figures as JSON and nothing else")

    def add_output(one: argparse.ArgumentParser, what: str, metavar: str, required: bool = True) -> None:
        one.add_argument("-o", "--output", type=Path, metavar=metavar, required=required, help=what)

    def add_policy(one: argparse.ArgumentParser, what: str) -> None:
        one.add_argument("--policy", type=Path, metavar="DIR", help=f"{what}; default: the recipe's model as it is")

    def add_talk(one: argparse.ArgumentParser) -> None:
        add_policy(one, "a trained policy")
        one.add_argument("-n", "--conversations", type=int, metavar="N", help="how many; default: as the recipe says")

    train = add("train", commands.train, "the whole loop: collect, fit the critic, improve the policy, again")
    add_output(train, "where the run goes; default: runs/RECIPE/TIME", "RUN", required=False)
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on where RUN stopped")
    add_json(train)

    collect = add("collect", commands.collect, "conversations under a policy, into a file")
    add_output(collect, "the file, one conversation a line", "FILE.jsonl")
    add_talk(collect)
    add_json(collect)

    bring = add("import", import_logs, "somebody's logs into ours, one conversation a line", recipe=False)
    add_options(bring)
    add_json(bring)

    store = add("store", cli_store.show, "logs in a database, and outcomes that come later", recipe=False)
    cli_store.add_subcommands(store)

    fit = add("fit-critic", commands.fit_critic, "only the critic, from logs; prints its calibration on held-out ones")
    fit.add_argument(
        "--data",
        type=Path,
        nargs="+",
        metavar="FILE",
        default=[],
        help="logs, ours or the chat form; default: the logs of the recipe, e.g. logs=store logs.url=URL",
    )
    fit.add_argument("--validation", type=Path, nargs="+", metavar="FILE", default=[], help="logs to hold out instead")
    add_policy(fit, "the policy whose trunk the critic starts from")
    add_output(fit, "where the critic goes", "DIR")
    add_json(fit)

    score = add("score", commands.score, "what each agent message of logs was worth, into a file", recipe=False)
    score.add_argument("critic", type=Path, metavar="DIR", help="what fit-critic wrote, or a run")
    score.add_argument("data", type=Path, metavar="FILE.jsonl", help="logs, ours or the chat form")
    add_output(score, "the file, one agent message a line: id, turn (its index in messages), q and v", "SCORES.jsonl")
    add_json(score)

    attribute = add(
        "attribute", cli_attribution.attribute, "which message won or lost a conversation, from scores", recipe=False
    )
    attribute.add_argument("data", type=Path, metavar="FILE.jsonl", help="the logs that were scored")
    attribute.add_argument("scores", type=Path, metavar="SCORES.jsonl", help="what `iterppo score` wrote of them")
    attribute.add_argument("--id", required=True, metavar="ID", help="the conversation")
    add_output(attribute, "a plot: .svg, .png or .pdf; default: none", "PLOT.svg", required=False)
    add_json(attribute)

    improve = add("improve", commands.improve, "only PPO, against a fitted critic")
    improve.add_argument("--critic", type=Path, metavar="DIR", required=True, help="what fit-critic wrote")
    improve.add_argument(
        "--data", type=Path, nargs="+", metavar="FILE", required=True, help="logs: their states are used"
    )
    add_policy(improve, "the policy to improve")
    add_output(improve, "where the run goes", "RUN")
    add_json(improve)

    evaluate = add("evaluate", commands.evaluate, "the outcome rate of a policy, with its 95 % interval")
    add_talk(evaluate)
    add_json(evaluate)

    add_off_policy(add)

    export = add("export", commands.export, "a run's policy as one model that transformers and vLLM load", recipe=False)
    export.add_argument("run", type=Path, metavar="RUN", help="the run, or the directory of one of its policies")
    add_output(export, "where the model goes", "DIR")
    export.add_argument("--iteration", type=int, metavar="K", help="the policy after this iteration; default: the last")
    types = ("float32", "bfloat16", "float16")
    export.add_argument("--dtype", choices=types, default=types[0], help="of the weights; default: float32, as trained")
    add_json(export)

    add("recipes", commands.recipes, "what recipes there are, and the groups to compose your own from", recipe=False)
    add("show", commands.show, "the composed recipe, as YAML")
    doctor = add("doctor", commands.doctor, "what this machine can run, and why not", recipe=False)
    doctor.add_argument(
        "--probes", action="store_true", help="train on a ladder of tiny conversations instead: do all parts work?"
    )
    doctor.add_argument(
        "--plan",
        action="store_true",
        help="say instead what a recipe takes: memory of a device, time of an iteration (docs/scaling.md)",
    )
    doctor.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE key=value",
        help=f"of --plan: {_RECIPE}; then {_KEYS}, model=7B or a directory, devices=8, memory=80GB, flops=400e12",
    )
    add_json(doctor)
    return parser, list(found.choices)


if __name__ == "__main__":
    sys.exit(main())
