"""Launchers of --multirun: which extra brings one, and what it needs of the machine before anything starts."""

import shutil
from collections.abc import Iterator, Sequence

from hydra.conf import HydraConf

from cvtrain.config.errors import Problem
from cvtrain.config.imports import install_remedy
from cvtrain.config.provenance import COMMAND_LINE

GROUP = "hydra/launcher"
BASIC = "basic"
# Option -> (extra, the option that the extra's plugin brings; our own presets are there without it).
EXTRAS = {
    "joblib": ("joblib", "joblib"),
    "ray": ("ray", "ray"),
    "ray_aws": ("ray", "ray_aws"),
    "slurm": ("slurm", "submitit_slurm"),
    "slurm_cpu": ("slurm", "submitit_slurm"),
    "submitit_local": ("slurm", "submitit_local"),
    "submitit_slurm": ("slurm", "submitit_slurm"),
}


PACKAGES = {"joblib": "hydra-joblib-launcher", "ray": "hydra-ray-launcher", "slurm": "hydra-submitit-launcher"}


def missing_plugin(name: str, options: Sequence[str]) -> Problem | None:
    """The problem of a launcher whose plugin is not installed; None if it is there or unknown.

    Args:
        name: what `hydra/launcher=` names.
        options: the launchers that there are.
    """
    extra, brought = EXTRAS.get(name, ("", name))
    if not extra or brought in options:
        return None
    return Problem(GROUP, name, "its plugin is not installed", install_remedy(extra, PACKAGES[extra]), COMMAND_LINE)


def launcher_problems(hydra: HydraConf, *, is_sweep: bool) -> Iterator[Problem]:
    """Yield the problems that keep the launcher of a composed command from starting its trials."""
    name = hydra.runtime.choices.get(GROUP, BASIC)
    if name != BASIC and not is_sweep:
        remedy = "add --multirun, or leave it out"
        yield Problem(GROUP, name, "starts the trials of --multirun, and this is one run", remedy, COMMAND_LINE)
    elif str(hydra.launcher.get("_target_", "")).endswith(".SlurmLauncher") and shutil.which("sbatch") is None:
        yield Problem(
            GROUP,
            name,
            "there is no Slurm here: sbatch is not in PATH",
            f"start it on a node of the cluster; {GROUP}=submitit_local runs the trials on this machine",
            COMMAND_LINE,
        )
