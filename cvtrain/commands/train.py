"""The verb `train`: assembles a run from its config, trains, and reports."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from cvtrain.checkpoint import BEST
from cvtrain.checkpoint.resume import load_resume_state
from cvtrain.config.errors import RunError
from cvtrain.config.resume import CHECKPOINTS, refuse_used_folder
from cvtrain.config.schema.root import Config
from cvtrain.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cvtrain.report.plotter import Plotter
from cvtrain.report.run_report import draw_preview, write_report, write_run_metadata
from cvtrain.report.start import describe_start
from cvtrain.runtime.collection import collection_paused
from cvtrain.runtime.console import log_with_details
from cvtrain.runtime.lock import LOCK_TIMEOUT_SECONDS, is_held, run_lock, unusable_folder
from cvtrain.runtime.memory import keep_freed_memory
from cvtrain.runtime.precision import backend_flags
from cvtrain.runtime.rng import deterministic_mode
from cvtrain.runtime.signals import StopSignals
from cvtrain.training.build import Run, build_run
from cvtrain.training.state import StopReason

log = logging.getLogger(__name__)


@dataclass
class TrainResult:
    """What `train` gives back to the command line or a notebook.

    Attributes:
        monitor: best value of `trainer.monitor`, which Hydra's sweepers optimise; None if nothing was evaluated.
        metrics: `val/...` of the best evaluation, `test/...` if there is a test split.
        exit_code: 0, or 128 + the number of the signal that ended it: 130 after Ctrl-C, 143 after SIGTERM.
    """

    monitor: float | None
    metrics: dict[str, float]
    run_dir: Path
    end_reason: StopReason
    exit_code: int = 0

    @property
    def best_checkpoint(self) -> Path | None:
        """checkpoints/best.pt of the run; None if nothing was evaluated or `checkpoint.save_best=false`."""
        path = self.run_dir / CHECKPOINTS / BEST
        return path if path.exists() else None


def train(
    config: Config,
    *,
    run_dir: Path,
    overrides: list[str] | None = None,
    world: ProcessGroup = SINGLE_PROCESS,
) -> TrainResult:
    """Train, evaluate and report into `run_dir`, which no other process may train in meanwhile.

    Of several processes of the run (`world`), rank 0 reports, with pictures if `config.plots`.

    Raises:
        ConfigError: a setting that only the data, the device or a library could prove wrong; or the folder is in use,
            cannot be made, or holds another run.
        NonFiniteLossError: the loss became NaN or infinite and `trainer.on_nonfinite=stop`.
        RunError: the last checkpoint or the report could not be written; everything that could be is.
    """
    if not world.is_main_process:  # rank 0 holds the folder for all
        return _train(config, run_dir, overrides or [], world, None)
    plotter = Plotter() if config.plots else None
    # Who goes on with a run may come while the one before is still saving.
    if config.resume is None:
        refuse_used_folder(run_dir)
    with run_lock(run_dir, wait_seconds=0.0 if config.resume is None else LOCK_TIMEOUT_SECONDS):
        return _train(config, run_dir, overrides or [], world, plotter)


def _train(
    config: Config, run_dir: Path, overrides: list[str], world: ProcessGroup, plotter: Plotter | None
) -> TrainResult:
    started = time.perf_counter()
    state = load_resume_state(config, run_dir, world)
    if world.is_main_process:
        try:
            write_run_metadata(config, run_dir, overrides, step=state["position"]["step"] if state else 0)
        except OSError as error:
            raise unusable_folder(run_dir, error) from error
    world.barrier()
    with StopSignals() as stop_signals, deterministic_mode(config.trainer.deterministic):
        with collection_paused():
            run = build_run(config, run_dir, stop_signals, state, world)
        trainer = run.trainer
        if world.is_main_process:
            for line, details in describe_start(run):
                if details and not config.model.summary:
                    log_with_details(log, line, details)
                else:
                    log.info("%s", f"{line}\n{details}".rstrip())
        keep_freed_memory(trainer.device)
        exit_code = 1
        try:
            if plotter is not None and config.augment.preview and state is None:
                draw_preview(run, plotter)
            with backend_flags(trainer.device, trainer.dtype, deterministic=config.trainer.deterministic):
                end_reason = trainer.run_loop()
                exit_code = trainer.coordinator.exit_code
                trainer.store.close()  # before the report, which may take the last space on the disk
                metrics = report_or_explain(run, end_reason, plotter, wall_seconds=time.perf_counter() - started)
                failure = world.broadcast(trainer.store.failure)  # together: a rank that ends early looks lost
            if failure is not None:
                exit_code = exit_code or 1
                raise RunError(f"the newest checkpoint is not on disk: {failure}")
        except (KeyboardInterrupt, SystemExit):
            exit_code = stop_signals.exit_code or 1
            raise
        finally:
            run.loaders.close()
            trainer.store.close()
            with stop_signals.with_deadline():
                run.logger.finish(exit_code)
    return TrainResult(trainer.monitor.best, metrics, run_dir, end_reason, exit_code)


def report_or_explain(
    run: Run, end_reason: StopReason, plotter: Plotter | None, *, wall_seconds: float
) -> dict[str, float]:
    """Write the report of a run; gives the final metrics.

    Raises:
        RunError: the disk is full or the folder cannot be written, or somebody has deleted it.
    """
    if run.trainer.world.is_main_process and not is_held(run.run_dir):
        raise RunError(
            f"{run.run_dir} was deleted while the run was going on: what it held is lost, and no report is written"
        )
    try:
        return write_report(run, end_reason, plotter, wall_seconds=wall_seconds)
    except OSError as error:
        checkpoint = run.trainer.store.failure or "the checkpoint is saved"
        cause = f"{error.filename or run.run_dir}: {error.strerror or error}"
        raise RunError(f"the report could not be written: {cause}\n  {checkpoint}") from error
