"""The speed benchmark's conversations: both engines are asked the same and say as much."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lightning_iterppo.collection import collect
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer

HERE = Path(__file__).resolve().parents[1] / "benchmarks" / "speed"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Its modules import one another as a script's do, by names that other benchmarks may have too."""
    monkeypatch.syspath_prepend(HERE)
    yield importlib.import_module("collect")
    for name in ("collect", "customer"):
        sys.modules.pop(name)


def test_both_engines_have_the_same_conversations(
    speed: ModuleType, make_language_model: Callable[..., LanguageModel]
) -> None:
    model = make_language_model()
    renderer = ChatRenderer(model.tokenizer)

    def never_stop(module: object, given: object, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([renderer.stop_token_id]), float("-inf"))

    model.causal_lm.get_output_embeddings().register_forward_hook(never_stop)
    plain = speed.PlainEngine(model.causal_lm, model.pad_token_id)
    local = LocalEngine(model, stop_token_id=renderer.stop_token_id, seed=0, keep=True)
    lengths = []
    for engine in (speed.Watched(local), speed.Watched(plain)):
        found = collect(
            lambda: speed.Scripted(3, short=True),
            range(2),
            engine=engine,
            renderer=renderer,
            sampling=Sampling(max_new_tokens=4),
            policy_version="v",
            prefix="p",
        )
        assert [[turn.customer for turn in conversation.turns] for conversation in found] == [
            [speed.said(0, short=True)] * 3
        ] * 2
        assert engine.generated_tokens == 2 * 3 * 4 and len(engine.seconds) == 3
        lengths.append([[len(prompt) for prompt in asked] for asked in engine.prompts])
    assert lengths[0] == lengths[1]


def test_pairs_take_turns_and_the_first_does_not_count(speed: ModuleType) -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> Callable[[], dict[str, float]]:
        return lambda: order.append(name) or {"seconds": seconds, "sampled": 8, "engine": 0}

    found = speed.in_pairs({"ours": side("ours", 2.0), "theirs": side("theirs", 5.0)}, 2, 8)
    assert order == ["theirs", "ours", "ours", "theirs", "theirs", "ours"]
    assert found["times_as_fast"] == {"median": 2.5, "least": 2.5, "most": 2.5}
    assert found["conversations_per_second"] == {"ours": 4.0, "theirs": 1.6}
    assert found["runs"]["ours"] == [{"seconds": 2.0, "sampled": 8}] * 2
    assert "4 | theirs 1.6 | 2.50 (2.50 to 2.50)" in speed.table({"collection": found})


@pytest.mark.slow
def test_overhead_is_what_is_not_tensor_work() -> None:
    options = ["--recipe", "probe", "--iterations", "1", "--conversations", "8", "trainer=cpu"]
    script = [sys.executable, str(HERE / "overhead.py"), "--try", *options]
    found = subprocess.run(script, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    for work in ("trunk and its mask", "token by token", "log-probabilities", "sampling", "backward", "optimiser"):
        assert work in found.stdout
    assert "overhead" in found.stdout.splitlines()[-1]


def test_each_release_of_the_peer_is_installed_with_our_pins_but_not_with_our_pin_of_itself(tmp_path: Path) -> None:
    """The script alone, with a stand-in for Python that makes environments of itself and writes down its calls."""
    pins = (HERE.parents[1] / "constraints.txt").read_text(encoding="utf-8")
    assert "\ntrl==" in pins
    place = tmp_path / "benchmarks" / "speed"
    place.mkdir(parents=True)
    (tmp_path / "constraints.txt").write_text(pins, encoding="utf-8")
    shutil.copy(HERE / "setup.sh", place)
    stand_in = tmp_path / "python"
    stand_in.write_text(
        "#!/usr/bin/env bash\n"
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit; fi\n'
        f'echo "$@" >> "{tmp_path}/calls"\n'
        f'for word in "$@"; do [ ! -f "$word" ] || cat "$word" >> "{tmp_path}/pins"; done\n'
    )
    stand_in.chmod(0o755)
    subprocess.run(["bash", str(place / "setup.sh"), str(stand_in), "1.12.0"], check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[7:] for call in calls] == [["torch"], ["trl==1.12.0", "peft", "psutil"]]
    used = set((tmp_path / "pins").read_text().splitlines())
    assert used == {line for line in pins.splitlines() if not line.startswith("trl==")}
