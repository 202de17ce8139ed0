"""The verb `train`: assembles a run from its config, trains, and reports."""

from dataclasses import dataclass
from pathlib import Path

from cvtrain.assembly import assemble
from cvtrain.config.root import Config
from cvtrain.continuation import find_state
from cvtrain.distributed.world import ALONE, World
from cvtrain.interruption import StopSignal
from cvtrain.outcome import draw_preview, record_start, write_outcome
from cvtrain.report.plotter import Plotter
from cvtrain.run_lock import PATIENCE_SECONDS, run_lock
from cvtrain.runtime import determinism, fast_kernels, keep_freed_memory
from cvtrain.tracking import now
from cvtrain.trainer_settings import EndReason


@dataclass
class TrainResult:
    """What `train` gives back to the command line or a notebook.

    Attributes:
        monitor: best value of `trainer.monitor`, which Hydra's sweepers optimise; None if nothing was evaluated.
        metrics: `val/...` of the best evaluation, `test/...` if there is a test split.
        exit_code: 0, or 130 after Ctrl-C, 143 after SIGTERM, 138 after SIGUSR1.
    """

    monitor: float | None
    metrics: dict[str, float]
    run_dir: Path
    end_reason: EndReason
    exit_code: int = 0


def train(
    config: Config,
    *,
    run_dir: Path,
    overrides: list[str] | None = None,
    world: World = ALONE,
    plotter: Plotter | None = None,
) -> TrainResult:
    """Train, evaluate and report into `run_dir`, which no other process may train in meanwhile.

    Of several processes of the run (`world`), rank 0 reports. Pictures, if `config.plots`, are drawn by `plotter`; by
    default in this process.

    Raises:
        ConfigError: a setting that only the data, the device or a library could prove wrong; or the folder is in use.
        NonFiniteLossError: the loss became NaN or infinite and `trainer.on_nonfinite=stop`.
    """
    if not world.is_main:  # rank 0 holds the folder for all
        return _train(config, run_dir, overrides or [], world, None)
    plotter = (plotter or Plotter()) if config.plots else None
    # Who goes on with a run may come while the one before is still saving.
    with run_lock(run_dir, wait_seconds=0.0 if config.resume is None else PATIENCE_SECONDS):
        return _train(config, run_dir, overrides or [], world, plotter)


def _train(config: Config, run_dir: Path, overrides: list[str], world: World, plotter: Plotter | None) -> TrainResult:
    started = now()
    state = find_state(config, run_dir, world)
    if world.is_main:
        record_start(config, run_dir, overrides, step=state["position"]["step"] if state else 0)
    world.barrier()
    with StopSignal() as stop_signal, determinism(config.trainer.deterministic):
        run = assemble(config, run_dir, stop_signal, state, world)
        trainer = run.trainer
        keep_freed_memory(trainer.device)
        exit_code = 1
        try:
            if plotter is not None and config.augment.preview and state is None:
                draw_preview(run, plotter)
            with fast_kernels(trainer.device, trainer.dtype, deterministic=config.trainer.deterministic):
                end_reason = trainer.run_loop()
                exit_code = trainer.agreement.exit_code
                metrics = write_outcome(run, end_reason, plotter, wall_seconds=now() - started)
                world.barrier()  # together, since who leaves early looks like one that was lost
        except (KeyboardInterrupt, SystemExit):
            exit_code = stop_signal.exit_code or 1
            raise
        finally:
            run.loaders.close()
            trainer.store.close()
            with stop_signal.hurried():
                run.logger.finish(exit_code)
    return TrainResult(trainer.monitor.best, metrics, run_dir, end_reason, exit_code)
