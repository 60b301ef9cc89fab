"""Models in GGUF files, llama.cpp's form: converted once to safetensors, which load in a second, and kept in a cache.

The cache directory is ``$ITERPPO_CACHE``, else ``$XDG_CACHE_HOME/lightning-iterppo``, else
``~/.cache/lightning-iterppo``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from lightning_iterppo.errors import ModelNotFoundError
from lightning_iterppo.files import replace_directory
from lightning_iterppo.models.quiet import no_progress_bars

__all__ = ["SUFFIX", "cache_directory", "convert_once", "gguf_directory", "is_complete"]

SUFFIX = ".gguf"

_log = logging.getLogger(__name__)


def cache_directory() -> Path:
    """Where converted models are kept; it need not exist yet."""
    named = os.environ.get("ITERPPO_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lightning-iterppo"


def is_complete(directory: Path) -> bool:
    """Whether a converted model is there. It appears whole, so one file stands for all."""
    return any(directory.glob("*.safetensors"))


def gguf_directory(weights: Path) -> Path:
    """A directory that transformers loads the model of a GGUF file from, made on the first call for that file.

    Raises:
        ModelNotFoundError: there is no such file, transformers cannot read it, or the package gguf is not there.
    """
    if not weights.is_file():
        raise ModelNotFoundError(f"model.id={weights}: there is no such file")
    # A file that was written anew is another one. Reading all of it to find out would take seconds in every start.
    state = weights.stat()
    told = f"{weights.resolve()}:{state.st_size}:{state.st_mtime_ns}"
    directory = cache_directory() / f"{weights.stem}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    convert_once(weights, directory, str(weights))
    return directory


def convert_once(weights: Path, directory: Path, name: str, *, needs: str = "") -> None:
    """Converts a GGUF file to ``directory``, unless that was done before.

    Args:
        weights: the file.
        directory: where safetensors and tokenizer go.
        name: of the model, for messages.
        needs: how long it takes, for the message that says that it begins.

    Raises:
        ModelNotFoundError: transformers cannot read it, or the package gguf is not there.
    """
    if is_complete(directory):
        return
    if importlib.util.find_spec("gguf") is None:
        raise ModelNotFoundError(
            f"model {name}: the package gguf is needed once, to convert the model: run pip install gguf"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Processes that start together, as under DDP, wait here for the first of them to convert.
    with FileLock(directory.parent / f".{directory.name}.lock"):
        if not is_complete(directory):
            # A warning, so that it is seen where nobody has set up logging: half a minute of silence looks like a hang.
            _log.warning("converting %s once, %sinto %s", name, f"{needs}, " if needs else "", directory)
            started = time.monotonic()
            _convert(weights, directory, name)
            _log.info("converted in %.0f s", time.monotonic() - started)


def _convert(weights: Path, directory: Path, name: str) -> None:
    """Writes ``weights`` as bfloat16 safetensors and tokenizer to ``directory``.

    bfloat16, so that a load in bfloat16 and one in float32 hold the same numbers; that rounding is far finer than the
    four bits that most such files keep of a weight.
    """
    with no_progress_bars():
        # The reader of GGUF files has a plain bar; transformers' own obeys the switch that is off here.
        modeling_gguf_pytorch_utils.tqdm = transformers_logging.tqdm
        tokenizer, model = _read(weights, name)
        # The weights are plain numbers now, and what is saved must not say that they are quantised.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
        model.to(torch.bfloat16)
        model.config.dtype = torch.bfloat16
        with replace_directory(directory) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)


def _read(weights: Path, name: str) -> tuple[Any, Any]:
    place, file = weights.parent, weights.name
    try:
        # The tokenizer first: it is small, so a file that is none fails before gigabytes are read.
        tokenizer: Any = AutoTokenizer.from_pretrained(place, gguf_file=file)
        model: Any = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32)
    except (KeyError, ValueError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ModelNotFoundError(
            f"model {name}: transformers cannot read it as a GGUF file of a language model ({reason})"
        ) from error
    return tokenizer, model
