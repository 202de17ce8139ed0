"""Devices: which there are, and which one a rank uses."""

import torch

from cvtrain.config.errors import ConfigError


def available_devices() -> list[str]:
    """Names that `select_device` takes on this machine, best first."""
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use, which are the same for all processes of a machine."""
    if not torch.cuda.is_available():
        return []
    # A build of torch without uuids gives the same ids to all.
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [str(getattr(each, "uuid", index)) for index, each in enumerate(properties)]


def select_device(
    name: str, *, key: str = "trainer.device", local_rank: int = 0, num_processes: int = 1
) -> torch.device:
    """The device named `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `auto` is the best that is there.

    Of `num_processes` of a run on this machine, the one with number `local_rank` gets the GPU of that number.

    Raises:
        ConfigError: if it is not there; the message lists those that are.
    """
    available = available_devices()
    if num_processes > 1:
        return _select_shared(name, key, available, local_rank, num_processes)
    if name == "auto":
        return torch.device(available[0])
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in available:
        raise ConfigError(
            key=key,
            value=name,
            rule="this machine has no such device",
            remedy=f"devices here: {', '.join(available)}; {key}=auto takes {available[0]}",
        )
    return torch.device(wanted)


def _select_shared(name: str, key: str, available: list[str], local_rank: int, num_processes: int) -> torch.device:
    """The device of one of several processes: a GPU of its own, or the CPU for all of them."""
    num_gpus = sum(device.startswith("cuda") for device in available)
    if name == "cpu" or (name == "auto" and num_gpus == 0):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise ConfigError(
            key=key,
            value=name,
            rule="several processes train on GPUs, one each, or on the CPU",
            remedy=f"use {key}=auto, {key}=cuda or {key}=cpu; CUDA_VISIBLE_DEVICES chooses among GPUs",
        )
    if num_gpus < num_processes:
        raise ConfigError(
            key=key,
            value=name,
            rule=f"{num_processes} processes of this machine see {num_gpus} GPUs together",
            remedy=f"start as many processes as there are GPUs, or use {key}=cpu",
        )
    return torch.device(f"cuda:{local_rank}")


def choose_memory_format(channels_last: bool | None, convolutional: bool) -> torch.memory_format:
    """Return channels_last if set, or by default for convolutional models, whose kernels run faster on it."""
    wanted = convolutional if channels_last is None else channels_last
    return torch.channels_last if wanted else torch.contiguous_format
