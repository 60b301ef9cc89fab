"""A variant of a language model as Hugging Face files: an adapter with its configuration, or a whole model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from lightning_iterppo.models.sharding import on_host, put

if TYPE_CHECKING:
    from lightning_iterppo.models.language_model import LanguageModel

ADAPTER, MODEL_CONFIG = "adapter_model.safetensors", "config.json"
# In an adapter's file: the fingerprint of the policy whose weights it is beside. Without it, they are its model's own.
_STARTED_FROM = "started_from"


def save_variant(model: LanguageModel, name: str, directory: Path | None) -> None:
    """See `LanguageModel.save_variant`."""
    if model.lora:
        tensors = on_host(_adapter_tensors(model, name))
        if directory is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        beside = {} if model.started_from is None else {_STARTED_FROM: model.started_from}
        save_file(tensors, directory / ADAPTER, metadata={"format": "pt", **beside})
        config = cast(PeftModel, model.model).peft_config[name]
        config.base_model_name_or_path = model.base_path
        inference = config.inference_mode
        config.inference_mode = True
        config.save_pretrained(str(directory))
        config.inference_mode = inference
    elif model.sharded:
        tensors = on_host(model.variant_tensors(name))
        if directory is None:
            return
        model.causal_lm.save_pretrained(str(directory), state_dict={**_buffers(model.causal_lm), **tensors})
    elif directory is not None:
        with model.using(name):
            model.causal_lm.save_pretrained(str(directory))
    if directory is not None:
        model.tokenizer.save_pretrained(str(directory))


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """What `state_dict` has beside parameters. It would itself put whole weights back into their shards."""
    return {
        f"{name}.{key}" if name else key: buffer
        for name, part in module.named_modules()
        for key, buffer in part._buffers.items()
        if buffer is not None and key not in part._non_persistent_buffers_set
    }


def load_variant(model: LanguageModel, name: str, directory: Path) -> None:
    """See `LanguageModel.load_variant`."""
    if model.lora:
        file = directory / ADAPTER
        if not file.is_file():
            raise FileNotFoundError(f"{directory} holds no {ADAPTER}")
        saved = load_file(file)
        _check_shapes(saved, _adapter_tensors(model, name), file)
        if adapter_started_from(directory) != model.started_from:
            raise ValueError(f"the adapter in {directory} is one of other weights: take the recipe of its run")
        for key, tensor in _adapter_tensors(model, name).items():
            put(tensor, saved[key])
        return
    if not (directory / MODEL_CONFIG).is_file():
        raise FileNotFoundError(f"{directory} holds no full model ({MODEL_CONFIG})")
    # Sharding made a class of its own of the model's.
    kind = next(each for each in type(model.causal_lm).__mro__ if not issubclass(each, FSDPModule))
    loaded = cast(type[PreTrainedModel], kind).from_pretrained(str(directory), dtype=torch.float32)
    source = dict(loaded.named_parameters())
    _check_shapes(source, dict(model.causal_lm.named_parameters()), directory)
    model.make_room(name)
    for key, tensor in model.variant_tensors(name).items():
        put(tensor, source[key].data)


def adapter_started_from(directory: Path) -> str | None:
    """The fingerprint of the policy whose weights an adapter is beside; None when they are its model's own."""
    with safe_open(directory / ADAPTER, framework="pt") as file:
        metadata: Mapping[str, str] = file.metadata() or {}
    return metadata.get(_STARTED_FROM)


def _adapter_tensors(model: LanguageModel, name: str) -> dict[str, Tensor]:
    # Embeddings are never trained, and peft would look for another model at the base's path to see that.
    # Not what `state_dict` gives, which would put whole weights back into their shards.
    own = {key: parameter.data for key, parameter in model.model.named_parameters()}
    found: dict[str, Tensor] = get_peft_model_state_dict(
        model.model, state_dict=own, adapter_name=name, save_embedding_layers=False
    )
    return found


def fingerprint(directory: Path) -> str:
    """What tells the policy in a directory from every other one, wherever it lies: a digest of its weights."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _check_shapes(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], where: Path) -> None:
    """Refuses weights that are not exactly those of this model: peft would load what fits and leave out the rest."""
    if {key: tensor.shape for key, tensor in saved.items()} != {key: tensor.shape for key, tensor in own.items()}:
        raise ValueError(f"the weights in {where} are of another model or adaptation than this one")
