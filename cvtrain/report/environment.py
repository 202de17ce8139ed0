"""`write_environment`: what a run ran on, for whoever has to make the same figures again."""

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cvtrain.config.machine import usable_cores
from cvtrain.report.json_file import write_json

# The packages whose version can change a run's figures or files.
PACKAGES = (
    "cvtrain",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "scikit-image",
    "scikit-learn",
    "albumentations",
    "kornia",
    "hydra-core",
    "omegaconf",
    "matplotlib",
    "tensorboard",
    "wandb",
    "mlflow-skinny",
    "timm",
    "datasets",
)
_GIT_TIMEOUT_SECONDS = 5


def write_environment(path: str | os.PathLike[str], *, argv: Sequence[str] | None = None) -> None:
    """Write environment.json: versions, git revision, devices, machine and the command, without secrets.

    Args:
        path: the file.
        argv: the command line; None: this process's.
    """
    write_json(path, describe_environment(argv=argv))


def describe_environment(*, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """What `write_environment` writes, as plain values; memory in GiB (2**30 bytes), times in UTC."""
    command = list(sys.argv if argv is None else argv)
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "folder": str(Path.cwd()),
        "git": describe_git(Path.cwd()),
        "versions": {"python": platform.python_version(), **installed_versions(PACKAGES)},
        "machine": {
            "hostname": socket.gethostname(),
            "platform": platform.platform(),
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "usable_cores": usable_cores(),
            "memory_gib": _memory_gib(),
        },
        "devices": _describe_devices(),
    }


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those of the packages that are installed, read from their metadata without importing them."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_git(folder: Path) -> dict[str, Any] | None:
    """`{"revision": ..., "branch": ..., "dirty": ...}` of the repository that `folder` is in; None without one.

    `dirty`: tracked files differ from the revision, or None if git did not say in time.
    """
    revision = _git(folder, "rev-parse", "HEAD")
    if not revision:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "revision": revision,
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": None if status is None else bool(status),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        # No lock is taken: another git command of the user's may be at work.
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=folder,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=_GIT_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _describe_devices() -> dict[str, Any]:
    import torch

    devices: dict[str, Any] = {"threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        devices["cuda"] = [_describe_gpu(index) for index in range(torch.cuda.device_count())]
        devices["cuda_version"] = torch.version.cuda
        devices["cudnn_version"] = torch.backends.cudnn.version()
    if torch.backends.mps.is_available():
        devices["mps"] = platform.machine()
    return devices


def _describe_gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 2),
        "compute_capability": f"{properties.major}.{properties.minor}",
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        # Not Linux: the platform module knows.
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 2)
    except (AttributeError, ValueError, OSError):
        return None
