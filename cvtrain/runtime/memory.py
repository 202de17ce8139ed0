"""Host memory: what the C library keeps between steps, and peak sizes."""

import ctypes
import functools
import platform
import sys

import torch

# Of glibc's malloc.h: blocks from this size on are mapped by themselves; free memory at the end above which it goes.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


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


def malloc_trim() -> None:
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
