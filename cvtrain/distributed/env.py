"""The rank of this process, from the environment of torchrun, srun or `trainer.devices`. No torch."""

import os
import re
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from cvtrain.config.errors import ConfigError
from cvtrain.config.wandb_trial import RUN_ID

# Ports that srun's processes meet on: below those that systems give to outgoing connections.
_FIRST_PORT, _NUM_PORTS = 12_000, 16_000
# How many processes srun has started together.
_STEP_TASKS = "SLURM_STEP_NUM_TASKS"


@dataclass(frozen=True)
class Rank:
    """The rank of a process of a run.

    Attributes:
        rank: 0..world_size - 1. Rank 0 decides, logs and writes.
        local_rank: the same among the processes of this machine: which GPU is its own. None: not in the
            environment, as on platforms that give each container RANK and WORLD_SIZE alone; the ranks find it out.
        world_size: processes of the run.
        local_world_size: processes of the run on this machine; None with local_rank.
        node: name of this machine.
    """

    rank: int
    local_rank: int | None
    world_size: int
    local_world_size: int | None
    node: str

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0


def rank_from_env(environ: MutableMapping[str, str] | None = None) -> Rank | None:
    """The rank of this process; None if it is the only one of its run.

    Under srun, MASTER_ADDR and MASTER_PORT are set too, where they are missing.

    Raises:
        ConfigError: the environment contradicts itself.
    """
    environ = os.environ if environ is None else environ
    if "RANK" in environ and "WORLD_SIZE" in environ:
        rank = _torchrun_rank(environ)
    elif int(environ.get(_STEP_TASKS, "1")) > 1 and "SLURM_PROCID" in environ and not _has_agent_for_task(environ):
        rank = _slurm_rank(environ)
    else:
        return None
    local_rank, local_world_size = rank.local_rank or 0, rank.local_world_size or 1
    if not 0 <= rank.rank < rank.world_size or not 0 <= local_rank < local_world_size:
        raise ConfigError(
            rule=f"the environment calls this process {rank.rank} of {rank.world_size} (RANK, WORLD_SIZE), and "
            f"{local_rank} of {local_world_size} on this machine (LOCAL_RANK, LOCAL_WORLD_SIZE)",
            remedy="start with torchrun, srun or trainer.devices=N, or unset RANK and WORLD_SIZE",
        )
    return rank if rank.world_size > 1 else None


def drop_srun_rank(environ: MutableMapping[str, str] | None = None) -> None:
    """For a search, whose trials are runs of their own: each task of srun's searches by itself.

    Raises:
        ConfigError: torchrun has started several processes.
    """
    environ = os.environ if environ is None else environ
    if environ.get("WORLD_SIZE", "1") != "1" and "RANK" in environ:
        raise ConfigError(
            rule="torchrun starts the processes of one run, and a search makes many",
            remedy="leave torchrun out: sweep.workers=N trains N trials at a time, trainer.devices=N gives each of "
            "them N processes",
        )
    environ.pop(_STEP_TASKS, None)


def _has_agent_for_task(environ: Mapping[str, str]) -> bool:
    """True for a trial whose agent of W&B is what srun has started: its other tasks are agents with other trials."""
    run, task = environ.get(RUN_ID), environ.get("SLURM_TASK_PID")
    if not run or not task:
        return False
    try:
        variables = Path(f"/proc/{int(task)}/environ").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    return f"{RUN_ID}={run}".encode() not in variables  # an agent sets it for its trial


def _torchrun_rank(environ: Mapping[str, str]) -> Rank:
    world_size = _number(environ, "WORLD_SIZE", None)
    rank = _number(environ, "RANK", None)
    is_placed = {"LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= environ.keys()
    return Rank(
        rank=rank,
        local_rank=_number(environ, "LOCAL_RANK", None) if is_placed else None,
        world_size=world_size,
        local_world_size=_number(environ, "LOCAL_WORLD_SIZE", None) if is_placed else None,
        node=environ.get("GROUP_RANK") or socket.gethostname(),
    )


def _slurm_rank(environ: MutableMapping[str, str]) -> Rank:
    """Of a step of srun with several tasks. In the batch script itself there is no step, and so no rank."""
    job = _number(environ, "SLURM_JOB_ID", 0) * 16 + _number(environ, "SLURM_STEP_ID", 0)
    environ.setdefault("MASTER_ADDR", first_host(environ.get("SLURM_STEP_NODELIST", "127.0.0.1")))
    environ.setdefault("MASTER_PORT", str(_FIRST_PORT + job % _NUM_PORTS))
    node = _number(environ, "SLURM_NODEID", 0)
    return Rank(
        rank=_number(environ, "SLURM_PROCID", None),
        local_rank=_number(environ, "SLURM_LOCALID", 0),
        world_size=_number(environ, _STEP_TASKS, None),
        local_world_size=_tasks_of_node(environ.get("SLURM_STEP_TASKS_PER_NODE", "1"), node),
        node=str(node),
    )


def first_host(nodes: str) -> str:
    """The first of Slurm's list of hosts: `gpu03` of `gpu[03-05,09],login1`."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodes)
    return nodes if match is None else f"{match[1]}{match[2] or ''}{match[3]}"


def _tasks_of_node(counts: str, node: int) -> int:
    """Tasks of the node with this number, of Slurm's list such as `8(x3),4`: three nodes with 8, then one with 4."""
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            break
        node -= int(match[2] or 1)
        if node < 0:
            return int(match[1])
    return 1


def _number(environ: Mapping[str, str], name: str, default: int | None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise ConfigError(
            rule=f"the environment variable {name} is {text!r}; torchrun and srun set it to a whole number",
            remedy="start with torchrun, srun or trainer.devices=N, or unset RANK and WORLD_SIZE",
        ) from None
