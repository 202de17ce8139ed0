"""The verb `auto`: the network and the training for a set of photos, found within a time."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cvtrain.auto.search import AutoSearch
from cvtrain.auto.state import State, load_state
from cvtrain.config.checks.auto import STATE
from cvtrain.config.compose import compose_verb
from cvtrain.config.durations import parse_duration
from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.resolvers import new_run_dir
from cvtrain.config.schema.auto import AutoConfig, AutoSettings, Licenses
from cvtrain.runtime.lock import run_lock
from cvtrain.runtime.run_folder import removed_if_refused

# What the search itself chooses.
OWN_KEYS = ("model", "recipe", "hydra", "trainer.max_minutes")


def auto(config: AutoConfig, tokens: Sequence[str], *, config_dir: str | None = None, elapsed: float = 0.0) -> int:
    """Search in a new folder `output_root/auto_<data>/<time>`, or go on in that of `resume`. Returns the exit status.

    Args:
        tokens: overrides of training that all runs get, such as data=custom data.root=photos.
        config_dir: the folder of --config-dir.
        elapsed: seconds that the command has taken so far.

    Raises:
        ConfigError: a setting or the data is wrong; nothing is left behind.
        RunError: nothing could be trained in the budget.
    """
    for token in tokens:
        key = token.lstrip("+~").partition("=")[0]
        if any(key == own or key.startswith(f"{own}.") for own in OWN_KEYS):
            remedy = "auto.models=[...] and auto.weights=[...] name the networks" if key.startswith("model") else ""
            raise ConfigError(key, rule="is chosen by cvtrain auto", remedy=remedy or "leave it out")
    if config.resume is not None:
        folder = Path(config.resume).expanduser()
        if tokens:
            raise ConfigError("resume", config.resume, "goes on with the settings it had", f"leave {tokens[0]} out")
        state = load_state(folder)
        state.elapsed += elapsed
        settings = AutoSettings(**{**state.settings, "licenses": Licenses(state.settings["licenses"])})
        with run_lock(folder, wait_seconds=0.0):
            return AutoSearch(folder, state, settings, config_dir=config_dir).run()
    base = compose_verb("train", tokens, config_dir=config_dir)[0]
    folder = Path(new_run_dir(base.output_root, f"auto_{base.data.name}"))
    plain = asdict(config.auto) | {"licenses": config.auto.licenses.value}
    state = State(list(tokens), plain, parse_duration(config.budget, "budget"), elapsed)
    with removed_if_refused(folder, base.output_root), run_lock(folder, wait_seconds=0.0):
        try:
            return AutoSearch(folder, state, config.auto, config_dir=config_dir).run()
        except (ConfigError, RunError):
            if state.best is None:  # nothing to go on from
                (folder / STATE).unlink(missing_ok=True)
            raise
