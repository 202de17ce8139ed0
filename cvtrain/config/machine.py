"""The cores that this process may use."""

import os


def usable_cores() -> int:
    """Return the cores of this process, of which a container or a batch system may grant fewer than there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # If Slurm binds no tasks to cores, only this variable has the number of the job.
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(cores, int(granted)) if granted.isdigit() and int(granted) > 0 else cores
