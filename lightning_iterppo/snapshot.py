"""The weights of a run on disk: an iteration's checkpoint for others to load, and the state to go on from."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_iterppo.critic import QCritic
from lightning_iterppo.errors import RunDirectoryError
from lightning_iterppo.files import replace_directory
from lightning_iterppo.models.heads import ScalarHead
from lightning_iterppo.models.language_model import CRITIC, POLICY, REFERENCE, LanguageModel
from lightning_iterppo.models.sharding import on_host, put
from lightning_iterppo.policy import PPOPolicy
from lightning_iterppo.trainer import rank

HEAD, STATE_HEAD = "head.safetensors", "state_head.safetensors"


def save_checkpoint(path: Path, model: LanguageModel, policy: PPOPolicy, critic: QCritic) -> None:
    """Writes ``policy/`` and ``critic/``, Hugging Face layouts, all or nothing.

    The first process writes; with weights in shards all of them do this together.
    """
    with replace_directory(path) if rank() == 0 else nullcontext() as directory:
        model.save_variant(POLICY, None if directory is None else directory / "policy")
        save_critic(None if directory is None else directory / "critic", model, critic)


def save_critic(directory: Path | None, model: LanguageModel, critic: QCritic) -> None:
    """The critic's trunk and head, and its head of states where there is one; as `LanguageModel.save_variant`."""
    model.save_variant(CRITIC, directory)
    heads = {HEAD: critic.head, STATE_HEAD: critic.state_head}
    for name, tensors in {name: on_host(head.tensors()) for name, head in heads.items() if head is not None}.items():
        if directory is not None:
            save_file(tensors, directory / name)


def load_critic(directory: Path, model: LanguageModel, critic: QCritic) -> None:
    """Reads what `save_critic` wrote.

    Raises:
        FileNotFoundError: it is not a critic's directory.
        ValueError: the weights are of another model, or the head is one of another loss.
    """
    if not (directory / HEAD).is_file():
        raise FileNotFoundError(f"{directory} holds no critic ({HEAD} is missing)")
    head = load_file(directory / HEAD)
    if {key: value.shape for key, value in head.items()} != {k: v.shape for k, v in critic.head.tensors().items()}:
        raise ValueError(f"the head in {directory} is one of another critic.loss or another model than the recipe's")
    model.load_variant(CRITIC, directory)
    _load(critic.head, head)
    critic.state_head = None
    if (directory / STATE_HEAD).is_file():
        critic.state_head = ScalarHead(model.hidden_size).to(model.device)
        critic.state_head.load_state_dict(load_file(directory / STATE_HEAD))


def module_state(model: LanguageModel, policy: PPOPolicy, critic: QCritic) -> dict[str, Any]:
    """All weights that training changed. π_k is the policy itself between two improvements, and not kept.

    What is in shards is put together for the first process: all of them do this together then.
    """
    names = [POLICY, CRITIC]
    if model.lora or policy.kl_reference_coefficient > 0:
        names.append(REFERENCE)
    return {
        "started_from": model.started_from,
        "variants": {name: on_host(model.variant_tensors(name)) for name in names},
        "critic_head": on_host(critic.head.tensors()),
        "value_head": on_host(policy.value_head.tensors()),
        "kl_coefficient": float(policy.kl_coefficient),
        "critic_figures": dict(critic.figures),
    }


def load_modules(state: dict[str, Any], model: LanguageModel, policy: PPOPolicy, critic: QCritic) -> None:
    """Puts the weights of `module_state` back.

    Raises:
        ValueError: they are of another model or adaptation.
        RunDirectoryError: adapters that were beside other weights.
    """
    if state.get("started_from") != model.started_from:
        raise RunDirectoryError("model.start is no longer the policy that this run began with: put that one back")
    for name, tensors in state["variants"].items():
        if not model.lora and name != model.active:
            model.copy(model.active, name)  # makes room for it
        _restore(model.variant_tensors(name), tensors)
    _load(critic.head, state["critic_head"])
    _load(policy.value_head, state["value_head"])
    policy.kl_coefficient = state["kl_coefficient"]
    critic.figures = dict(state["critic_figures"])


def load_reference(state: dict[str, Any], model: LanguageModel) -> bool:
    """Puts the reference policy of `module_state` back, and says whether the run kept one."""
    tensors = state["variants"].get(REFERENCE)
    if tensors is None:
        return False
    model.copy(POLICY, REFERENCE)  # makes room for it
    _restore(model.variant_tensors(REFERENCE), tensors)
    return True


def _restore(own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    if own.keys() != saved.keys():
        raise ValueError("the saved weights belong to another model or adaptation than the recipe's")
    for key, tensor in own.items():
        put(tensor, saved[key])


def _load(head: ScalarHead, state: dict[str, Tensor]) -> None:
    _restore(head.tensors(), state)
