"""What tests share: the command line in process, and configs composed as the command line composes them."""

import gc
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from restored_logging import logging_restored

from cvtrain.config.schema.root import Config

if TYPE_CHECKING:
    from cvtrain.training.build import Run

if "PYTEST_XDIST_WORKER" in os.environ:
    # The test processes share the cores; with a thread per core in each, all of them would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Let signals that end a process end those of the tests, also where the suite itself runs under nohup."""
    for name in ("SIGHUP", "SIGXCPU"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def pytest_unconfigure() -> None:
    """Let what commands in this process have frozen be collected: libraries complain of what is left at the end."""
    gc.unfreeze()


@dataclass(frozen=True)
class Answer:
    """What a command line gave: exit status, and what it printed."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def keep_logging() -> Iterator[None]:
    """Leave logging as it was before each test."""
    with logging_restored():
        yield


@pytest.fixture
def cvtrain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """`cvtrain("model=mlp", ...)` runs the command line in an empty folder."""
    from cvtrain.cli.main import run

    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Answer:
        capsys.readouterr()
        status = run(list(arguments))
        captured = capsys.readouterr()
        return Answer(status, captured.out, captured.err)

    return call


@pytest.fixture
def assembled(compose_config: Callable[..., Config], tmp_path: Path) -> Iterator[Callable[..., "Run"]]:
    """`assembled("model=mlp", ...)`: a run that has not begun, in a folder of its own; closed at the end."""
    from cvtrain.training.build import build_run

    made: list[Run] = []
    numbers = itertools.count()  # also of runs that could not be made

    def make(*overrides: str) -> "Run":
        run_dir = tmp_path / f"run{next(numbers)}"
        run_dir.mkdir()
        made.append(build_run(compose_config(*overrides), run_dir))
        return made[-1]

    yield make
    for run in made:
        run.loaders.close()
        run.logger.finish(0)


@pytest.fixture(scope="session")
def compose_config() -> Callable[..., Config]:
    """`compose_config("model=mlp", ...)`: the typed, checked config of a training command."""
    from cvtrain.config.composer import Composer
    from cvtrain.config.load import typed_config
    from cvtrain.config.overrides import normalize_override
    from cvtrain.config.schema.root import register_schemas

    register_schemas()

    composer = Composer("train")

    def compose(*overrides: str) -> Config:
        tokens = [normalize_override(token, "train") for token in overrides]
        return typed_config(composer.compose(tokens), composer, tokens)

    return compose
