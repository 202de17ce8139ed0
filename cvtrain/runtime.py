"""Devices, precision and seeds: what a run stands on. Imports nothing of cvtrain but the config's words."""

import contextlib
import ctypes
import functools
import os
import platform
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from cvtrain.config.errors import ConfigError

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
# Of glibc's malloc.h: blocks from this size on are mapped by themselves; free memory at the end above which it goes.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that is a pure function of whole numbers, such as (seed, epoch, index).

    Every part goes through the finalizer of SplitMix64 (Steele, Lea and Flood 2014), so that neighbouring
    inputs give unrelated seeds. The same on every platform; order counts.
    """
    return _absorb(parts) >> 1


def _absorb(parts: tuple[int, ...]) -> int:
    state = 0
    for part in parts:
        state = (state + (part & _MASK) + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def derive_seeds(*parts: int, last: np.ndarray) -> list[int]:
    """`derive_seed(*parts, index)` for each index of `last` (N,) int64: 30 us for a whole batch, not 2 for each."""
    first, second, third = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(_GOLDEN)
    state = last.astype(np.uint64) + np.uint64(_absorb(parts)) + third  # arrays wrap around at 64 bits
    state = (state ^ (state >> np.uint64(30))) * first
    state = (state ^ (state >> np.uint64(27))) * second
    state ^= state >> np.uint64(31)
    return (state >> np.uint64(1)).tolist()


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - what users' own code draws from
    torch.manual_seed(seed)


def generator_states(device: torch.device) -> dict[str, Any]:
    """States of the global generators of Python, NumPy and torch, as tensors and plain values."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    assert isinstance(keys, np.ndarray)
    states: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: dict[str, Any], device: torch.device) -> None:
    """Put back what `generator_states` gave; a device of another kind than then keeps its own state."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch's generators for one optimizer step, differently in each process of the run.

    What a step draws (dropout, stochastic depth) is then a pure function of (seed, step): evaluation,
    logging or a restart in between cannot change it, and no generator state has to be kept.
    """
    derived = derive_rank_seed(seed, 0x57E9, step, rank=rank)
    if _has_accelerator():
        torch.manual_seed(derived)
    else:  # the same stream; torch.manual_seed would write down the call stack for GPUs to come, in 0.3 ms
        torch.default_generator.manual_seed(derived)


@functools.cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available() if hasattr(torch, "accelerator") else torch.cuda.is_available()


def derive_rank_seed(*parts: int, rank: int) -> int:
    """`derive_seed` for what each process of a run draws by itself; rank 0 draws as a process that is alone."""
    return derive_seed(*parts, rank) if rank else derive_seed(*parts)


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
    # A build of torch that knows no ids gives the same ones to all.
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


def has_native_bf16(device: torch.device) -> bool:
    """True if the hardware multiplies bfloat16 itself: Ampere and later GPUs, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        # No public name for this question up to torch 2.15.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def select_precision(name: str, device: torch.device, *, key: str = "trainer.precision") -> torch.dtype:
    """The dtype of matrix products: `auto`, `fp32`, `bf16` or `fp16`; weights stay float32.

    Raises:
        ConfigError: fp16 on a CPU, where it is neither fast nor scaled.
    """
    if name == "auto":
        return torch.bfloat16 if has_native_bf16(device) else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise ConfigError(key=key, value=name, rule="fp16 needs a GPU", remedy=f"use {key}=bf16 or {key}=fp32")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def precision_name(dtype: torch.dtype) -> str:
    """`fp32`, `bf16` or `fp16`."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Mixed precision for a forward pass; does nothing for float32."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)


def keep_freed_memory(device: torch.device) -> None:
    """Let glibc keep what a step on the CPU frees, for the next step.

    By default each large tensor is mapped anew and its pages are cleared by the system: a tenth of the time of a step
    of ResNet-18 at 224 pixels. The process grows to the peak of a step, and stays there. Other systems have no such
    function.
    """
    glibc = _glibc()
    if device.type == "cpu" and glibc is not None:
        glibc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        glibc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def return_freed_memory() -> None:
    """Let glibc give back to the system what is free, as before a fork, which shares what there is page by page.

    The first write to each shared page copies it, and makes all cores forget where it was: several times what a new
    page costs. After a step on the CPU most of a process's memory is free.
    """
    glibc = _glibc()
    if glibc is not None:
        glibc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def choose_memory_format(channels_last: bool | None, convolutional: bool) -> torch.memory_format:
    """NHWC if asked for, or by default if the model is convolutional, whose kernels run faster on it."""
    wanted = convolutional if channels_last is None else channels_last
    return torch.channels_last if wanted else torch.contiguous_format


@contextlib.contextmanager
def determinism(enabled: bool) -> Iterator[None]:
    """Allow only deterministic kernels inside; settings return to what they were. Does nothing if not enabled."""
    if not enabled:
        yield
        return
    before = (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    # cuBLAS reads this when it first runs: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextlib.contextmanager
def fast_kernels(device: torch.device, dtype: torch.dtype, *, deterministic: bool) -> Iterator[None]:
    """Inside, a GPU takes its fastest kernels for what `dtype` asks for; settings return to what they were.

    cuDNN tries its convolutions out on each new shape, of which a run has few; not with `deterministic`, since the
    fastest may differ from run to run. In bf16 and fp16 what is left in float32 may use TF32; fp32 means fp32: no
    TF32, which torch by itself allows in convolutions.
    """
    if device.type != "cuda":
        yield
        return
    mixed = dtype != torch.float32
    before = (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(), _allow_conv_tf32(mixed))
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("high" if mixed else "highest")
    _allow_conv_tf32(mixed)  # again: the line before may have set it
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.set_float32_matmul_precision(before[1])
        _allow_conv_tf32(before[2])


def _allow_conv_tf32(allow: bool) -> bool:
    """Let convolutions use TF32 or not; gives what was before."""
    conv = getattr(torch.backends.cudnn, "conv", None)
    if conv is None:  # torch < 2.9
        before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, allow
        return before
    was = conv.fp32_precision
    conv.fp32_precision = "tf32" if allow else "ieee"
    return was == "tf32"


def peak_memory_gib(device: torch.device) -> dict[str, float]:
    """Peak memory so far in GiB: `host` (largest resident size of this process) and, on a GPU, `device`.

    `host` is left out on Windows, which does not count it this way.
    """
    peaks = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
        peaks["host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    if device.type == "cuda":
        peaks["device"] = torch.cuda.max_memory_allocated(device) / 2**30
    return peaks
