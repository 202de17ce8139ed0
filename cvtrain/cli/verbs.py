"""The verbs of the command line: each imports what it needs when it runs."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cvtrain import __version__
from cvtrain.runtime.collection import collection_paused

log = logging.getLogger(__name__)

EXIT_FAILED, EXIT_FINDINGS = 1, 3


def run_train(config: Any, run_dir: Path, overrides: list[str], world: Any = None) -> float | None:
    if world is None or world.is_main_process:
        # At once, since torch takes seconds to load.
        log.info("cvtrain %s: loading torch", __version__)
    with collection_paused():
        from cvtrain.commands.train import train

    options = {} if world is None else {"world": world}
    result = train(config, run_dir=run_dir, overrides=overrides, **options)
    if result.exit_code:
        raise SystemExit(result.exit_code)
    return result.monitor


def run_check(config: Any, run_dir: Path, overrides: list[str]) -> None:
    from cvtrain.commands.check import check

    if check(config, run_dir=run_dir, overrides=overrides).num_errors:
        raise SystemExit(EXIT_FINDINGS)


def run_evaluate(config: Any, run_dir: Path, overrides: list[str]) -> float | None:
    from cvtrain.commands.evaluate import evaluate

    return evaluate(config, run_dir=run_dir, overrides=overrides).monitor


def run_predict(config: Any, run_dir: Path, overrides: list[str]) -> None:
    from cvtrain.commands.predict import predict

    if predict(config).num_errors:
        raise SystemExit(EXIT_FINDINGS)


def run_merge(config: Any, run_dir: Path, overrides: list[str]) -> None:
    from cvtrain.commands.merge import merge

    merge(config)


def run_report(config: Any, run_dir: Path, overrides: list[str]) -> None:
    from cvtrain.commands.report import report

    report(config)


def run_reproduce(config: Any, run_dir: Path, overrides: list[str]) -> None:
    log.info("cvtrain %s: loading torch", __version__)
    with collection_paused():
        from cvtrain.commands.reproduce import reproduce

    outcome = reproduce(config, run_dir=run_dir)
    if outcome.exit_code or not outcome.is_equal:
        raise SystemExit(outcome.exit_code or EXIT_FAILED)


def run_export(config: Any, run_dir: Path, overrides: list[str]) -> None:
    from cvtrain.commands.export import export

    export(config)


def run_serve(config: Any, run_dir: Path, overrides: list[str]) -> None:
    from cvtrain.commands.serve import serve

    serve(config)


def run_cache(config: Any, run_dir: Path, overrides: list[str]) -> None:
    from cvtrain.commands.cache import cache

    cache(config)


def run_sweep(search: Any, run_dir: Path, overrides: list[str]) -> float | None:
    from cvtrain.config.schema.sweep import Engine

    if search.config.engine is Engine.wandb:
        from cvtrain.sweep.wandb_engine import search_with_wandb

        exit_code = search_with_wandb(search)
    else:
        from cvtrain.sweep.local import search_locally

        exit_code = search_locally(search)
    if exit_code:
        raise SystemExit(exit_code)
    return None


def run_auto(command: Any, run_dir: Path, overrides: list[str]) -> None:
    config, config_dir = command
    began = time.perf_counter()
    log.info("cvtrain %s: loading torch", __version__)
    with collection_paused():
        from cvtrain.commands.auto import auto

    exit_code = auto(config, overrides, config_dir=config_dir, elapsed=time.perf_counter() - began)
    if exit_code:
        raise SystemExit(exit_code)


# A verb's config is conf/<verb>.yaml over the dataclass in cvtrain.config.schema.root.VERBS. Its task gets the typed
# config, the run folder and the overrides, imports what it needs, and returns the number that a sweeper optimises.
VERBS: dict[str, Callable[[Any, Path, list[str]], float | None]] = {
    "train": run_train,
    "check": run_check,
    "evaluate": run_evaluate,
    "predict": run_predict,
    "merge": run_merge,
    "report": run_report,
    "reproduce": run_reproduce,
    "export": run_export,
    "serve": run_serve,
    "cache": run_cache,
    # Gets a `cvtrain.sweep.search.Search` in the config's place, and the overrides of its trials.
    "sweep": run_sweep,
    # Gets its settings and --config-dir, and the overrides of its runs.
    "auto": run_auto,
}
