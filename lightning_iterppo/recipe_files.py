"""Where recipes lie: the package's own, other packages', the user's file, and which file a key comes from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_iterppo.errors import ConfigError

PACKAGE = "lightning_iterppo.recipes"
SUFFIX = ".yaml"
#: The group of entry points by which another package offers recipes: each names a package of its own that holds them.
PLUGINS = "lightning_iterppo.recipes"


@dataclass(frozen=True)
class RecipeInfo:
    """A recipe that is installed: its name and the comment that its file opens with."""

    name: str
    description: str
    path: Path


def recipes_directory() -> Path:
    """The directory of the package's own recipes."""
    return Path(str(files(PACKAGE)))


def installed_directories() -> list[Path]:
    """The package's own recipes, then those of other packages.

    Raises:
        ConfigError: a package that is installed offers recipes, but has none.
    """
    found = [recipes_directory()]
    for each in sorted(entry_points(group=PLUGINS), key=lambda point: point.name):
        try:
            place = Path(str(files(each.value)))
        except (ImportError, TypeError) as error:
            owner = each.dist.name if each.dist is not None else "a package"
            raise ConfigError(
                f"{owner} offers recipes in {each.value}, which cannot be imported ({error}): repair or remove {owner}"
            ) from error
        found.append(place)
    return found


def available_recipes() -> list[RecipeInfo]:
    """What is installed, the package's own first, by name."""
    found = [path for root in installed_directories() for path in sorted(root.glob(f"*{SUFFIX}"))]
    return [RecipeInfo(path.stem, _opening_comment(path), path) for path in found]


def available_groups(roots: Iterable[Path] | None = None) -> dict[str, list[str]]:
    """Every group and its options: ``{"model": ["hub", …], "model/adaptation": ["full", "lora"], …}``."""
    found: dict[str, set[str]] = {}
    package = recipes_directory()
    for root in installed_directories() if roots is None else roots:
        if root == package:
            options: Iterator[Path] = root.rglob(f"*/*{SUFFIX}")
        else:
            # Beside a user's recipe there may be anything; only folders named like our groups are groups.
            options = (path for group in available_groups([package]) for path in (root / group).glob(f"*{SUFFIX}"))
        for path in options:
            found.setdefault(path.parent.relative_to(root).as_posix(), set()).add(path.stem)
    return {group: sorted(found[group]) for group in sorted(found)}


def nearest(name: str, options: Iterable[str]) -> str:
    """The end of an error message: the nearest of the options, or all of them when none is near."""
    options = list(options)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(options)}"


def is_file_name(recipe: str) -> bool:
    """Whether RECIPE is a path to a file, not the name of one of ours."""
    return recipe.endswith((SUFFIX, ".yml")) or "/" in recipe or "\\" in recipe


class RecipeFiles:
    """The files that one recipe is composed from.

    Args:
        recipe: the name of an installed recipe, or a path to a YAML file. The file may build on ours
            (``defaults: [shop, _self_]``), and groups of its own may lie beside it (``customer/mine.yaml``).

    Attributes:
        roots: where groups are looked for, in this order.
        name: the recipe's name without folder and suffix.
        layers: the recipe and the recipes it builds on, lowest first, each with what the file itself says.

    Raises:
        ConfigError: there is no such recipe, or a file of it is not readable YAML.
    """

    def __init__(self, recipe: str) -> None:
        installed = installed_directories()
        if is_file_name(recipe):
            path = Path(recipe)
            if path.suffix != SUFFIX:
                raise ConfigError(f"{recipe}: a recipe's file name must end in {SUFFIX}")
            if not path.is_file():
                raise ConfigError(f"there is no recipe file {recipe}")
            root, self.name = path.resolve().parent, path.stem
            self.roots = installed if root in [each.resolve() for each in installed] else [root, *installed]
        else:
            self.roots, self.name = installed, recipe
            names = [info.name for info in available_recipes()]
            if recipe not in names:
                raise ConfigError(
                    f"there is no recipe {recipe!r}: {nearest(recipe, names)} (a file needs its {SUFFIX})"
                )
        self.layers: list[tuple[Path, dict[str, Any]]] = []
        self._read_layers(self.name, [])

    def find(self, name: str) -> Path | None:
        """The file of a recipe or of a group's option (``policy/small``), or None."""
        for root in self.roots:
            path = root / f"{name.removesuffix(SUFFIX)}{SUFFIX}"
            if path.is_file():
                return path
        return None

    def origin(self, key: str, choices: Mapping[str, str]) -> tuple[Path, bool]:
        """The file a key comes from, and whether the key itself is in it (else the section it belongs to is).

        Args:
            key: with dots, e.g. ``policy.clip``.
            choices: the chosen option of every group, as Hydra names them (``model/adaptation``, ``group@section``).
        """
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            prefix = parts[:length]
            for path, said in reversed(self.layers):
                if _holds(said, prefix):
                    return path, length == len(parts)
            # The longest section first, so that model.adaptation.rank is found in model/adaptation, not in model.
            for group, option in sorted(choices.items(), key=lambda item: -len(item[0])):
                path_of_group, _, section = group.partition("@")
                home = (section or path_of_group.replace("/", ".")).split(".")
                file = self.find(f"{path_of_group}/{option}")
                if file and prefix[: len(home)] == home and _holds(_read(file), prefix[len(home) :]):
                    return file, length == len(parts)
        return self.layers[-1][0], False

    def _read_layers(self, name: str, above: list[str]) -> None:
        if name in above:
            raise ConfigError(f"recipe {name} builds on itself ({' → '.join([*above, name])}): rename your file")
        path = self.find(name)
        if path is None:
            names = [info.name for info in available_recipes()]
            raise ConfigError(f"recipe {above[-1]} builds on {name!r}, which does not exist: {nearest(name, names)}")
        said = _read(path)
        defaults = said.pop("defaults", [])
        if not isinstance(defaults, list):
            raise ConfigError(f"{show_path(path)}: defaults must be a list, e.g. [shop, _self_]")
        if "_self_" not in defaults:
            defaults = [*defaults, "_self_"]
        for entry in defaults:
            if entry == "_self_":
                self.layers.append((path, said))
            elif isinstance(entry, str) and "/" not in entry.strip("/"):
                self._read_layers(entry.strip("/"), [*above, name])


def show_path(path: Path) -> str:
    """A path as a message shows it: ours from the package's name on, others from the working directory on."""
    package = recipes_directory()
    if path.is_relative_to(package):
        return f"{PACKAGE.replace('.', '/')}/{path.relative_to(package).as_posix()}"
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def read_yaml(path: Path) -> DictConfig:
    """A YAML file with a mapping in it.

    Raises:
        ConfigError: it is not one; the text has the file and, where known, the line.
    """
    try:
        loaded = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ConfigError(yaml_problem(error, path)) from error
    except (UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{show_path(path)}: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{show_path(path)}: expected keys with values, found a list")
    return loaded


def yaml_problem(error: yaml.YAMLError, path: Path | None) -> str:
    """What is wrong with a YAML file, in one line."""
    mark = getattr(error, "problem_mark", None)
    where = show_path(path) if path else str(mark.name if mark else "recipe")
    line = f":{mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error)
    return f"{where}{line}: not YAML: {' '.join(str(problem).split())}"


def _read(path: Path) -> dict[str, Any]:
    plain = OmegaConf.to_container(read_yaml(path), resolve=False)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _holds(said: Any, parts: list[str]) -> bool:
    for part in parts:
        if not isinstance(said, dict) or part not in said:
            return False
        said = said[part]
    return True


def _opening_comment(path: Path) -> str:
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.startswith("# @package"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return " ".join(lines)
