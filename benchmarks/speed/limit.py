"""How far one update is from the least that it could cost: its time over that of the trunk passes which it needs.

``python benchmarks/speed/limit.py`` measures both in turn, for LoRA on all layers and on the top 10; `side_passes` says
which passes those are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from records import save
from sides import Side, interleave, ratio
from transformers import AutoTokenizer
from update import HERE, PROMPTS, WORK, prompts

from lightning_iterppo.models.smollm2 import smollm2_directory


def passes(work: dict[str, Any], layers: int, top: int) -> list[tuple[str, int]]:
    """What an update needs, and how many tokens go how often through one layer, backward as forward."""
    prompt, response = (work["episodes"] * work[key] for key in ("prompt_tokens", "response_tokens"))
    whole = prompt + response
    found = [("prompts", prompt * layers), ("responses, token by token", response * layers)]
    if top < layers:
        found.append(("frozen layers", whole * (layers - top)))
    return [
        *found,
        ("critic", whole * top),
        ("anchor", whole * top),
        ("policy, forward and backward", 2 * work["ppo_epochs"] * whole * top),
    ]


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=30, help="of the model")
    parser.add_argument("--top-layers", type=int, nargs="+", default=[30, 10])
    parser.add_argument("--dtype", default="auto", help="of the weights, on both sides")
    parser.add_argument("--try", dest="trial", action="store_true", help="write no results")
    parser.add_argument("--work", nargs="+", default=[], metavar="KEY=NUMBER", help="other work")
    arguments = parser.parse_args()
    work: dict[str, Any] = {**WORK, **{k: int(v) for k, v in (o.split("=") for o in arguments.work)}}
    model = str(smollm2_directory())
    work["prompts"] = prompts(AutoTokenizer.from_pretrained(model), PROMPTS, work["prompt_tokens"], work["seed"])
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        task = Path(directory) / "work.json"
        task.write_text(json.dumps(work), encoding="utf-8")
        for top in arguments.top_layers:
            options = ["--dtype", arguments.dtype, *([] if top == arguments.layers else ["--top-layers", str(top)])]
            update, least = (
                Side(
                    f"{name}, top {top} layers",
                    [sys.executable, str(HERE / script), model, str(task), *options],
                    Path(directory) / f"{script}.log",
                )
                for name, script in (("update", "side_ours.py"), ("passes", "side_passes.py"))
            )
            interleave([update, least], arguments.pairs)
            middle, low, high = ratio(update, least)
            print(
                f"top {top} layers: update {statistics.median(update.seconds):.1f} s, passes "
                f"{statistics.median(least.seconds):.1f} s, ratio {middle:.2f} ({low:.2f} to {high:.2f})"
            )
            found[str(top)] = {
                "update": update.record(),
                "passes": least.record(),
                "ratio": (middle, low, high),
                "tokens_by_layers": passes(work, arguments.layers, top),
            }
    if not arguments.trial:
        content = {
            "work": {key: value for key, value in work.items() if key != "prompts"},
            "top_layers": found,
        }
        save("limit", content)


if __name__ == "__main__":
    main()
