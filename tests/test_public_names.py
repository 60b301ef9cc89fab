"""`lightning_iterppo` as a namespace: every public name is there and typed, and none loads torch too early."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_iterppo

SOURCE = Path(lightning_iterppo.__file__)


def typed_names() -> dict[str, str]:
    """What the block for type checkers imports: name to module."""
    block = next(node for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    found = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom) and statement.module is not None
        found.update({alias.name: statement.module for alias in statement.names})
    return found


def test_types_table_and_all_agree() -> None:
    table = {name: f"lightning_iterppo.{home}" for name, home in lightning_iterppo._HOME_OF.items()}
    assert typed_names() == table
    assert sorted(lightning_iterppo.__all__) == sorted([*table, "__version__"])


@pytest.mark.parametrize("name", [name for name in lightning_iterppo.__all__ if name != "__version__"])
def test_a_name_is_the_object_of_its_module(name: str) -> None:
    found = getattr(lightning_iterppo, name)
    assert found is getattr(sys.modules[f"lightning_iterppo.{lightning_iterppo._HOME_OF[name]}"], name)
    assert name in dir(lightning_iterppo)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'QCritics'"):
        _ = lightning_iterppo.QCritics
    with pytest.raises(ImportError):
        exec("from lightning_iterppo import QCritics")


@pytest.mark.parametrize(
    "code",
    [
        "import lightning_iterppo",
        "from lightning_iterppo import Conversation, Turn, CustomerReply, ConfigError, read_conversations",
        "from lightning_iterppo.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass",
    ],
    ids=["import", "plain data", "help"],
)
def test_torch_is_not_loaded_for(code: str) -> None:
    heavy = "torch", "lightning", "transformers", "peft"
    check = f"{code}\nimport sys\nprint('loaded:', [m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"
