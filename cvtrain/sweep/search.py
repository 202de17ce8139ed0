"""`Search`: a command `cvtrain sweep ...`, read and checked, ready for an engine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from cvtrain.sweep.checks import check_spec
from cvtrain.sweep.spec import SweepSpec, load_spec
from cvtrain.sweep.wandb_command import key_of, settings_of_command

FOLDER = "sweeps"


@dataclass(frozen=True)
class Search:
    """What an engine needs.

    Attributes:
        config: the command's own settings.
        spec: the sweep file.
        base: the config that all trials start from.
        flags: Hydra's flags of the command, such as --config-dir, which its trials get too.
        fixed: overrides that all trials get, those that the search itself adds included.
        given: of these, the ones that the user gave.
        trials: how many trials in all; None: until W&B's server says so.
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
    def folder(self) -> Path:
        """The folder of the study: its database, its trials, its report. The same for the same name, start by start."""
        return Path(self.base.output_root).expanduser() / FOLDER / self.name


def plan_search(
    composer: Composer, trial_composer: Composer, own: Sequence[str], given: Sequence[str], flags: Sequence[str]
) -> Search:
    """Read and check everything that a search says, before anything is made.

    Args:
        composer: of the verb sweep.
        trial_composer: of the verb train.
        own: the search's own tokens.
        given: the tokens for its trials, as `normalize_override` leaves them.
        flags: Hydra's flags.

    Raises:
        ConfigError: every problem of the step that found some: the command, the file, what runs accept of it.
    """
    own, given = list(own), list(given)
    if not any(token.startswith("sweep.file=") for token in own):
        find_sweep_file("", composer.config_dir)
    config: SweepConfig = typed_config(compose_or_explain(composer, own), composer, own)
    refuse_own_tokens(given)
    spec = load_spec(find_sweep_file(config.sweep.file, composer.config_dir))
    if config.engine is Engine.local:
        refuse_metric_of_summary(spec)
    given = [*commands_settings(spec, given), *given]
    base = check_spec(spec, trial_composer, given)
    fixed = [*given, *added_overrides(spec, base, given)]
    if len(fixed) > len(given):
        base = check_spec(replace(spec, parameters=spec.parameters[:1]), trial_composer, fixed)
    trials = number_of_trials(config, spec)
    return Search(config, spec, base, tuple(flags), tuple(fixed), tuple(given), trials)


def commands_settings(spec: SweepSpec, given: Sequence[str]) -> list[str]:
    """What the `command` of a sweep file sets for all trials, the command line winning; loggers are the engine's."""
    settings = settings_of_command(spec.content, given)
    return [normalize_override(token, "train") for token in settings if key_of(token) not in ("logger", "resume")]


def refuse_own_tokens(given: Sequence[str]) -> None:
    """Refuse overrides of trials that the search decides itself.

    Raises:
        ConfigError: `resume=...` or `hydra....=...`.
    """
    for token in given:
        key, _, value = token.lstrip("+~").partition("=")
        if key == "resume":
            remedy = "the same command again goes on with its search; trials that were cut are resumed"
            raise ConfigError(key, unquoted(value), "is no setting of a search", remedy)
        if key.startswith("hydra"):
            raise ConfigError(key, unquoted(value), "is no setting of a search: its trials have folders of their own")


def refuse_metric_of_summary(spec: SweepSpec) -> None:
    """Refuse a metric that W&B's server finds in a run's summary, and the local engine in no row.

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
    """What a search adds to its trials' settings where the user says nothing.

    `trainer.monitor` is the metric of the search, if it is one of evaluation, so that best.pt is the best by it.
    """
    searched = {parameter.key for parameter in spec.parameters}
    named = {token.lstrip("+~").partition("=")[0] for token in given} | searched
    metric = spec.metric.name
    if metric.startswith("val/") and metric != base.trainer.monitor and "trainer.monitor" not in named:
        return [override("trainer.monitor", metric)]
    return []


def number_of_trials(config: SweepConfig, spec: SweepSpec) -> int | None:
    """Trials in all: `sweep.trials`, else `run_cap`, else every combination; never more than the grid has.

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
