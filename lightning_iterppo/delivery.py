"""The policy as it is, as files for a server that samples from it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from lightning_iterppo.errors import ConfigError
from lightning_iterppo.files import replace_directory
from lightning_iterppo.generation.engine import PolicyFiles, PolicyServer
from lightning_iterppo.models.language_model import POLICY, LanguageModel
from lightning_iterppo.models.quiet import no_progress_bars
from lightning_iterppo.trainer import barrier, gather_lists, rank


class Delivery:
    """Gives a server the policy's weights whenever they have changed.

    Args:
        server: who is given them.
        model: whose ``policy`` variant they are.
        whole: loads the model anew, for a server that takes no adapters: adding an adapter into the weights that are
            trained beside it would not be undone exactly.

    Raises:
        ConfigError: the server takes adapters, and the policy has none.
    """

    def __init__(self, server: PolicyServer, model: LanguageModel, whole: Callable[[], LanguageModel]) -> None:
        if server.takes == "adapter" and not model.lora:
            raise ConfigError(
                "the engine loads adapters, but model.adaptation is full: take an engine that loads whole models "
                "(engine.load_path=null with engine.restart=COMMAND), or model/adaptation=lora"
            )
        self.server = server
        self.model = model
        self.whole = whole
        self.directory: Path | None = None  # a run's, which other machines may see; else one of this process
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._last: PolicyFiles | None = None

    def deliver(self) -> PolicyFiles:
        """The server samples from the policy as it is when this returns; on every process.

        Raises:
            EngineError: the server cannot be reached, or refuses.
        """
        with self.model.using(POLICY), self.model.whole():
            return self._deliver()

    def _deliver(self) -> PolicyFiles:
        name = f"iterppo-{self._digest()}"
        if self._last is not None and self._last.name == name:
            return self._last
        before = self._last
        parent: Path = gather_lists([self._parent()])[0]
        files = PolicyFiles((parent / name).absolute(), name)
        if rank() == 0:
            if not files.path.exists():
                with no_progress_bars(), replace_directory(files.path) as directory:
                    self._write(directory)
            self.server.load(files, before)
            if before is not None:
                shutil.rmtree(before.path, ignore_errors=True)
        barrier()
        self._last = files
        return files

    def _parent(self) -> Path:
        if self.directory is not None:
            return self.directory
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="iterppo-")
        return Path(self._temporary.name)

    def _write(self, directory: Path) -> None:
        if self.server.takes == "adapter" or not self.model.lora:
            self.model.save_variant(POLICY, directory)
            return
        other = self.whole()
        for name, tensor in other.variant_tensors(POLICY).items():
            tensor.copy_(self.model.variant_tensors(POLICY)[name])
        other.save_merged(POLICY, directory)

    def _digest(self) -> str:
        found = hashlib.sha256()
        for name, tensor in sorted(self.model.variant_tensors(POLICY).items()):
            found.update(name.encode())
            found.update(tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]
