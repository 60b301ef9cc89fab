"""The script that keeps quickstart runs: what it copies, what it says, and that the README's table is its own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from scripts import load_script

from lightning_iterppo.composition import compose, to_yaml
from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.data.logs import write_conversations
from lightning_iterppo.run_directory import RunDirectory
from lightning_iterppo.summary import IterationRecord, Rate, Summary

ROOT = Path(__file__).resolve().parents[1]
MACHINE = {"system": "Linux", "processor": "A Processor", "cores": 2, "threads": 2, "accelerator": None}
BEGIN, END = "<!-- quickstart-table:begin -->", "<!-- quickstart-table:end -->"
PAGE = ("<!-- adaptations:begin -->", "<!-- adaptations:end -->")


record = load_script("benchmarks/quickstart/record.py")


def summary(seed: int = 1, recipe: str = "shop") -> Summary:
    found = IterationRecord(0, Rate(0.3, (0.2, 0.4), 100, 0.3))
    found.critic.update(auroc=0.7512, brier=0.181, brier_constant=0.2304)
    return Summary(
        recipe=recipe,
        seed=seed,
        status="finished",
        seconds=1234.0,
        peak_memory_bytes=3_456_000_000,
        before=Rate(0.25, (0.2, 0.31), 240, 0.25),
        after=Rate(0.5, (0.437, 0.563), 240, 0.5),
        before_held_out=Rate(0.2, (0.1, 0.3), 120, 0.2),
        after_held_out=Rate(0.45, (0.35, 0.55), 120, 0.45),
        machine={**MACHINE, "python": "3.11.7", "torch": "2.13.0"},
        iterations=[found],
    )


def talk(seed: int, said: str) -> Conversation:
    return Conversation(f"c-{seed}", (Turn("Hello.", f"{said} {seed}!"),), closing="Bye.", outcome=0.0, seed=seed)


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a run directory as `iterppo train` leaves it."""

    def run(found: Summary, *overrides: str) -> Path:
        path = tmp_path / "runs" / f"{found.recipe}-{found.seed}"
        config = compose(found.recipe, [f"seed={found.seed}", *overrides])
        directory = RunDirectory.create(path, to_yaml(config))
        directory.write_summary(found)
        os.utime(directory.summary, (1_700_000_000, 1_700_000_000))
        write_conversations(directory.conversations("after"), [talk(seed, "After") for seed in range(30)])
        write_conversations(directory.conversations("before"), [talk(seed, "Before") for seed in range(3, 33)])
        return path

    return run


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nEnd.\n", encoding="utf-8")
    (tmp_path / "recipes.md").write_text("# Recipes\n\n{}\nold\n{}\n".format(*PAGE), encoding="utf-8")
    return path


def call(tmp_path: Path, *runs: Path) -> int:
    pages = ["--readme", str(tmp_path / "README.md"), "--page", str(tmp_path / "recipes.md")]
    code: int = record.main([*map(str, runs), "--results", str(tmp_path / "results"), *pages])
    return code


def test_a_run_is_kept_whole(tmp_path: Path, make: Make, readme: Path) -> None:
    run = make(summary())
    assert call(tmp_path, run) == 0
    kept = tmp_path / "results" / "shop-seed-1"
    assert {path.name for path in kept.iterdir()} == {"summary.json", "recipe.yaml", "conversations.md", "run.json"}
    for name in ("summary.json", "recipe.yaml"):
        assert (kept / name).read_bytes() == (run / name).read_bytes()
    facts = json.loads((kept / "run.json").read_text(encoding="utf-8"))
    assert facts == {
        "date": "2023-11-14",
        "command": "iterppo train shop seed=1",
        "machine": summary().machine,
        "adaptation": "lora-top",
    }
    read = (kept / "conversations.md").read_text(encoding="utf-8")
    assert read.count("After ") == 20 and "After 19!" in read and "After 20!" not in read
    # The customers 0, 1 and 2 are not among those before.
    assert [f"Before {seed}!" in read for seed in range(2, 9)] == [False, True, True, True, True, True, False]


def test_the_table(tmp_path: Path, make: Make, readme: Path) -> None:
    unmeasured = replace(summary(2), before_held_out=None, after_held_out=None, peak_memory_bytes=None)
    unmeasured.before = Rate(0.0, (0.0, 0.1), 9, 0.0)
    unmeasured.iterations[0].critic["auroc"] = None
    assert call(tmp_path, make(unmeasured), make(summary(1), "policy.clip=0.1", "callbacks.progress=null")) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"# Title\n\n{BEGIN}\n| recipe | seed |") and text.endswith(f"{END}\n\nEnd.\n")
    rows = [line for line in text.splitlines() if line.startswith("| shop")]
    assert rows == [
        "| shop | 1 | 25.0 % (20.0 to 31.0) | 50.0 % (43.7 to 56.3) | 2.00 | 20.0 % → 45.0 % | 20.6 | 3.5 | 0.751 "
        "| 0.181 (0.230) |",
        "| shop | 2 | 0.0 % (0.0 to 10.0) | 50.0 % (43.7 to 56.3) | – | – | 20.6 | – | – | 0.181 (0.230) |",
    ]
    assert (
        "`iterppo train shop seed=1 policy.clip=0.1 callbacks.progress=null`, `iterppo train shop seed=2`: 2023-11-14, "
        "A Processor, 2 cores, 2 threads, no accelerator, Linux, Python 3.11.7, torch 2.13.0." in text
    )


def test_another_adaptation_is_kept_beside_the_recipe_and_shown_in_its_own_table(
    tmp_path: Path, make: Make, readme: Path
) -> None:
    found = replace(summary(), seconds=2000.0, after=Rate(0.6, (0.5, 0.7), 240, 0.6))
    found.iterations[0].policy["kl_old"] = 1.23456
    assert call(tmp_path, make(found, "model/adaptation=lora")) == 0
    assert call(tmp_path, make(summary(2))) == 0
    (tmp_path / "runs" / "shop-1").rename(tmp_path / "runs" / "lora")
    assert call(tmp_path, make(summary())) == 0
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "shop-lora-seed-1",
        "shop-seed-1",
        "shop-seed-2",
    }
    shown = readme.read_text(encoding="utf-8")
    assert shown.count("| shop |") == 2 and "60.0 %" not in shown
    page = (tmp_path / "recipes.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if line.startswith("| `lora")] == [
        "| `lora-top` | 25.0 % (20.0 to 31.0) | 50.0 % (43.7 to 56.3) | – | 20.6 | 3.5 |",
        "| `lora` | 25.0 % (20.0 to 31.0) | 60.0 % (50.0 to 70.0) | 1.235 | 33.3 | 3.5 |",
    ]
    assert "`iterppo train shop seed=1`, `iterppo train shop model/adaptation=lora seed=1`: 2023-11-14" in page


def test_recording_again_replaces(tmp_path: Path, make: Make, readme: Path) -> None:
    run = make(summary())
    assert call(tmp_path, run) == 0
    RunDirectory(run).write_summary(replace(summary(), after=Rate(0.75, (0.7, 0.8), 240, 0.75)))
    assert call(tmp_path, run) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.count("| shop | 1 |") == 1 and "3.00" in text
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["shop-seed-1"]


def test_without_results_it_says_so(tmp_path: Path, readme: Path) -> None:
    assert call(tmp_path) == 0
    assert record.NO_RUNS in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (replace(summary(), status="running"), "is running, not finished"),
        (replace(summary(), after=None), "measured no outcome rate"),
    ],
)
def test_what_cannot_be_kept(
    broken: Summary, expected: str, tmp_path: Path, make: Make, readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = readme.read_text(encoding="utf-8")
    assert call(tmp_path, make(broken)) == 2
    assert expected in capsys.readouterr().err
    assert readme.read_text(encoding="utf-8") == before and not (tmp_path / "results").exists()


def test_a_directory_that_is_no_run(tmp_path: Path, readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, tmp_path) == 2
    assert "is not a run" in capsys.readouterr().err


def test_a_readme_without_markers_stays(tmp_path: Path, readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme.write_text("# Title\n", encoding="utf-8")
    assert call(tmp_path) == 2
    assert BEGIN in capsys.readouterr().err
    assert readme.read_text(encoding="utf-8") == "# Title\n"


def test_without_the_markers_of_one_page_the_other_stays(
    tmp_path: Path, readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = readme.read_text(encoding="utf-8")
    (tmp_path / "recipes.md").write_text("# Recipes\n", encoding="utf-8")
    assert call(tmp_path) == 2
    assert PAGE[0] in capsys.readouterr().err
    assert readme.read_text(encoding="utf-8") == before


def test_the_readme_shows_the_results_that_are_kept() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.split(BEGIN)[1].split(END)[0]
    assert shown.strip() == record.table(record.RESULTS).strip()


def test_the_page_of_recipes_shows_every_adaptation_that_is_kept() -> None:
    text = record.PAGE.read_text(encoding="utf-8")
    shown = text.split(PAGE[0])[1].split(PAGE[1])[0]
    assert shown.strip() == record.adaptations(record.RESULTS).strip()
    assert all(f"| `{word}` |" in shown for word in record.ADAPTATIONS)
