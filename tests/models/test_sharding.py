"""Layers in shards, with one process that has all of them: what two do is in tests/test_processes.py, marked slow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from lightning_iterppo.customers.chat.local import ModelHost
from lightning_iterppo.data.turns import TurnBatch
from lightning_iterppo.errors import ConfigError
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.micro_batches import MicroBatches
from lightning_iterppo.models.adaptation import Computing
from lightning_iterppo.models.heads import ScalarHead
from lightning_iterppo.models.language_model import ANCHOR, CRITIC, POLICY, REFERENCE, LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.sharding import on_host, put
from lightning_iterppo.models.tree import ROOT, TokenTree, TreeBatch, collate_trees

Make = Callable[..., LanguageModel]


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def batch(model: LanguageModel) -> TreeBatch:
    trees = []
    for said in ([4, 5, 6], [5]):
        tree = TokenTree()
        state = tree.add([3, 4, 7], ROOT)
        tree.add([*said, 1], state, action=True)
        trees.append(tree)
    return collate_trees(trees, model.pad_token_id)


def step(model: LanguageModel, head: ScalarHead, *, rows: int | None = None, variant: str = POLICY) -> None:
    model.activate(variant)
    optimizer = torch.optim.AdamW([{"params": model.trainable_parameters()}, {"params": head.parameters()}], lr=0.1)

    def part(group: TurnBatch) -> torch.Tensor:
        hidden = model.hidden(group.tree)
        if variant == CRITIC:
            return (head(hidden) - 1).square().sum()
        logprobs, _, predicting = model.response_logprobs(hidden, group.tree)
        return -logprobs.sum() + (head(predicting) - 1).square().sum()

    tree = batch(model)
    nothing = torch.zeros(len(tree.action_rows))
    MicroBatches(rows).total(model, TurnBatch(tree, nothing, nothing), part).backward()
    optimizer.step()


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_a_step_and_what_is_sampled_afterwards_are_those_of_whole_weights(
    kind: str, make_language_model: Make, mesh: DeviceMesh, tmp_path: Path
) -> None:
    found = []
    for sharded in (False, True):
        model, head = make_language_model(kind), ScalarHead(32)
        if sharded:
            model.shard(mesh, heads=[head])
            assert all(isinstance(tensor, DTensor) for tensor in model.variant_tensors(POLICY).values())
        step(model, head)
        model.copy(POLICY, ANCHOR)
        engine = LocalEngine(model, stop_token_id=1, seed=3)
        with model.using(ANCHOR), model.whole():
            responses = engine.generate([[3, 4, 7]] * 6, Sampling(max_new_tokens=6)) if kind != "full" else []
            tensors = {key: tensor.clone() for key, tensor in model.variant_tensors(ANCHOR).items()}
            tensors |= {key: tensor.clone() for key, tensor in head.tensors().items()}
            assert not any(isinstance(tensor, DTensor) for tensor in tensors.values())
            model.save_variant(ANCHOR, tmp_path / str(sharded))
        responses += engine.generate([[3, 4, 7]] * 6, Sampling(max_new_tokens=6))
        found.append((responses, tensors))
    (responses, tensors), (again, shards) = found
    assert [r.token_ids for r in again] == [r.token_ids for r in responses]
    close(shards, tensors)
    # A file of a sharded model is one for a whole one.
    other = make_language_model(kind)
    other.load_variant(POLICY, tmp_path / "True")
    close(other.variant_tensors(POLICY), {key: tensors[key] for key in other.variant_tensors(POLICY)})


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("how", ["rows one by one", "layers computed again"])
def test_a_step_that_computes_layers_twice_is_the_same_step_in_shards(
    kind: str, how: str, make_language_model: Make, mesh: DeviceMesh
) -> None:
    rows = 1 if how == "rows one by one" else None
    found = []
    for sharded in (False, True):
        model, head = make_language_model(kind, computing=Computing(checkpointing=rows is None)), ScalarHead(32)
        if sharded:
            model.shard(mesh, heads=[head])
        for _ in range(2):
            step(model, head, rows=rows)
        found.append(on_host(model.variant_tensors(POLICY)) | on_host(head.tensors()))
    close(found[1], found[0])


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_layers_of_rows_that_are_computed_again_are_not_whole_together(
    kind: str, make_language_model: Make, mesh: DeviceMesh
) -> None:
    model, computed = make_language_model(kind), []
    model.shard(mesh)
    tree = batch(model)
    nothing = torch.zeros(len(tree.action_rows))
    layers = cast(nn.ModuleList, model.trunk.layers)

    def part(group: TurnBatch) -> torch.Tensor:
        hidden = model.hidden(group.tree)
        computed.append([type(next(layer.parameters()).data) for layer in layers])
        return hidden.square().sum()

    MicroBatches(1).total(model, TurnBatch(tree, nothing, nothing), part).backward()
    # Both rows, and the first one once more. With LoRA gradients end in the lowest layer, which stays till the end.
    lowest = DTensor if kind == "full" else torch.Tensor
    assert computed == [[DTensor, DTensor], [DTensor, DTensor], [lowest, DTensor]]


@pytest.mark.parametrize("tied", [True, False])
def test_sets_of_all_weights_take_turns_in_shards_as_they_do_whole(
    tied: bool, make_language_model: Make, mesh: DeviceMesh, tmp_path: Path
) -> None:
    """The critic makes no logits, and trains the embeddings all the same where they are the output's too."""
    found = []
    for sharded in (False, True):
        model, head, value = make_language_model("full"), ScalarHead(32), ScalarHead(32)
        if not tied:
            lm = model.causal_lm
            lm.config.tie_word_embeddings = False
            lm.lm_head.weight = torch.nn.Parameter(lm.lm_head.weight.detach() + 0.1)
        if sharded:
            model.shard(mesh, heads=[head, value])
        for variant in (ANCHOR, REFERENCE, CRITIC):
            model.copy(POLICY, variant)
        for _ in range(2):
            step(model, head, variant=CRITIC)
            step(model, value)
            with torch.no_grad(), model.using(ANCHOR), model.whole():
                model.hidden(batch(model))
        held = {name: on_host(model.variant_tensors(name)) for name in (POLICY, ANCHOR, CRITIC)}
        with torch.no_grad(), model.using(CRITIC), model.whole():
            held["read"] = {"hidden": model.hidden(batch(model))}
        found.append(held)
        model.save_variant(CRITIC, tmp_path / str(sharded))
    for name, tensors in found[0].items():
        close(found[1][name], tensors)
    assert any((found[1][POLICY][key] != found[1][CRITIC][key]).any() for key in found[1][POLICY])
    assert sorted(p.name for p in (tmp_path / "True").iterdir()) == sorted(
        p.name for p in (tmp_path / "False").iterdir()
    )
    assert (tmp_path / "True" / "config.json").read_text() == (tmp_path / "False" / "config.json").read_text()


def test_frozen_weights_of_another_type_than_the_adapters_are_sharded_beside_them(
    make_language_model: Make, mesh: DeviceMesh
) -> None:
    model, head = make_language_model("lora", dtype=torch.bfloat16), ScalarHead(32)
    model.shard(mesh, heads=[head])
    before = {key: tensor.full_tensor().clone() for key, tensor in model.variant_tensors(POLICY).items()}  # type: ignore[attr-defined]
    step(model, head)
    with model.whole():
        after = model.variant_tensors(POLICY)
        assert {tensor.dtype for tensor in after.values()} == {torch.float32}
        assert any((before[key] != tensor).any() for key, tensor in after.items())
        assert torch.bfloat16 in {parameter.dtype for parameter in model.parameters()}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_files_and_whole_values_can_be_put_into_shards(
    kind: str, make_language_model: Make, stir: Callable[..., None], mesh: DeviceMesh, tmp_path: Path
) -> None:
    source = make_language_model(kind)
    stir(source, POLICY)
    source.save_variant(POLICY, tmp_path)
    model, head = make_language_model(kind), ScalarHead(32)
    model.shard(mesh, heads=[head])
    for name in (POLICY, CRITIC):
        model.load_variant(name, tmp_path)
    put(head.linear.weight, torch.ones(1, 32))
    with model.whole():
        for name in (POLICY, CRITIC):
            close(on_host(model.variant_tensors(name)), source.variant_tensors(POLICY))
        assert torch.equal(head.tensors()["linear.weight"], torch.ones(1, 32))
    model.to(torch.float64)  # as a device, of all variants
    assert {tensor.dtype for name in (POLICY, CRITIC) for tensor in model.variant_tensors(name).values()} == {
        torch.float64
    }
    close(
        {key: tensor.float() for key, tensor in on_host(model.variant_tensors(CRITIC)).items()},
        source.variant_tensors(POLICY),
    )


def test_what_would_be_lost_in_whole_weights_is_refused(make_language_model: Make, mesh: DeviceMesh) -> None:
    model = make_language_model("lora")
    model.shard(mesh)
    with model.whole(), model.whole(), pytest.raises(RuntimeError, match="whole for a while is lost"):
        model.copy(POLICY, ANCHOR)
    model.copy(POLICY, ANCHOR)


def test_of_all_weights_one_variant_is_whole_at_a_time(make_language_model: Make, mesh: DeviceMesh) -> None:
    model = make_language_model("full")
    model.shard(mesh)
    with model.whole():
        with pytest.raises(RuntimeError, match="the weights of policy are whole for a while: choose critic before"):
            model.activate(CRITIC)
        with pytest.raises(RuntimeError, match="whole for a while is lost"):
            model.copy(POLICY, CRITIC)
    with pytest.raises(ConfigError, match="the weights of one variant are whole at a time"):
        ModelHost(model, ChatRenderer(model.tokenizer)).variant(None)
    model.activate(CRITIC)
