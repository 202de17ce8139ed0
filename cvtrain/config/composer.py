"""Composition without a run: what Hydra would compose for a command, its groups and its files.

The command line checks a command with it before Hydra makes a folder. The loader is no public interface of Hydra:
hydra-core is pinned below 1.4, and docs/architecture.md lists the private names.
"""

import itertools
import math
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.utils import setup_globals
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cvtrain.config.errors import ConfigError
from cvtrain.config.serialize import flatten

# AssertionError: what omegaconf 2.3 raises for a key below a section that is null, such as logger.wandb.project.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, AssertionError)
# Of Hydra, whose defaults ours are.
VERSION_BASE = "1.3"
# A sweep of more jobs than this is checked value by value, not job by job: a composition takes 30 ms.
MOST_JOBS_CHECKED = 32


def conf_dir() -> Path:
    """Return the folder of the config groups: cvtrain/conf in a wheel, beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parent / "conf"


@dataclass(frozen=True)
class ConfigFile:
    """One YAML file of a composition: its values by dotted key, at the place where it is merged.

    `package` is that place; empty for the whole config.
    """

    config_path: str
    path: Path
    values: dict[str, Any]
    package: str = ""

    @property
    def is_shipped(self) -> bool:
        """True for cvtrain's own files."""
        return self.path.is_relative_to(conf_dir())


@dataclass
class Composer:
    """Composes the config of one verb.

    Args:
        verb: name of the primary config.
        config_dir: folder that the user added with --config-dir.
        config_path: folder that the user put in the place of conf/ with --config-path.
        config_name: primary config that the user chose with --config-name.
        search_path: the command's `hydra.searchpath=[...]` token, if it has one.
    """

    verb: str
    config_dir: str | None = None
    config_path: str | None = None
    config_name: str | None = None
    search_path: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the folders only; another process reads the files itself."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @cached_property
    def _known_files(self) -> dict[tuple[str, ...], list[ConfigFile]]:
        return {}

    @cached_property
    def loader(self) -> ConfigLoaderImpl:
        setup_globals()
        version.setbase(VERSION_BASE)
        search_path = create_automatic_config_search_path(None, "cvtrain.cli.main", self.config_path or str(conf_dir()))
        if self.config_dir is not None:
            folder = Path(self.config_dir).absolute()
            if not folder.is_dir():
                raise ConfigError(key="--config-dir", value=self.config_dir, rule="is no folder")
            search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
        return ConfigLoaderImpl(config_search_path=search_path)

    @cached_property
    def repository(self) -> Any:
        """The files and schemas that the command can name. The loader's own look-ups build this anew for every name."""
        tokens = [self.search_path] if self.search_path else []
        return self.loader._parse_overrides_and_create_caching_repo(self.primary, tokens)[1]

    @property
    def has_own_files(self) -> bool:
        """True if the command brings folders or a primary config of the user's."""
        return bool(self.config_dir or self.config_path or self.config_name or self.search_path)

    @property
    def primary(self) -> str:
        return self.config_name or self.verb

    def compose(self, overrides: list[str]) -> DictConfig:
        """The config of one job, Hydra's own node included. Values that sweep are left at their default."""
        return self.loader.load_configuration(
            self.primary, list(overrides), run_mode=RunMode.RUN, validate_sweep_overrides=False
        )

    def with_values(self, config: DictConfig, overrides: list[Override]) -> DictConfig:
        """A copy of a composed config with values set as a composition sets them last; a fifth of its time."""
        changed = deepcopy(config)
        for override in overrides:
            _apply(override, changed)
        return changed

    def is_choice(self, override: Override) -> bool:
        """True for `group=option`."""
        return override.key_or_group in self.groups and not isinstance(override.value(), dict)

    def parse(self, override: str) -> Override:
        """One token of the command line by Hydra's grammar; raises its OverrideParseException."""
        return OverridesParser.create(config_loader=self.loader).parse_overrides([override])[0]

    def options(self, group: str) -> list[str]:
        """Names of a group's options; empty if there is no such group."""
        return self.repository.get_group_options(group, ObjectType.CONFIG)

    @cached_property
    def groups(self) -> list[str]:
        """Every config group that a user may choose from, Hydra's own too. conf/sweep/ holds searches, not a group."""
        return [group for group in self._groups_below("") if not group.startswith("schema") and group != "sweep"]

    def _groups_below(self, parent: str) -> list[str]:
        found = []
        for name in self.repository.get_group_options(parent, ObjectType.GROUP):
            group = f"{parent}/{name}" if parent else name
            found += [group] if self.options(group) else []
            found += self._groups_below(group)
        return found

    def files(self, overrides: list[str]) -> list[ConfigFile]:
        """The YAML files of a composition, later ones winning. Schemas and Hydra's own files are left out."""
        # Composing takes 0.1 s, and a run asks twice: when its command is checked, and as a job with Hydra's tokens.
        tokens = tuple(token for token in overrides if not token.startswith("hydra."))
        if tokens not in self._known_files:
            defaults = self.loader.compute_defaults_list(self.primary, list(overrides), RunMode.RUN).defaults
            loaded = (self._load(default) for default in defaults)
            self._known_files[tokens] = [file for file in loaded if file is not None]
        return self._known_files[tokens]

    def _load(self, default: ResultDefault) -> ConfigFile | None:
        config_path = default.config_path or ""
        if config_path.startswith(("hydra/", "schema/")):
            return None
        result = self.repository.load_config(config_path)
        if result is None:
            return None
        values = OmegaConf.to_container(result.config, resolve=False)
        package = "" if default.package in (None, "_global_") else str(default.package)
        return ConfigFile(config_path, self.file_of(config_path), flatten(values, package), package)

    def schema_of(self, group: str, option: str) -> str:
        """Name of the schema that an option's file takes from `/schema/<group>/`; empty if it takes none."""
        result = self.repository.load_config(f"{group}/{option}")
        for default in (result.defaults_list if result else None) or []:
            path = getattr(default, "path", None) or ""
            if path.startswith(f"/schema/{group}/"):
                return path.rpartition("/")[2].partition("@")[0]
        return ""

    def file_of(self, config_path: str) -> Path:
        """The file that a config path such as `experiment/mine` is read from."""
        for source in self.repository.get_sources():
            if source.scheme() == "file" and source.is_config(config_path):
                return Path(source.path) / f"{config_path}.yaml"
        return Path(f"{config_path}.yaml")

    def jobs(self, overrides: list[str]) -> list[list[str]]:
        """The overrides of every job of a sweep; of a large or open one, each value once, beside the others' first."""
        params = self.compose(overrides).hydra.sweeper.get("params") or {}
        tokens = [f"{key}={value}" for key, value in params.items()] + list(overrides)
        choices: dict[str, list[str]] = {}
        for override in (self.parse(token) for token in tokens):
            choices[override.get_key_element()] = _job_tokens(override)
        return jobs_to_check(list(choices.values()))


def _apply(override: Override, config: DictConfig) -> None:
    """Set one `key=value`, as Hydra does; raises one of COMPOSITION_ERRORS where Hydra refuses it."""
    key, value = override.key_or_group, override.value()
    if override.package is not None or override.is_delete():
        raise ConfigCompositionException(f"{override.input_line}: not a setting of a composed config")
    # Asked only of a new key: a look at hydra.run.dir would make the folder.
    is_new = override.is_add() and not isinstance(value, (dict, list))
    if is_new and OmegaConf.select(config, key, throw_on_missing=False) is not None:
        raise ConfigCompositionException(f"{override.input_line}: {key} is there already; leave the + out")
    OmegaConf.update(config, key, value, merge=True, force_add=override.is_add() or override.is_force_add())


def jobs_to_check(lists: list[list[str]]) -> list[list[str]]:
    """All combinations of one token of each list if they are few, else each token once, beside the others' first."""
    if math.prod(len(tokens) for tokens in lists) <= MOST_JOBS_CHECKED:
        return [list(job) for job in itertools.product(*lists)]
    first = [tokens[0] for tokens in lists]
    jobs = [first]
    for position, tokens in enumerate(lists):
        jobs += [[*first[:position], token, *first[position + 1 :]] for token in tokens[1:]]
    return jobs


def _job_tokens(override: Override) -> list[str]:
    """The single values that a sweep over one key takes; the two ends of an interval."""
    key = override.get_key_element()
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}", f"{key}={value.end}"]
    if override.is_discrete_sweep():
        return [f"{key}={item}" for item in override.sweep_string_iterator()]
    return [override.input_line or key]
