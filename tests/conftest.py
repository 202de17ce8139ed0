"""Fixtures for whole runs: configs composed as the command line composes them."""

from collections.abc import Callable

import pytest

from cvtrain.config.root import Config


@pytest.fixture(scope="session")
def compose_config() -> Callable[..., Config]:
    """`compose_config("model=mlp", ...)`: the typed, checked config of a training command."""
    from cvtrain.config.compose import Composer
    from cvtrain.config.loading import typed_config
    from cvtrain.config.overrides import open_up
    from cvtrain.config.root import register_schemas

    register_schemas()

    def compose(*overrides: str) -> Config:
        composer = Composer("train", None, None, None)
        tokens = [open_up(token, "train") for token in overrides]
        return typed_config(composer.compose(tokens), composer, tokens)

    return compose
