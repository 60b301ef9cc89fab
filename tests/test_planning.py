"""A plan says what the code does: its sizes are those of real models, and it grows with what is asked of it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig

from lightning_iterppo.cli import main
from lightning_iterppo.composition import compose
from lightning_iterppo.config import Recipe
from lightning_iterppo.generation.cache import SlotCache
from lightning_iterppo.models.adaptation import KINDS, Adaptation, Kind
from lightning_iterppo.models.language_model import POLICY, VARIANTS, LanguageModel
from lightning_iterppo.models.scratch import ScratchConfig, make_scratch_model
from lightning_iterppo.models.tree import collate_trees
from lightning_iterppo.planning import memory_plan as parts
from lightning_iterppo.planning import plan as planning
from lightning_iterppo.planning.dry_run import Meter, without_memory
from lightning_iterppo.planning.heap import Heap
from lightning_iterppo.planning.memory_plan import Devices, largest, moments_of
from lightning_iterppo.planning.rehearsal import Rehearsal, Rehearsed, Work, cache_of_a_token, scored
from lightning_iterppo.planning.request import read_request, typical_shape
from lightning_iterppo.planning.speed import Speed, measured_speed, nominal_speed
from lightning_iterppo.planning.time_plan import seconds_of

WORDS = ScratchConfig(hidden_size=32, layers=3, heads=4, vocabulary=["a", "b", "c"], max_length=256)
WORK = Work(tokens=24, turns=2, response=4)
SMALL = ("policy.batch_conversations=2", "critic.batch_conversations=2", "loop.batch=2", "warm_start.epochs=0")


def recipe(*words: str) -> Recipe:
    return compose("shop", ["policy=default", "trainer=cpu", "model.dtype=float32", *SMALL, *words])


def rehearsed(*words: str, accelerator: bool = False, work: Work = WORK) -> Rehearsed:
    config = make_scratch_model(WORDS, 1)[0].config
    words = ("model.adaptation.top_layers=null", *words)
    return Rehearsal(config, recipe(*words), work, accelerator=accelerator).run()


def held(*tensors: torch.Tensor) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_a_real_model(kind: Kind) -> None:
    model = LanguageModel.load("scratch", Adaptation(kind=kind), scratch=WORDS)
    found = rehearsed(f"model/adaptation={kind}")
    variant = held(*model.variant_tensors(POLICY).values())
    assert found.variant == variant
    whole = held(*model.parameters(), *model.buffers())
    assert found.weights + (len(VARIANTS) * variant if model.lora else 0) == whole
    assert found.trained == held(*model.trainable_parameters())


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_waits_for_the_backward_pass_is_what_a_real_step_keeps(kind: Kind) -> None:
    model = LanguageModel.load("scratch", Adaptation(kind=kind), scratch=WORDS)
    batch = collate_trees([WORK.tree(2) for _ in range(2)], 0)
    own = {each.untyped_storage().data_ptr() for each in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = scored(model, batch)
    loss.backward()
    found = rehearsed(f"model/adaptation={kind}", "policy.logged_reward=q", "policy.samples_per_state=2")
    assert found.policy.working >= sum(kept.values()) > 0.4 * found.policy.working


def test_keys_and_values_are_those_of_a_cache() -> None:
    model = LanguageModel.load("scratch", scratch=WORDS)
    cache = SlotCache.empty(WORDS.layers, 2, torch.device("cpu"))
    positions, mask = cache.extend(torch.tensor([5, 5]), 5)
    ids = torch.zeros(2, 5, dtype=torch.long)
    with torch.no_grad():
        model.trunk(input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache.cache)
    buffers = [each for layer in cache.layers for each in (layer.key_buffer, layer.value_buffer) if each is not None]
    assert sum(each.numel() * each.element_size() for each in buffers) == 2 * cache.room * cache_of_a_token(model)


def test_a_meter_counts_what_lives_and_what_was_held_at_most() -> None:
    with without_memory(), Meter(heap=False) as meter:
        first = torch.zeros(1000)
        second = first + 1
        assert meter.held == 8000
        del first
        assert (meter.held, meter.peak) == (4000, 8000)
        left, right = torch.zeros(3, 4), torch.zeros(4, 5)
        product = left @ right
        assert meter.flops == 2 * 3 * 4 * 5
        view = product[0]
        held = meter.held
        del product
        assert meter.held == held  # the view keeps it
        del view, second


def test_freed_small_blocks_stay_with_a_process_on_a_heap() -> None:
    size = 10 * 1024**2
    with without_memory(), Meter(heap=True) as meter:
        small = torch.zeros(size // 4)
        del small
        large = torch.zeros(10 * size // 4)
        assert meter.held == 10 * size
        assert meter.peak == 11 * size
        del large


def test_a_heap_takes_the_smallest_hole_that_is_large_enough_and_joins_holes() -> None:
    heap = Heap()
    first, second, third, _ = (heap.take(size) for size in (4000, 2000, 8000, 1000))
    heap.give(first, 4000)
    heap.give(third, 8000)
    assert heap.take(3000) == first  # and not in the larger hole
    heap.give(second, 2000)  # beside what is left of the first, and the third
    assert heap.take(10_500) == first + 3000
    assert heap.reach == 15_000
    assert heap.take(1000) == 15_000  # no hole is large enough
    heap.give(15_000, 1000)
    assert (heap.take(20_000), heap.reach) == (15_000, 35_000)


def test_a_hole_does_not_take_another_aligned_block_of_its_size() -> None:
    heap = Heap()
    hole, _ = heap.take(4000), heap.take(1000)
    heap.give(hole, 4000)
    assert heap.take(4000) == 5000


@pytest.mark.parametrize(
    ("more", "less"),
    [
        pytest.param("policy.batch_conversations=4", "policy.batch_conversations=2", marks=pytest.mark.slow),
        pytest.param("policy.samples_per_state=4", "policy.samples_per_state=1", marks=pytest.mark.slow),
        ("trainer.micro_batch=null", "trainer.micro_batch=1"),
        ("model.checkpointing=false", "model.checkpointing=true"),
        pytest.param("model.dtype=float32", "model.dtype=bfloat16", marks=pytest.mark.slow),
        ("model.adaptation.top_layers=null", "model.adaptation.top_layers=1"),
    ],
)
def test_a_step_takes_more_memory_where_more_is_asked_of_it(more: str, less: str) -> None:
    work = Work(tokens=96, turns=2, response=8)
    assert rehearsed(more, work=work).policy.working > rehearsed(less, work=work).policy.working


def test_full_fine_tuning_holds_a_copy_of_the_weights_for_the_critic_and_one_for_the_anchor() -> None:
    full = recipe("model/adaptation=full")
    found = rehearsed("model/adaptation=full")
    moments = moments_of(found, full, WORK, Devices(), process=0)
    assert moments["fit Q"][parts.VARIANTS] == found.variant
    assert moments["train"][parts.VARIANTS] == 2 * found.variant
    # Zeroes like the weights, and the value head's.
    assert moments["train"][parts.GRADIENTS] == pytest.approx(found.variant, rel=0.05)
    assert moments["train"][parts.MOMENTS] == pytest.approx(2 * found.variant, rel=0.05)


def test_features_of_frozen_layers_are_kept_only_where_there_are_some() -> None:
    some, none = rehearsed("model.adaptation.top_layers=1"), rehearsed()
    assert some.features[0] == WORK.tokens * WORDS.hidden_size * 4
    assert none.features == (0, 0)
    assert some.again.flops < some.first.flops
    assert none.again.flops == none.first.flops


def test_shards_are_smaller_the_more_devices_there_are_and_whole_weights_are_not() -> None:
    found, full = rehearsed("model/adaptation=full"), recipe("model/adaptation=full")
    sampled = moments_of(found, full, WORK, Devices(4, "fsdp"), process=0)["sample"]
    # While it does not train, one variant is whole beside its shards; the critic and the anchor are shards.
    assert sampled[parts.WEIGHTS] == found.weights + -(-found.weights // 4)
    assert sampled[parts.VARIANTS] == -(-2 * found.variant // 4)

    def train(strategy: Any, count: int) -> dict[str, int]:
        return moments_of(found, full, WORK, Devices(count, strategy), process=0)["train"]

    alone, ddp, fsdp, stage_2 = train("one", 1), train("ddp", 4), train("fsdp", 4), train("deepspeed", 4)
    assert ddp[parts.WEIGHTS] == alone[parts.WEIGHTS] == stage_2[parts.WEIGHTS] == 4 * fsdp[parts.WEIGHTS]
    assert ddp[parts.BUCKETS] == ddp[parts.GRADIENTS] and parts.BUCKETS not in alone
    assert stage_2[parts.MOMENTS] == -(-(ddp[parts.MOMENTS] + ddp[parts.GRADIENTS]) // 4)  # a copy of weights with them
    assert sum(fsdp.values()) < sum(stage_2.values()) < sum(ddp.values())


def test_time_grows_with_passes_and_falls_with_devices_and_speed() -> None:
    found = rehearsed("critic.epochs=2")
    speed = Speed(1e9, 1e9, 1e9, 1e9, speaking=1e-3)

    def seconds(*words: str, devices: int = 1, speed: Speed = speed) -> dict[str, float]:
        return seconds_of(found, recipe("critic.epochs=2", *words), WORK, Devices(devices, "ddp"), speed)

    base = seconds()
    assert seconds("policy.rounds=6")["improve"] > 1.5 * base["improve"]
    assert seconds("critic.epochs=4")["evaluate"] > 1.5 * base["evaluate"]
    assert seconds("loop.conversations=256")["collect"] == pytest.approx(2 * base["collect"])
    assert sum(seconds(devices=4).values()) < 0.5 * sum(base.values())
    twice = Speed(2e9, 2e9, 2e9, 2e9, speaking=5e-4)
    assert sum(seconds(speed=twice).values()) == pytest.approx(sum(base.values()) / 2)


def test_a_nominal_speed_is_reached_in_part_and_a_token_reads_all_weights() -> None:
    found = rehearsed()
    speed = nominal_speed(found, recipe(), flops=1e12, efficiency=0.5, bandwidth=1e6)
    assert speed.reading == speed.training == 5e11
    assert speed.speaking == pytest.approx(found.weights / 1e6)


@pytest.mark.slow
def test_this_machine_is_timed() -> None:
    config = make_scratch_model(replace(WORDS, layers=8), 1)[0].config
    asked = recipe("model.adaptation.top_layers=null")
    found = Rehearsal(config, asked, WORK, accelerator=False).run()
    speed = measured_speed(config, asked, WORK, found)
    assert min(speed.reading, speed.training, speed.product or 0) > 0
    assert 0 < speed.speaking < 10


@pytest.mark.parametrize(("size", "weights"), [("7B", 7e9), ("70B", 70e9), ("350M", 3.5e8)])
def test_a_typical_shape_is_about_as_large_as_it_is_called(size: str, weights: float) -> None:
    from lightning_iterppo.planning.request import _weights

    config = typical_shape(size)
    assert isinstance(config, LlamaConfig)
    assert _weights(config) == pytest.approx(weights, rel=0.15)


def test_weights_of_a_shape_are_counted_as_transformers_makes_them() -> None:
    from transformers import AutoModelForCausalLM

    from lightning_iterppo.planning.request import _weights

    config = typical_shape("30M")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == _weights(config)


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No tiny fit to see what a process holds."""
    monkeypatch.setattr(planning, "process_memory", lambda source, dtype: 500_000_000)
    yield


PROBE = ["doctor", "--plan", "probe", "trainer=cpu", "flops=1e11", "loop.batch=4", "policy.batch_conversations=4"]


def test_the_command_prints_a_table(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PROBE, "memory=8GB"]) == 0
    text = capsys.readouterr().out
    for part in ("weights", "gradients", "Adam's moments", "sum", "fits", "an iteration takes", "breaks first"):
        assert part in text
    assert "estimated from flops=1e+11 of which 40% are reached" in " ".join(text.split())


def test_what_does_not_fit_ends_with_1_and_says_what_breaks_first(
    quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*PROBE, "memory=100MB", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["fits"] is False
    moment = found["memory"]["moments"][found["memory"]["largest"]]
    assert (
        found["memory"]["peak"]
        == sum(moment.values())
        == max(sum(each.values()) for each in found["memory"]["moments"].values())
    )
    own = {name: size for name, size in moment.items() if name != parts.PROCESS}
    assert found["breaks_first"] == max(own, key=lambda name: own[name])
    assert "=" in found["helps"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["devices=0"], "devices is '0', but it must be a whole number of at least 1"),
        (["memory=much"], "memory is 'much', but it must be a size, e.g. memory=80GB"),
        (["flops=fast"], "flops is 'fast', but it must be a number above 0, e.g. flops=400e12"),
        (["efficiency=2"], "efficiency is '2', but it must be above 0 and at most 1"),
        (["model=7X"], "model is '7X', but it must be hub, scratch, smollm2, a directory"),
        (["model=hub", "model.id=/nowhere"], "a plan downloads nothing"),
        (["polcy.clip=1"], "polcy"),
        (["tokens=4", "turns=8"], "tokens is 4, but 8 turns need at least 16"),
        (["--probes"], "--plan and --probes are two things"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--plan", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_words_without_a_plan_are_one_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "devices=8"]) == 2
    assert "'devices=8' is for a plan: iterppo doctor --plan devices=8" in capsys.readouterr().err


def test_words_say_which_strategy_is_planned() -> None:
    request = read_request("shop", ["trainer=fsdp", "devices=8", "model=7B"])
    assert (request.devices, request.accelerator) == (Devices(8, "fsdp"), True)
    assert request.model == "7B" and request.recipe.trainer.strategy == "fsdp"
    assert read_request("shop", ["trainer=deepspeed", "devices=8", "model=7B"]).devices == Devices(8, "deepspeed")
    assert read_request("probe", ["trainer=fsdp-cpu", "model/adaptation=lora"]).devices == Devices(2, "fsdp")
    assert read_request("shop", ["devices=2", "model=7B"]).devices == Devices(2, "ddp")
    assert read_request("shop", ["trainer=cpu"]).devices == Devices(1, "one")


def test_a_directory_is_a_model(tmp_path: Path) -> None:
    make_scratch_model(WORDS, 1)[0].config.save_pretrained(tmp_path)
    request = read_request("shop", [f"model={tmp_path}", "trainer=cpu"])
    assert request.config.num_hidden_layers == WORDS.layers
    assert request.source == str(tmp_path)


@pytest.mark.parametrize(
    ("first", "words", "key"),
    [
        (parts.WORKING, [], "trainer.micro_batch=1"),
        (parts.WORKING, ["trainer.micro_batch=1"], "model.checkpointing=true"),
        (parts.CACHE, ["loop.batch=32"], "loop.batch=16"),
        (parts.MOMENTS, ["model/adaptation=full"], "model/adaptation=lora"),
        (parts.WEIGHTS, ["model.dtype=float32"], "model.dtype=bfloat16"),
    ],
)
def test_the_key_that_helps_is_that_of_the_largest_part(first: str, words: list[str], key: str) -> None:
    request = read_request("shop", ["trainer=cpu", "model=30M", *words])
    moments = {"train": {first: 10, parts.PROCESS: 20}}
    found = planning.Plan(request, rehearsed(), moments, {"improve": 1.0}, 10, Speed(1e9, 1e9, 1e9, 1e9, 1e-3), ())
    assert (found.first, found.help) == (first, key)
    assert largest(moments) == "train" and not found.fits
    console = Console(file=io.StringIO(), width=100)
    console.print(planning.render(found))
    assert isinstance(console.file, io.StringIO)
    assert "does not fit" in console.file.getvalue() and key in console.file.getvalue()
