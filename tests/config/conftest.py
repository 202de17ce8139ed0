"""The problems of a command, found in process and without a run."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cvtrain.config.errors import ConfigError, Problem

if TYPE_CHECKING:
    from cvtrain.config.composer import Composer


@pytest.fixture(scope="session")
def composer_of() -> Callable[[str], "Composer"]:
    """The composer of a verb without files of the user's: it finds its files once for all tests."""
    from cvtrain.config.composer import Composer

    return functools.cache(Composer)


@pytest.fixture
def problems_of(
    composer_of: Callable[[str], "Composer"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Problem]]:
    """`problems_of("model=mlp", ...)`: what is wrong with a training command, given in an empty folder."""
    from cvtrain.config.composer import Composer
    from cvtrain.config.load import check_command
    from cvtrain.config.overrides import normalize_override
    from cvtrain.config.schema.root import register_schemas

    register_schemas()
    monkeypatch.chdir(tmp_path)

    def find(*overrides: str, verb: str = "train", multirun: bool = False, config_dir: str | None = None):
        composer = Composer(verb, config_dir) if config_dir else composer_of(verb)
        try:
            check_command(
                composer, [normalize_override(token, verb, multirun=multirun) for token in overrides], multirun
            )
        except ConfigError as error:
            return list(error.problems)
        return []

    return find
