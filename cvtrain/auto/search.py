"""`search`: look at the candidates, drop those that do worse, train the best, keep what is better."""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cvtrain.auto.candidates import Candidate, list_candidates
from cvtrain.auto.compare import compare_predictions
from cvtrain.auto.probe import SHARES, Probe, Probed
from cvtrain.auto.report import describe_probes, write_results
from cvtrain.auto.schedule import RUN_SECONDS, Pace, choose_image_size, sample_images
from cvtrain.auto.state import State, Trained
from cvtrain.commands.from_python import run_logging
from cvtrain.commands.train import train
from cvtrain.config.checks.auto import STATE
from cvtrain.config.compose import compose_verb
from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.overrides import override
from cvtrain.config.redact import redact
from cvtrain.config.resume import SUMMARY
from cvtrain.config.schema.auto import AutoSettings
from cvtrain.config.schema.root import Config
from cvtrain.data.sources.build import build_splits
from cvtrain.data.sources.source import Splits
from cvtrain.report.json_file import write_json
from cvtrain.runtime.console import display_path
from cvtrain.runtime.progress import build_progress

log = logging.getLogger(__name__)

MAX_EPOCHS, MAX_SCRATCH_EPOCHS = 10, 200
# Networks that are trained at most; those after the first only if time is left.
MAX_TRAINED = 2
SCRATCH = ("model=resnet18", "model.pretrained=false")
PREDICTIONS = "predictions_val.csv"


class StoppedError(Exception):
    """A signal has ended a run."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code


class AutoSearch:
    """One search, in its folder.

    Args:
        state: a new one, or that of a stopped search.
        now: the clock, in seconds.
    """

    def __init__(
        self,
        folder: Path,
        state: State,
        settings: AutoSettings,
        *,
        config_dir: str | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.folder, self.state, self.settings = folder, state, settings
        self._config_dir, self._now = config_dir, now
        self._began = now() - state.elapsed
        self._splits: Splits | None = None
        self._short_side, self._read_seconds = 0, 0.0

    def run(self) -> int:
        """Search, and leave the best run in the folder. Returns the exit status: 0, or 128 + a signal's number.

        Raises:
            ConfigError: the data or a setting is wrong.
            RunError: nothing could be trained in the budget.
        """
        exit_code = 0
        with run_logging(self.folder / "auto.log", "INFO"):
            try:
                ranked = self._rank()
                if ranked:
                    for place, probed in enumerate(ranked[:MAX_TRAINED]):
                        self._train_pretrained(probed, must_fit=place > 0)
                else:
                    self._train_scratch()
            except StoppedError as stop:
                exit_code = stop.exit_code
            finally:
                self._save()
            if self.state.best is None and not exit_code:
                raise RunError("nothing could be trained within the budget\n  set a larger one: budget=30m")
            if self.state.best is not None:
                self._finish(exit_code)
        return exit_code

    # ------------------------------------------------------------------ looking

    def _rank(self) -> list[Probed]:
        """Return the candidates that can be had, the most promising first."""
        candidates = list_candidates(self.settings)
        self._splits = build_splits(self._compose([]).data)
        splits = self._splits
        self._short_side, self._read_seconds = sample_images(splits.train, now=self._now)
        log.info(
            "data: %d train, %d val images, %d classes, short side %d pixels; budget %.0f s",
            len(splits.train),
            len(splits.val),
            len(splits.classes),
            self._short_side,
            self.state.budget,
        )
        if self.state.probed and self.state.runs:
            return sorted(self.state.probed.values(), key=_promise)
        survivors = [probe for candidate in candidates if (probe := self._load(candidate)) is not None]
        progress = build_progress(True)
        if len(survivors) == 1:  # nothing to compare it with: training tells more, and sooner
            found = survivors[0].found
            found.seconds_per_image = self._read_seconds + found.forward_seconds
            self.state.probed[found.arch] = found
        for share in SHARES:
            if len(survivors) <= 1:
                break
            for probe in survivors:
                found = probe.look(share, progress)
                found.seconds = self._elapsed()
                self.state.probed[found.arch] = found
            for line in describe_probes([probe.found for probe in survivors]):
                log.info("%s", line)
            survivors.sort(key=lambda probe: _promise(probe.found))
            survivors = survivors[: math.ceil(len(survivors) / 2)]
            self._save()
        chosen = [probe.found for probe in survivors]
        others = sorted((each for each in self.state.probed.values() if each not in chosen), key=_promise)
        return [*chosen, *others]

    def _load(self, candidate: Candidate) -> Probe | None:
        assert self._splits is not None
        try:
            tokens = [*candidate.overrides, "model.freeze=backbone", "plots=false"]
            probe = Probe(candidate, self._compose(tokens), self._splits, now=self._now)
        except ConfigError as error:
            self.state.left_out[candidate.arch] = str(error.problems[0].rule or error.problems[0])
            log.warning("%s: left out: %s", candidate.arch, self.state.left_out[candidate.arch])
            return None
        found, settings = probe.found, self.settings
        for name, value, limit in (
            ("auto.max_params_m", found.params_m, settings.max_params_m),
            ("auto.max_latency_ms", found.latency_ms, settings.max_latency_ms),
        ):
            if limit is not None and value > limit:
                self.state.left_out[found.arch] = f"{value:.1f} is more than {name}={limit:g}"
                log.info("%s: left out: %s", found.arch, self.state.left_out[found.arch])
                return None
        return probe

    # ------------------------------------------------------------------ training

    def _train_pretrained(self, probed: Probed, *, must_fit: bool) -> None:
        assert self._splits is not None
        num_train, num_val = len(self._splits.train), len(self._splits.val)
        pace = self._fit_image_size(probed)
        one_pass = RUN_SECONDS + pace.frozen_seconds(num_train, num_val)
        if one_pass > self._left():
            if must_fit:
                return
            log.warning("one pass over the images takes about %.0f s, more than is left of the budget", one_pass)
        frozen = self._train(f"{probed.arch}_frozen", probed.arch, [*probed.overrides, "model.freeze=backbone"])
        if frozen is None:
            return
        # The whole run tells more than a few images, which warm up.
        pace = Pace(0.0, frozen.eval_seconds / num_val, pace.step)
        before, epoch = pace.frozen_seconds(num_train, num_val), pace.epoch_seconds(num_train, num_val)
        around, after = max(0.0, frozen.run_seconds - before), pace.closing_seconds(num_val)
        epochs = min(MAX_EPOCHS, int((self._left() - around - before - after) / epoch))
        name = f"{probed.arch}_finetune"
        if epochs < 1 and not self._is_begun(name):
            needed = around + before + epoch + after
            log.info("%s: no time to fine-tune: %.0f s for an epoch, %.0f s left", probed.arch, needed, self._left())
            return
        features = num_train * pace.forward
        minutes = max(0.05, (self._left() - around - features - after) / 60)  # of the epochs
        tokens = [*probed.overrides, f"trainer.epochs={max(1, epochs)}", f"trainer.max_minutes={minutes:.3f}"]
        self._train(name, probed.arch, tokens)

    def _train_scratch(self) -> None:
        """Train a small network from random weights, since no others are at hand."""
        assert self._splits is not None
        log.warning("no pretrained weights are at hand: training %s from random weights", SCRATCH[0])
        candidate = Candidate("resnet18", SCRATCH)
        probe = Probe(candidate, self._compose([*SCRATCH, "plots=false"]), self._splits, now=self._now)
        pace = self._pace(probe.found)
        epoch = pace.epoch_seconds(len(self._splits.train), len(self._splits.val))
        epochs = max(1, min(MAX_SCRATCH_EPOCHS, int((self._left() - RUN_SECONDS) / epoch)))
        minutes = max(0.05, (self._left() - RUN_SECONDS) / 60)
        tokens = [*SCRATCH, f"trainer.epochs={epochs}", f"trainer.max_minutes={minutes:.3f}"]
        self._train("resnet18_scratch", "resnet18", tokens)

    def _pace(self, probed: Probed) -> Pace:
        return Pace(self._read_seconds, probed.forward_seconds, probed.step_seconds)

    def _fit_image_size(self, probed: Probed) -> Pace:
        """Add a smaller image size to the candidate's overrides where time is short; return the pace at its size."""
        assert self._splits is not None
        pace, native = self._pace(probed), probed.image_size
        if not probed.can_shrink or any(token.startswith("data.image_size=") for token in self.state.tokens):
            return pace
        chosen = next((token for token in probed.overrides if token.startswith("data.image_size=")), None)
        if chosen is None:
            size = choose_image_size(
                pace,
                native=native,
                short_side=self._short_side,
                num_train=len(self._splits.train),
                num_val=len(self._splits.val),
                seconds=self._left(),
            )
            if size == native:
                return pace
            log.info("%s: images of %d pixels, not %d, for want of time", probed.arch, size, native)
            chosen = f"data.image_size={size}"
            probed.overrides = (*probed.overrides, chosen)
        return pace.at_size(int(chosen.partition("=")[2]), native)

    def _is_begun(self, name: str) -> bool:
        return (self.folder / "candidates" / name / "checkpoints" / "last.pt").is_file()

    def _train(self, name: str, arch: str, tokens: Sequence[str]) -> Trained | None:
        """Train, or go on with a run that was stopped, and keep it if it is the best. None: it failed."""
        known = next((run for run in self.state.runs if run.folder == name), None)
        if known is not None:
            return known
        folder = self.folder / "candidates" / name
        began = self._elapsed()
        log.info("training %s", name)
        try:
            if self._is_begun(name):
                config, overrides = compose_verb(
                    "train", [override("resume", str(folder))], config_dir=self._config_dir
                )
            else:
                config, overrides = compose_verb("train", [*self.state.tokens, *tokens], config_dir=self._config_dir)
                shutil.rmtree(folder, ignore_errors=True)  # of a command that was killed before its first checkpoint
            with run_logging(folder / "train.log", config.log_level):
                result = train(config, run_dir=folder, overrides=overrides)
        except (ConfigError, RunError) as error:
            if self.state.best is None:
                raise
            log.warning("%s: left out: %s", name, error)
            return None
        if result.exit_code:
            if self.state.best is None and result.best_checkpoint is not None:
                self.state.best = name
            raise StoppedError(result.exit_code)
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        accuracy = summary["best"]["metrics"]["val/accuracy"]
        took = (self._elapsed() - began, evaluation_seconds(summary))
        run = Trained(name, arch, list(tokens), accuracy, summary["images"]["val"], self._elapsed(), *took)
        self._judge(run)
        self.state.runs.append(run)
        self._save()
        return run

    def _judge(self, run: Trained) -> None:
        best = self.state.best
        if best is None:
            run.verdict, self.state.best = "the first", run.folder
        else:
            folder = self.folder / "candidates"
            found = compare_predictions(folder / run.folder / PREDICTIONS, folder / best / PREDICTIONS)
            outcome = f"{found.won} images won, {found.lost} lost to {best}, p = {found.p_value:.3g}"
            run.verdict = f"{'kept' if found.is_better else 'not kept'}: {outcome}"
            if found.is_better:
                self.state.best = run.folder
        log.info("%s: val accuracy %.4f; %s", run.folder, run.accuracy, run.verdict)

    # ------------------------------------------------------------------ the rest

    def _compose(self, tokens: Sequence[str]) -> Config:
        config = compose_verb("train", [*self.state.tokens, *tokens], config_dir=self._config_dir)[0]
        assert isinstance(config, Config)
        return config

    def _elapsed(self) -> float:
        return self._now() - self._began

    def _left(self) -> float:
        return self.state.budget - self._elapsed()

    def _save(self) -> None:
        state = self.state
        write_json(
            self.folder / STATE,
            {
                "overrides": redact(state.tokens),
                "settings": state.settings,
                "budget": state.budget,
                "elapsed": self._elapsed(),
                "probed": [probed.to_plain() for probed in state.probed.values()],
                "left_out": state.left_out,
                "runs": [vars(run) for run in state.runs],
                "best": state.best,
            },
        )

    def _finish(self, exit_code: int) -> None:
        """Leave the best run in the folder itself, and write what was tried."""
        best = self.state.best
        assert best is not None
        source = self.folder / "candidates" / best
        shutil.copytree(source, self.folder, copy_function=_link, dirs_exist_ok=True)
        write_results(self.folder, self.state, best)
        log.info("best: %s, after %.0f of %.0f s", best, self._elapsed(), self.state.budget)
        log.info("results in %s", display_path(self.folder))
        if exit_code:
            log.info("go on: cvtrain auto resume=%s", display_path(self.folder))


def evaluation_seconds(summary: Mapping[str, Any]) -> float:
    """Return the seconds that a run's evaluations took, by its summary.json."""
    return float(summary["time"]["loop"]["evaluation"]["seconds"])


def _promise(found: Probed) -> tuple[float, float]:
    """Sort by accuracy, those that are alike by size."""
    return -(found.accuracy if found.accuracy is not None else 0.0), found.params_m


def _link(source: str, target: str) -> None:
    """Give a file a second name, or copy it where that cannot be."""
    path = Path(target)
    path.unlink(missing_ok=True)
    try:
        os.link(source, path)
    except OSError:
        shutil.copy2(source, path)
