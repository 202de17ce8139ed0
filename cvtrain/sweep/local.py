"""The engine `local`: runs the trials of a search on this machine, each in a process of its own."""

import logging
import signal
import time
from typing import Any

from optuna.trial import TrialState

from cvtrain.config.errors import RunError
from cvtrain.config.machine import usable_cores
from cvtrain.runtime.console import display_path
from cvtrain.runtime.signals import SIGNALS
from cvtrain.sweep.display import best_trial, build_display, describe_values
from cvtrain.sweep.report import write_report
from cvtrain.sweep.search import Search
from cvtrain.sweep.storage import DatabaseGoneError, RetryPolicy
from cvtrain.sweep.study import StudyStore
from cvtrain.sweep.study_folder import explained_folder, log_file, make_folder, refuse_strange_folders
from cvtrain.sweep.trial import (
    CONSOLE,
    RunningTrial,
    describe_failure,
    evaluation_steps,
    read_outcome,
    trial_arguments,
    trial_folder,
)
from cvtrain.sweep.wish import StopWish
from cvtrain.sweep.workers import Event, Worker, WorkerPool

log = logging.getLogger(__name__)

# Exit codes of a run that a signal told to save and end.
INTERRUPTED = {128 + number for number in SIGNALS}
# After a second Ctrl-C, how long trials may take to be gone.
HURRY_SECONDS = 5.0


def search_locally(search: Search) -> int:
    """Run a search to its end, or until the user stops it; the same command again goes on with it.

    Returns:
        The exit code: 0; 130, 143 or 138 after a signal.

    Raises:
        ConfigError: the database cannot be used, or the study is another one; no trial has started then.
        RunError: the first trials all failed, or the database does not answer any more.
    """
    folder = search.folder
    workers = search.config.sweep.workers
    with StopWish() as wish:
        pool = WorkerPool(
            workers,
            cores=usable_cores(),
            warm=search.config.sweep.warm,
            overrides=search.fixed,
            is_hurried=lambda: wish.count > 1,
        )
        with pool:  # they load their libraries while the database is opened
            book = StudyStore(search, RetryPolicy(lambda: wish.count))
            refuse_strange_folders(book.trials(), search.name, folder)
            make_folder(folder)
            with explained_folder(folder):
                (folder / "sweep.yaml").write_bytes(search.spec.path.read_bytes())
                (folder / "sweep.log").touch()
            with log_file(folder / "sweep.log"):
                try:
                    LocalSearch(search, book, pool, wish).run()
                    write_report(search, book.study, book.trials(), folder)
                except DatabaseGoneError as error:
                    if wish.received is None:
                        raise
                    log.error("%s", error)
                except OSError as error:  # such as a full disk
                    told = f"{error.filename or folder}: {error.strerror or error}"
                    raise RunError(
                        f"{told}\n  trials save and end; the same command goes on with the search"
                    ) from error
                if wish.received is not None:
                    log.info("resume it: the same command again")
    return wish.exit_code


class LocalSearch:
    """The loop: gives free workers trials, keeps what trials tell, and ends when there are enough of them."""

    def __init__(self, search: Search, book: StudyStore, pool: WorkerPool, wish: StopWish) -> None:
        assert search.trials is not None
        self.search = search
        self.metric = search.spec.metric
        self.book = book
        self.pool = pool
        self.wish = wish
        self.limit = search.trials
        self.running: dict[int, RunningTrial] = {}
        self.offsets: dict[int, int] = {}
        self.exhausted = False
        self._signals_sent = 0
        self._hurry_since: float | None = None

    def run(self) -> None:
        """Run trials until the study has enough, the target is reached, or the user stops it."""
        self.log_start()
        if self._is_complete():
            return
        self.pool.wait_until_ready()
        display = build_display(self.search.name, self.search.spec, self.limit)
        try:
            while True:
                self.assign_trials()
                if not self.running:
                    break
                display.update(list(self.running.values()), self.book.trials())
                for event in self.pool.wait():
                    self._take(event)
                self._pass_signals_on()
                self.book.heartbeat([trial.handle for trial in self.running.values()])
        finally:
            display.close()

    def log_start(self) -> None:
        trials = self.book.trials()
        done = sum(trial.state.is_finished() for trial in trials)
        spec = self.search.spec
        goal = "highest" if self.metric.maximize else "lowest"
        log.info("search %s: %s over %d parameters, the %s %s counts", self.search.name, spec.method,
                 len(spec.parameters), goal, self.metric.name)  # fmt: skip
        if done:
            log.info("%d of %d trials are done", done, self.limit)
        if done >= self.limit:
            more = "" if spec.grid_size() == self.limit else "sweep.trials=N with a larger N goes on, "
            log.info("that was all; %ssweep.name=... begins anew", more)
        log.info("trials in %s", display_path(self.search.folder))

    def _is_complete(self) -> bool:
        return sum(trial.state.is_finished() for trial in self.book.trials()) >= self.limit

    # ------------------------------------------------------------------ starting trials

    def assign_trials(self) -> None:
        for worker in self.pool.workers:
            if self.wish.received is not None or self.exhausted:
                return
            if worker.trial is None:
                self._start_next(worker)

    def _start_next(self, worker: Worker) -> None:
        if self._target_reached():
            self.exhausted = True
            return
        assignment = self.book.next_trial(self.limit)
        if assignment is None:
            # Nothing to begin now; a trial that another machine loses later is its next start's.
            self.exhausted = True
            return
        folder = trial_folder(self.search.folder, assignment.number)
        folder.mkdir(parents=True, exist_ok=True)
        trial = RunningTrial(assignment.trial, assignment.number, assignment.values, folder)
        trial.steps = evaluation_steps(folder, self.metric) if assignment.again else []
        console = folder / CONSOLE
        self.offsets[trial.number] = console.stat().st_size if console.exists() else 0
        self.running[trial.number] = trial
        arguments = trial_arguments(self.search, trial.number, trial.values, again=assignment.again)
        worker.start(trial.number, arguments=arguments, output=console, metric=self.metric.name)
        verb = "goes on" if assignment.again else "starts"
        varying = {item.key for item in self.search.spec.parameters if item.varies()}
        told = {key: value for key, value in trial.values.items() if key in varying}
        log.info("trial %d %s: %s", trial.number, verb, describe_values(told or trial.values))

    def _target_reached(self) -> bool:
        target, best = self.metric.target, best_trial(self.book.trials(), self.metric)
        if target is None or best is None or best.value is None:
            return False
        reached = best.value >= target if self.metric.maximize else best.value <= target
        if reached:
            log.info("trial %d has reached the target: %s %.4f", best.number, self.metric.name, best.value)
        return reached

    # ------------------------------------------------------------------ what trials tell

    def _take(self, event: Event) -> None:
        if event.kind == "evaluated" and event.row is not None:
            self._evaluated(event.worker, event.row)
        elif event.kind == "ended" and event.row is not None:
            self._ended(self.running.pop(event.row["trial"]), event.value)
        elif event.kind == "lost":
            raise RunError(f"the process that starts trials is gone (exit {event.value}); the same command goes on")

    def _evaluated(self, worker: Worker, row: dict[str, Any]) -> None:
        trial = self.running.get(row["trial"])
        if trial is None:
            return
        trial.observe(row["value"], self.metric)
        stop = self.book.report(trial.handle, trial.count(row["step"]), row["value"])
        worker.answer(trial.number, stop=stop)

    def _ended(self, trial: RunningTrial, exit_code: int) -> None:
        """Keep how a trial ended: by itself, by its search, by a fault, or by the user's wish."""
        if self.wish.received is not None and exit_code != 0:
            # Cut by us: saved, or ended before its first step.
            self.book.put_back(trial.handle)
            log.info("trial %d is cut; it goes on when the search does", trial.number)
            return
        if exit_code != 0:
            self._failed(trial, describe_failure(exit_code, trial.folder / CONSOLE, self.offsets[trial.number]))
            return
        outcome = read_outcome(trial.folder, self.metric)
        if outcome.value is None:
            self._failed(trial, f"logged no {self.metric.name}")
            return
        state = TrialState.PRUNED if outcome.pruned else TrialState.COMPLETE
        self.book.finish(trial.handle, state, value=outcome.value, step=outcome.step)
        best = best_trial(self.book.trials(), self.metric)
        log.info(
            "trial %d %s: %s %.4f in %.1f s%s",
            trial.number,
            "pruned" if outcome.pruned else "done",
            self.metric.name,
            outcome.value,
            time.monotonic() - trial.begun,
            " (best so far)" if best is not None and best.number == trial.number else "",
        )

    def _failed(self, trial: RunningTrial, message: str) -> None:
        self.book.finish(trial.handle, TrialState.FAIL, value=None, message=message)
        log.error("trial %d failed: %s\n  all of it: %s", trial.number, message, display_path(trial.folder / CONSOLE))
        states = [each.state for each in self.book.trials() if each.state.is_finished()]
        limit = self.search.config.sweep.max_initial_failures
        if len(states) >= limit and all(state is TrialState.FAIL for state in states):
            self._stop_all(signal.SIGTERM)
            raise RunError(
                f"the first {len(states)} trials all failed, the last with:\n  {message}\n"
                f"  nothing more is tried; sweep.max_initial_failures={limit} sets how many may"
            )

    # ------------------------------------------------------------------ the user's wish to stop

    def _pass_signals_on(self) -> None:
        """First Ctrl-C: trials save and end. Second: they end at once."""
        if self.wish.count > self._signals_sent:
            self._signals_sent = self.wish.count
            if self._signals_sent == 1:
                log.warning("%s: trials save and end", self.wish.received.name if self.wish.received else "")
            else:
                log.warning("once more: trials end at once")
                self._hurry_since = self._hurry_since or time.monotonic()
            self._stop_all(signal.SIGTERM)
        if self._hurry_since is not None and time.monotonic() - self._hurry_since > HURRY_SECONDS:
            self._stop_all(signal.SIGKILL)

    def _stop_all(self, number: signal.Signals) -> None:
        for worker in self.pool.workers:
            if worker.trial is not None:
                worker.signal(number, all_processes=number is signal.SIGKILL)
