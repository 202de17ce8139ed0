"""`Search`: a command `cvtrain sweep ...`, read and checked, ready for an engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cvtrain.config.composer import Composer
from cvtrain.config.errors import ConfigError, Problem
from cvtrain.config.load import compose_or_explain, typed_config
from cvtrain.config.metric_names import SUMMARY_METRICS
from cvtrain.config.overrides import normalize_override, override, unquoted
from cvtrain.config.provenance import readable
from cvtrain.config.schema.root import Config
from cvtrain.config.schema.sweep import Engine, SweepConfig
from cvtrain.config.sweep_files import find_sweep_file
from cvtrain.sweep.checks import base_config, check_spec
from cvtrain.sweep.spec import SweepSpec, load_spec
from cvtrain.sweep.wandb_command import key_of, settings_of_command

FOLDER = "sweeps"


@dataclass(frozen=True)
class Search:
    """A checked search.

    Attributes:
        config: the command's own settings.
        spec: the sweep file.
        base: the config that all trials start from, see `base_config`.
        flags: Hydra's flags of the command, such as --config-dir, which its trials get too.
        fixed: overrides of all trials, those that the search itself adds included.
        given: of these, the ones that the user gave.
        trials: number of trials in all; None: W&B's server ends the search.
    """

    config: SweepConfig
    spec: SweepSpec
    base: Config
    flags: tuple[str, ...]
    fixed: tuple[str, ...]
    given: tuple[str, ...]
    trials: int | None

    @property
    def name(self) -> str:
        return self.config.sweep.name or self.spec.name

    @property
    def folds(self) -> int | None:
        """Runs of each trial, one for each fold; None: a trial is one run."""
        return self.config.folds

    @property
    def folder(self) -> Path:
        """Folder of the study: its database, its trials, its report."""
        return Path(self.base.output_root).expanduser() / FOLDER / self.name


def plan_search(
    composer: Composer, trial_composer: Composer, own: Sequence[str], given: Sequence[str], flags: Sequence[str]
) -> Search:
    """Read and check a search, before anything is written.

    Args:
        composer: of the verb sweep.
        trial_composer: of the verb train.
        own: the search's own tokens.
        given: the tokens for its trials, as `normalize_override` leaves them.
        flags: Hydra's flags.

    Raises:
        ConfigError: every problem of the first step that finds some: the command, the file, the trials' settings.
    """
    own, given = list(own), list(given)
    if not any(token.startswith("sweep.file=") for token in own):
        find_sweep_file("", composer.config_dir)
    config: SweepConfig = typed_config(compose_or_explain(composer, own), composer, own)
    refuse_own_tokens(given)
    spec = load_spec(find_sweep_file(config.sweep.file, composer.config_dir))
    if config.engine is Engine.local:
        refuse_metric_of_summary(spec)
    given = [*command_overrides(spec, given), *given]
    if config.folds is not None:
        refuse_folds(spec, given, config.folds)
        check_spec(spec, trial_composer, [*given, fold_override(0, config.folds)])
    base = check_spec(spec, trial_composer, given)
    fixed = [*given, *added_overrides(spec, base, given)]
    if len(fixed) > len(given):
        base = base_config(spec, trial_composer, fixed)
    trials = number_of_trials(config, spec)
    return Search(config, spec, base, tuple(flags), tuple(fixed), tuple(given), trials)


def command_overrides(spec: SweepSpec, given: Sequence[str]) -> list[str]:
    """Return the settings in the `command` of a sweep file, without those in `given`; loggers are the engine's."""
    settings = settings_of_command(spec.content, given)
    return [normalize_override(token, "train") for token in settings if key_of(token) not in ("logger", "resume")]


def refuse_own_tokens(given: Sequence[str]) -> None:
    """Refuse overrides that the search itself gives its trials.

    Raises:
        ConfigError: `resume=...` or `hydra....=...`.
    """
    for token in given:
        key, _, value = token.lstrip("+~").partition("=")
        if key == "resume":
            remedy = "the same command again resumes its search, and the trials that were interrupted"
            raise ConfigError(key, unquoted(value), "is no setting of a search", remedy)
        if key.startswith("hydra"):
            raise ConfigError(key, unquoted(value), "is no setting of a search: its trials have folders of their own")


def fold_override(number: int, count: int) -> str:
    """Return the setting of a run of a trial with folds."""
    return override("data.fold", f"{number}/{count}")


def refuse_folds(spec: SweepSpec, given: Sequence[str], folds: int) -> None:
    """Refuse what does not go with a mean over folds.

    Raises:
        ConfigError: the file has early_terminate, or data.fold is given, too.
    """
    if any(key_of(token) == "data.fold" for token in given) or any(each.key == "data.fold" for each in spec.parameters):
        raise ConfigError("folds", folds, "sets data.fold of each run itself", "leave data.fold out")
    if spec.early_termination is not None:
        rule = f"cannot be had with early_terminate in {readable(spec.path)}: one fold says too little about the mean"
        raise ConfigError("folds", folds, rule, "leave one of the two out")


def refuse_metric_of_summary(spec: SweepSpec) -> None:
    """Refuse a metric that only a run's summary has, which W&B's server reads and the local engine does not.

    Raises:
        ConfigError: the metric is such a one.
    """
    name = spec.metric.name
    if name in SUMMARY_METRICS:
        figure = "val/" + name.partition("/")[2] if "/" in name else "val/accuracy"
        rule = "is an entry of the summary, which only W&B's server follows"
        remedy = f"name: {figure}, of which the best over the run counts"
        raise ConfigError(problems=[Problem("metric.name", name, rule, remedy, f"in {readable(spec.path)}")])


def added_overrides(spec: SweepSpec, base: Config, given: Sequence[str]) -> list[str]:
    """Return what a search adds to the settings that the user gave.

    `trainer.monitor` becomes the metric of the search, if it is one of evaluation, so that best.pt is the best by it.
    """
    searched = {parameter.key for parameter in spec.parameters}
    named = {token.lstrip("+~").partition("=")[0] for token in given} | searched
    metric = spec.metric.name
    if metric.startswith("val/") and metric != base.trainer.monitor and "trainer.monitor" not in named:
        return [override("trainer.monitor", metric)]
    return []


def number_of_trials(config: SweepConfig, spec: SweepSpec) -> int | None:
    """Return the number of trials: `sweep.trials`, else `run_cap`, else the whole grid; at most the whole grid.

    Raises:
        ConfigError: a search by engine=local that would have no end.
    """
    wanted = config.sweep.trials or spec.run_cap
    size = spec.grid_size() if spec.method == "grid" else None
    if size is not None:
        return size if wanted is None else min(size, wanted)
    if wanted is None and config.engine is Engine.local:
        remedy = f"set sweep.trials=20, or run_cap: 20 in {readable(spec.path)}"
        raise ConfigError("sweep.trials", None, f"a search by method {spec.method} would have no end", remedy)
    return wanted
