"""The engine `local`: runs the trials of a search on this machine, each in a process of its own."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from optuna.trial import TrialState

from cvtrain.config.errors import RunError
from cvtrain.config.machine import usable_cores
from cvtrain.runtime.console import ConsoleHandler, DisplayFormatter, display_path, log_exception_to_file
from cvtrain.runtime.signals import StopSignals
from cvtrain.sweep.display import best_trial, build_display, describe_values
from cvtrain.sweep.report import describe_folds, write_report
from cvtrain.sweep.search import Search
from cvtrain.sweep.storage import DatabaseGoneError, RetryPolicy
from cvtrain.sweep.study import StudyStore, explained_folder
from cvtrain.sweep.trial import (
    CONSOLE,
    RunningTrial,
    describe_failure,
    evaluation_steps,
    next_fold,
    read_trial,
    run_folder,
    trial_arguments,
    trial_folder,
)
from cvtrain.sweep.workers import Evaluation, TrialEnd, Worker, WorkerPool

log = logging.getLogger(__name__)


def search_locally(search: Search) -> int:
    """Run a search until it ends or the user stops it; the same command resumes it.

    Returns:
        The exit code: 0, or 128 + the number of the signal that stopped the search.

    Raises:
        ConfigError: the folder or the database cannot be used, or the study is another one; no trial has started then.
        RunError: the first trials all failed, the disk is full, or the database does not answer any more.
    """
    folder, settings = search.folder, search.config.sweep
    with StopSignals() as signals, WorkerPool(settings.workers, cores=usable_cores(), warm=settings.warm) as pool:
        store = StudyStore(search, RetryPolicy(lambda: signals.received is not None))
        with explained_folder(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "sweep.yaml").write_bytes(search.spec.path.read_bytes())
            (folder / "sweep.log").touch()
        with log_file(folder / "sweep.log"), signals.deferred():
            try:
                LocalSearch(search, store, pool, signals).run()
                write_report(search, store.study, store.trials(), folder)
            except DatabaseGoneError as error:
                if signals.received is None:
                    raise
                log.error("%s", error)
            except OSError as error:  # such as a full disk
                reason = f"{error.filename or folder}: {error.strerror or error}"
                raise RunError(f"{reason}\n  trials save and end; the same command resumes the search") from error
            if signals.received is not None:
                log.info("resume it: the same command again")
    return signals.exit_code


class LocalSearch:
    """The loop of a search: gives trials to free workers, records what they report, and ends with the last of them."""

    def __init__(self, search: Search, store: StudyStore, pool: WorkerPool, signals: StopSignals) -> None:
        assert search.trials is not None
        self.search = search
        self.metric = search.spec.metric
        self.store = store
        self.pool = pool
        self.signals = signals
        self.limit = search.trials
        self.running: dict[int, RunningTrial] = {}
        self._is_exhausted = False
        self._has_stopped_trials = False

    def run(self) -> None:
        """Run trials until the study has its number of them, the target is reached, or the user stops the search."""
        self.log_start()
        if self._num_finished() >= self.limit:
            return
        self.pool.open()
        display = build_display(self.search.name, self.search.spec, self.limit)
        try:
            while self.assign_trials():
                display.update(list(self.running.values()), self.store.trials())
                for event in self.pool.wait():
                    self.handle_event(event)
                if self.signals.received is not None and not self._has_stopped_trials:
                    self._has_stopped_trials = True
                    log.warning("%s: trials save and end; once more ends them at once", self.signals.received.name)
                    self.pool.stop()
                self.store.heartbeat([trial.handle for trial in self.running.values()])
        finally:
            display.close()

    def log_start(self) -> None:
        done, spec = self._num_finished(), self.search.spec
        goal = "highest" if self.metric.maximize else "lowest"
        log.info("search %s: %s over %d parameters, the %s %s counts", self.search.name, spec.method,
                 len(spec.parameters), goal, self.metric.name)  # fmt: skip
        if done:
            log.info("%d of %d trials are done", done, self.limit)
        if done >= self.limit:
            more = "" if spec.grid_size() == self.limit else "a larger sweep.trials=N continues it, "
            log.info("nothing is left to run; %ssweep.name=... starts another study", more)
        log.info("trials in %s", display_path(self.search.folder))

    def _num_finished(self) -> int:
        return sum(trial.state.is_finished() for trial in self.store.trials())

    # ------------------------------------------------------------------ starting trials

    def assign_trials(self) -> bool:
        """Start a trial on each free worker, while there are any; return whether trials run."""
        for worker in self.pool.workers:
            if worker.trial is None and not self._is_exhausted and self.signals.received is None:
                self._start_next(worker)
        return bool(self.running)

    def _start_next(self, worker: Worker) -> None:
        assignment = None if self._target_reached() else self.store.next_trial(self.limit)
        if assignment is None:
            self._is_exhausted = True  # a trial that another machine loses later is left to the next start
            return
        folder = trial_folder(self.search.folder, assignment.number)
        folder.mkdir(parents=True, exist_ok=True)
        trial = RunningTrial(handle=assignment.trial, number=assignment.number, values=assignment.values, folder=folder)
        # Of a trial that was cut between its last run and its record, the last run is resumed, and ends at once.
        last_fold = (self.search.folds or 1) - 1
        fold = next_fold(self.search, trial.number) if assignment.is_resumed else 0
        self._start_run(worker, trial, last_fold if fold is None else fold, is_resumed=assignment.is_resumed)
        self.running[trial.number] = trial
        varying = {item.key for item in self.search.spec.parameters if item.varies()}
        shown = {key: value for key, value in trial.values.items() if key in varying} or trial.values
        verb = "resumes" if assignment.is_resumed else "starts"
        log.info("trial %d %s: %s", trial.number, verb, describe_values(shown))

    def _start_run(self, worker: Worker, trial: RunningTrial, fold: int, *, is_resumed: bool) -> None:
        """Start the run of a trial, or of one of its folds."""
        console = trial.folder / CONSOLE
        trial.fold, trial.console_start = fold, console.stat().st_size if console.exists() else 0
        run = run_folder(self.search, trial.number, fold)
        run.mkdir(parents=True, exist_ok=True)
        trial.steps = evaluation_steps(run, self.metric) if is_resumed else []
        arguments = trial_arguments(self.search, trial.number, trial.values, is_resumed=is_resumed, fold=fold)
        worker.start(trial.number, arguments=arguments, output=console, metric=self.metric.name)

    def _target_reached(self) -> bool:
        target, best = self.metric.target, best_trial(self.store.trials(), self.metric)
        if target is None or best is None or best.value is None:
            return False
        is_reached = best.value >= target if self.metric.maximize else best.value <= target
        if is_reached:
            log.info("trial %d has reached the target: %s %.4f", best.number, self.metric.name, best.value)
        return is_reached

    # ------------------------------------------------------------------ what trials report

    def handle_event(self, event: Evaluation | TrialEnd) -> None:
        trial = self.running[event.trial]
        if isinstance(event, Evaluation):
            trial.observe(event.value, self.metric)
            number = trial.count(event.step)
            # A mean over folds is known at the end: nothing is reported, and no trial ends early.
            stop = self.search.folds is None and self.store.report(trial.handle, number, event.value)
            event.worker.answer(stop=stop)
            return
        is_stopping = self.signals.received is not None
        fold = next_fold(self.search, trial.number) if self.search.folds and event.exit_code == 0 else None
        if fold is not None and fold > trial.fold and not is_stopping:
            free = next(worker for worker in self.pool.workers if worker.trial is None)
            self._start_run(free, trial, fold, is_resumed=run_folder(self.search, trial.number, fold).is_dir())
            return
        del self.running[trial.number]
        if event.exit_code == 0 and (fold is None or not is_stopping):
            self._record_outcome(trial)
        elif self.signals.received is not None:  # it has saved, or ended before its first step
            self.store.requeue(trial.handle)
            log.info("trial %d is interrupted; the search resumes it", trial.number)
        else:
            self._record_failure(trial, describe_failure(event.exit_code, trial.folder / CONSOLE, trial.console_start))

    def _record_outcome(self, trial: RunningTrial) -> None:
        outcome = read_trial(self.search, trial.number)
        if outcome.value is None:
            self._record_failure(trial, f"logged no {self.metric.name}")
            return
        state = TrialState.PRUNED if outcome.is_pruned else TrialState.COMPLETE
        ending = {"folds": list(outcome.folds)} if outcome.folds else {"step": outcome.step}
        self.store.finish(trial.handle, state, value=outcome.value, **ending)
        best = best_trial(self.store.trials(), self.metric)
        is_best = best is not None and best.number == trial.number
        verb, remark = "pruned" if outcome.is_pruned else "done", " (best so far)" if is_best else ""
        log.info("trial %d %s: %s %.4f%s in %.1f s%s", trial.number, verb, self.metric.name, outcome.value,
                 describe_folds(outcome.folds), time.monotonic() - trial.begun, remark)  # fmt: skip

    def _record_failure(self, trial: RunningTrial, message: str) -> None:
        self.store.finish(trial.handle, TrialState.FAIL, value=None, message=message)
        log.error("trial %d failed: %s\n  all of it: %s", trial.number, message, display_path(trial.folder / CONSOLE))
        states = [each.state for each in self.store.trials() if each.state.is_finished()]
        limit = self.search.config.sweep.max_initial_failures
        if len(states) >= limit and all(state is TrialState.FAIL for state in states):
            raise RunError(
                f"the first {len(states)} trials all failed, the last with:\n  {message}\n"
                f"  nothing more is tried; sweep.max_initial_failures={limit} sets how many may"
            )


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Inside, log lines go to the console and to a file."""
    root = logging.getLogger()
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(DisplayFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [file, ConsoleHandler()]
    level = root.level
    root.setLevel(logging.INFO)
    for name in ("alembic", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    except Exception as error:
        log_exception_to_file(error)
        raise
    finally:
        for handler in handlers:
            root.removeHandler(handler)
        file.close()
        root.setLevel(level)
