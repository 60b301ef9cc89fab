"""Language models by name: the embedded default, a tiny one made from nothing, or any of transformers.

A model that is on this machine is loaded without asking the network; only a Hub id that is not in the local cache is
downloaded, unless ``HF_HUB_OFFLINE`` is set.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import constants
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from lightning_iterppo.errors import ConfigError, ModelNotFoundError
from lightning_iterppo.extras import need
from lightning_iterppo.models.gguf_files import SUFFIX, gguf_directory
from lightning_iterppo.models.quiet import no_progress_bars
from lightning_iterppo.models.scratch import ScratchConfig, make_scratch_model
from lightning_iterppo.models.smollm2 import smollm2_directory

__all__ = ["Backbone", "load_backbone", "native_bfloat16", "resolve_dtype"]

NF4 = "nf4"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, NF4: torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Backbone:
    """A causal language model and its tokenizer.

    Args:
        model: the model, in evaluation mode, on the CPU; Lightning moves it where it trains.
        tokenizer: its tokenizer, which always has a pad token.
        id: the name it was asked for by.
        path: the directory it was loaded from; None for a model made from nothing.
        started_from: the fingerprint of the policy whose weights these are; None when they are the model's own.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    id: str
    path: Path | None
    started_from: str | None = None


def native_bfloat16() -> bool:
    """Whether this machine computes bfloat16 in hardware: its accelerator if it has one, else its processor.

    Processors without such instructions emulate bfloat16, many times slower than float32.
    """
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        if kind is not None and kind.type == "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        # xpu and others tell it by the same name when they can tell it.
        supported = getattr(torch.get_device_module(kind), "is_bf16_supported", None)
        return bool(supported()) if supported is not None else False
    # Names that only some releases of torch have.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)


def resolve_dtype(dtype: str) -> torch.dtype:
    """The type of ``"float32"``, ``"bfloat16"`` or ``"auto"``: bfloat16 where it is native, else float32.

    Of ``"nf4"`` it is the type that is computed in, bfloat16.

    Raises:
        ConfigError: any other word.
    """
    if dtype == "auto":
        return torch.bfloat16 if native_bfloat16() else torch.float32
    if dtype not in _DTYPES:
        raise ConfigError(f"model.dtype={dtype!r}: expected auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def load_backbone(
    id: str,
    *,
    dtype: str = "auto",
    scratch: ScratchConfig | None = None,
    seed: int = 0,
) -> Backbone:
    """Loads a language model and its tokenizer.

    Args:
        id: ``"smollm2"``, the embedded default; ``"scratch"``, a tiny model with random weights; else a local
            directory, a GGUF file or an id of the Hub.
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"``, or ``"nf4"``: linear maps of 4 bits (Dettmers et al. 2023,
            "QLoRA"), computed in bfloat16. A scratch model is float32 under auto: it is too small to be any faster in
            bfloat16.
        scratch: what a scratch model is made of; no other one reads it.
        seed: for a scratch model's weights; no other one has chance in it.

    Raises:
        ModelNotFoundError: the model is not on this machine and cannot be downloaded.
        ConfigError: an unknown dtype, one whose package is not installed, or a scratch model without its
            configuration.
    """
    wanted = resolve_dtype(dtype)
    if id == "scratch":
        if scratch is None:
            raise ConfigError("model.id=scratch needs model.scratch: at least its vocabulary, a list of words")
        if dtype == NF4:
            raise ConfigError("model.dtype=nf4 is for pretrained weights, and model.id=scratch has none: take float32")
        made, words = make_scratch_model(scratch, seed)
        small: PreTrainedModel = made.float() if dtype == "auto" or wanted == torch.float32 else made.bfloat16()
        return Backbone(small.eval(), words, id, None)
    source = str(smollm2_directory()) if id == "smollm2" else _local_or_hub(id)
    with no_progress_bars():
        model, tokenizer = _from_transformers(id, source, wanted, _quantisation(dtype))
    if tokenizer.pad_token_id is None:
        # Batches need padding, which is masked everywhere, so the end token can stand in for it.
        tokenizer.pad_token = tokenizer.eos_token
    return Backbone(model.eval(), tokenizer, id, _directory_of(source))


def _local_or_hub(id: str) -> str:
    """What transformers shall load: an existing directory, or the id as it is when it can only be one of the Hub.

    A GGUF file is converted to a directory first.
    """
    path = Path(id).expanduser()
    if path.suffix == SUFFIX and not path.is_dir():
        return str(gguf_directory(path))
    if path.is_dir():
        return str(path)
    if path.is_absolute() or id.startswith((".", "~")) or id.count("/") > 1:
        raise ModelNotFoundError(f"model.id={id}: there is no such directory. Give one with a config.json, or a Hub id")
    return id


def _quantisation(dtype: str) -> BitsAndBytesConfig | None:
    """How weights are made smaller while they are loaded.

    Raises:
        ConfigError: the package for it is missing.
    """
    if dtype != NF4:
        return None
    need("bitsandbytes", "for model.dtype=nf4", "qlora")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _from_transformers(
    id: str, source: str, dtype: torch.dtype, small: BitsAndBytesConfig | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        return _load(source, dtype, small, local_only=True)
    except (OSError, ValueError) as error:
        _raise_unless_missing(error)
        if os.path.isdir(source):
            raise ModelNotFoundError(
                f"model.id={id}: the directory holds no causal language model of transformers with its tokenizer "
                f"({_first_line(error)})"
            ) from error
        if constants.HF_HUB_OFFLINE:
            raise ModelNotFoundError(
                f"model.id={id}: no such directory, not smollm2 or scratch, and not in the local Hub cache, and "
                f"HF_HUB_OFFLINE forbids a download. Unset it, or give a directory"
            ) from error
    try:
        return _load(source, dtype, small, local_only=False)
    except (OSError, ValueError) as error:
        _raise_unless_missing(error)
        raise ModelNotFoundError(
            f"model.id={id}: no such directory, not smollm2 or scratch, and the Hub did not give it "
            f"({_first_line(error)}). Check the name and the network, or take model.id=smollm2"
        ) from error


def _load(
    source: str, dtype: torch.dtype, small: BitsAndBytesConfig | None, *, local_only: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    # The tokenizer first: it is small, so a wrong name fails before gigabytes are read.
    tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=local_only)
    more = {} if small is None else {"quantization_config": small}
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, local_files_only=local_only, **more)
    return cast(PreTrainedModel, model), cast(PreTrainedTokenizerBase, tokenizer)


def _raise_unless_missing(error: OSError | ValueError) -> None:
    """Raises what the system said (a full disk, no permission). That something is missing has no number, or ENOENT."""
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
        raise error


def _directory_of(source: str) -> Path:
    """Where the files of a loaded model lie: the directory itself, or its snapshot in the local Hub cache."""
    if os.path.isdir(source):
        return Path(source)
    config = cached_file(source, "config.json", local_files_only=True)
    return Path(str(config)).parent


def _first_line(error: BaseException) -> str:
    """The first line of an error's text, cut to a length that fits into a line of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]
