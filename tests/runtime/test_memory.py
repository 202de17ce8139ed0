"""Host memory that is kept and given back."""

import platform
import subprocess
import sys

import pytest

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")


@needs_glibc
def test_freed_memory_is_kept_for_the_next_step():
    """A tensor that comes again gets the pages of the one before, which the system need not clear."""
    program = (
        "import resource, torch\n"
        "from cvtrain.runtime.memory import keep_freed_memory\n"
        "keep_freed_memory(torch.device('cpu'))\n"
        "for _ in range(10):\n"
        "    torch.ones(1 << 22)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10):\n"
        "    torch.ones(1 << 22)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # without it, 4,096 pages of 4 KiB each time
