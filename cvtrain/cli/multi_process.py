"""Start a run of several processes: the job that rank 0 sends to the others, and `trainer.devices`."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.overrides import override
from cvtrain.config.resume import SUMMARY
from cvtrain.config.schema.root import Config
from cvtrain.config.serialize import schema_names, to_plain
from cvtrain.distributed.launcher import launch
from cvtrain.distributed.rendezvous import Rendezvous
from cvtrain.runtime.signals import is_signal_exit

# Hydra's settings of a sweep, which its jobs do not get.
_OF_SWEEPS = ("hydra.sweep", "hydra.launcher", "hydra.sweeper", "hydra/launcher", "hydra/sweeper", "hydra.mode")


@dataclass(frozen=True)
class TrainTask:
    """The verb `train` as a job of Hydra's, in as many processes as it asks for.

    Attributes:
        run: trains in this process: (config, run_dir, overrides, world or None) -> best value of the monitor.
        flags: of the command line.
        rendezvous: this process and those that torchrun has started beside it.
    """

    run: Callable[..., float | None]
    flags: tuple[str, ...]
    rendezvous: Rendezvous
    # As the user has it: while Hydra runs a job, it is set for all.
    full_error: str = field(default_factory=lambda: os.environ.get("HYDRA_FULL_ERROR", "0"))

    def __call__(self, config: Config, run_dir: Path, overrides: list[str]) -> float | None:
        hydra_config = HydraConfig.get()
        if self.rendezvous.is_distributed:
            if hydra_config.mode == RunMode.MULTIRUN:
                raise ConfigError(
                    rule="--multirun starts runs one after another, and torchrun the processes of one run",
                    remedy="leave torchrun out: with trainer.devices=N each run of the sweep gets N processes",
                )
            return self.run(config, run_dir, overrides, self.rendezvous.start(job_spec(config, hydra_config)))
        count = num_processes(config)
        if count > 1:
            return run_processes(count, self.flags, hydra_config, {"HYDRA_FULL_ERROR": self.full_error})
        return self.run(config, run_dir, overrides)


def job_spec(config: Config, hydra_config: Any) -> dict[str, Any]:
    """Return the job that rank 0 sends to the others, as JSON values."""
    run_dir = Path(hydra_config.runtime.output_dir)
    return {
        "config": to_plain(config),
        "schemas": schema_names(config),
        "run_dir": str(run_dir.absolute()),
        "folder": str(Path.cwd()),
        "log_file": f"{hydra_config.job.name}.log",
        "environment": {str(name): str(value) for name, value in hydra_config.job.env_set.items()},
    }


def num_processes(config: Config) -> int:
    """Processes by `trainer.devices`; auto loads torch to count the GPUs."""
    devices = config.trainer.devices
    if isinstance(devices, int):
        return devices
    from cvtrain.runtime.device import available_devices

    if config.trainer.device not in ("auto", "cuda"):
        return 1
    return max(1, sum(name.startswith("cuda") for name in available_devices()))


def run_processes(count: int, flags: Sequence[str], hydra_config: Any, variables: dict[str, str]) -> float | None:
    """Run a job of Hydra's in `count` processes, in its folder; gives the best value of the monitor.

    Args:
        flags: of the command line.
        variables: of the environment, besides this process's.

    Raises:
        SystemExit: with their exit code, if it is not 0. They have reported why.
        RunError: the same, in a sweep, which continues with its next job.
    """
    run_dir = Path(hydra_config.runtime.output_dir).absolute()
    status = launch(job_arguments(flags, hydra_config, run_dir), count, variables)
    is_sweep = hydra_config.mode == RunMode.MULTIRUN
    if status and is_sweep and not is_signal_exit(status):
        raise RunError(f"the {count} processes of this job ended with exit code {status}; {run_dir} has their log")
    if status:
        raise SystemExit(status)
    return json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))["best"]["value"]


def job_arguments(flags: Sequence[str], hydra_config: Any, run_dir: Path) -> list[str]:
    """The command line of one job, as a run of its own in `run_dir`."""
    kept = [flag for flag in flags if flag not in ("--multirun", "-m")]
    of_hydra = [token for token in hydra_config.overrides.hydra if not token.lstrip("+~").startswith(_OF_SWEEPS)]
    tokens = [*of_hydra, *hydra_config.overrides.task]
    tokens = [token for token in tokens if not token.startswith("hydra.run.dir=")]
    return [*kept, *tokens, override("hydra.run.dir", str(run_dir))]
