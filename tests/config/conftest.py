"""The problems of a command, found in process and without a run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cvtrain.config.errors import ConfigError, Problem


@pytest.fixture
def problems_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Problem]]:
    """`problems_of("model=mlp", ...)`: what is wrong with a training command, given in an empty folder."""
    from cvtrain.config.compose import Composer
    from cvtrain.config.loading import check_command
    from cvtrain.config.overrides import open_up
    from cvtrain.config.root import register_schemas

    register_schemas()
    monkeypatch.chdir(tmp_path)

    def find(*overrides: str, verb: str = "train", multirun: bool = False, config_dir: str | None = None):
        try:
            check_command(Composer(verb, config_dir), [open_up(token, verb) for token in overrides], multirun)
        except ConfigError as error:
            return list(error.problems)
        return []

    return find
