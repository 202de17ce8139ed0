"""Host memory: what the C library keeps between steps, and peak sizes."""

import ctypes
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
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        glibc = ctypes.CDLL(None)
        glibc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        glibc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


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
