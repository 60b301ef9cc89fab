"""Layers in shards, with one process that has all of them: what two do is in tests/test_processes.py, marked slow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from lightning_iterppo.errors import ConfigError
from lightning_iterppo.generation.local import LocalEngine
from lightning_iterppo.generation.sampling import Sampling
from lightning_iterppo.models.heads import ScalarHead
from lightning_iterppo.models.language_model import ANCHOR, POLICY, LanguageModel
from lightning_iterppo.models.sharding import put
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


def step(model: LanguageModel, head: ScalarHead) -> None:
    model.activate(POLICY)
    optimizer = torch.optim.AdamW([{"params": model.trainable_parameters()}, {"params": head.parameters()}], lr=0.1)
    logprobs, _, predicting = model.response_logprobs(model.hidden(batch(model)), batch(model))
    (-logprobs.sum() + (head(predicting) - 1).square().sum()).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["lora", "dora"])
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
        with model.whole():
            responses = engine.generate([[3, 4, 7]] * 6, Sampling(max_new_tokens=6))
            tensors = {key: tensor.clone() for key, tensor in model.variant_tensors(ANCHOR).items()}
            tensors |= {key: tensor.clone() for key, tensor in head.tensors().items()}
            assert not any(isinstance(tensor, DTensor) for tensor in tensors.values())
            model.save_variant(POLICY, tmp_path / str(sharded))
        found.append((responses, tensors))
    (responses, tensors), (again, shards) = found
    assert [r.token_ids for r in again] == [r.token_ids for r in responses]
    for key, tensor in tensors.items():
        torch.testing.assert_close(shards[key], tensor, atol=1e-5, rtol=1e-4)
    # A file of a sharded model is one for a whole one.
    other = make_language_model(kind)
    other.load_variant(POLICY, tmp_path / "True")
    for key, tensor in other.variant_tensors(POLICY).items():
        torch.testing.assert_close(tensor, tensors[key], atol=1e-5, rtol=1e-4)


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


def test_files_and_whole_values_can_be_put_into_shards(
    make_language_model: Make, stir: Callable[..., None], mesh: DeviceMesh, tmp_path: Path
) -> None:
    source = make_language_model("lora")
    stir(source, POLICY)
    source.save_variant(POLICY, tmp_path)
    model, head = make_language_model("lora"), ScalarHead(32)
    model.shard(mesh, heads=[head])
    model.load_variant(POLICY, tmp_path)
    put(head.linear.weight, torch.ones(1, 32))
    with model.whole():
        for key, tensor in source.variant_tensors(POLICY).items():
            torch.testing.assert_close(model.variant_tensors(POLICY)[key], tensor)
        assert torch.equal(head.tensors()["linear.weight"], torch.ones(1, 32))


def test_what_would_be_lost_or_cannot_be_sharded_is_refused(make_language_model: Make, mesh: DeviceMesh) -> None:
    model = make_language_model("lora")
    model.shard(mesh)
    with model.whole(), model.whole(), pytest.raises(RuntimeError, match="whole for a while is lost"):
        model.copy(POLICY, ANCHOR)
    model.copy(POLICY, ANCHOR)
    with pytest.raises(ConfigError, match=r"trainer.strategy fsdp shards frozen weights, but model.adaptation is full"):
        make_language_model("full").shard(mesh)
