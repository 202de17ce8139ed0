"""runtime: seeds as pure functions, devices, precision."""

import platform
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from cvtrain.config.errors import ConfigError
from cvtrain.runtime import device as runtime

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")


def test_derive_seed_known_answers():
    # Written down once: the order of samples and every augmentation hang on these never changing.
    assert runtime.derive_seed(0) == 0xE220A8397B1DCDAF >> 1  # SplitMix64's first output for state 0
    assert runtime.derive_seed(0, 1, 2) == 8825289091277911490
    assert runtime.derive_seed(0, 1, 3) == 6830919859777061816


def test_derive_seeds_are_those_of_each_index():
    indices = np.array([0, 1, 7, 2**40, 2**62], dtype=np.int64)
    for parts in ((), (3,), (2**63 - 1, 5), (-1, 0)):
        expected = [runtime.derive_seed(*parts, int(index)) for index in indices]
        assert runtime.derive_seeds(*parts, last=indices) == expected
    assert runtime.derive_seeds(1, last=np.array([], dtype=np.int64)) == []


def test_derive_seed_separates_neighbours_and_order():
    seeds = {runtime.derive_seed(a, b, c) for a in range(10) for b in range(10) for c in range(100)}
    assert len(seeds) == 10 * 10 * 100
    assert runtime.derive_seed(1, 2) != runtime.derive_seed(2, 1)
    assert runtime.derive_seed(1) != runtime.derive_seed(1, 0)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_derive_seed_bits_are_balanced():
    seeds = np.array([runtime.derive_seed(7, index) for index in range(20000)], dtype=np.uint64)
    for bit in range(63):
        share = float(((seeds >> np.uint64(bit)) & np.uint64(1)).mean())
        assert abs(share - 0.5) < 0.02, f"bit {bit}"  # 5 standard deviations of a fair coin


def test_seed_step_makes_draws_a_function_of_the_step():
    runtime.seed_step(3, 10)
    first = torch.rand(4)
    torch.rand(100)
    runtime.seed_step(3, 10)
    assert torch.equal(first, torch.rand(4))
    runtime.seed_step(3, 11)
    assert not torch.equal(first, torch.rand(4))


def test_seed_generators_seeds_all_three():
    draws = []
    for _ in range(2):
        runtime.seed_everything(5)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert draws[0] == draws[1]


def test_generator_states_round_trip():
    cpu = torch.device("cpu")
    runtime.seed_everything(9)
    random.gauss(0, 1)
    np.random.normal()
    states = runtime.get_rng_state(cpu)

    def draw() -> tuple:
        return random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))

    first = draw()
    assert draw() != first
    runtime.set_rng_state(states, cpu)
    assert draw() == first


def test_wrong_device_lists_those_that_are_there():
    with pytest.raises(ConfigError, match="no such device") as caught:
        runtime.select_device("cuda:77")
    assert "trainer.device=cuda:77" in str(caught.value)
    assert "cpu" in str(caught.value)


def test_cpu_is_always_there():
    assert runtime.select_device("cpu") == torch.device("cpu")
    assert runtime.available_devices()[-1] == "cpu"


def test_precision_names_and_fp16_on_cpu():
    cpu = torch.device("cpu")
    assert runtime.select_precision("fp32", cpu) is torch.float32
    assert runtime.select_precision("bf16", cpu) is torch.bfloat16
    expected = torch.bfloat16 if runtime.has_native_bf16(cpu) else torch.float32
    assert runtime.select_precision("auto", cpu) is expected
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        runtime.select_precision("fp16", cpu)


def test_autocast_is_off_for_fp32_and_on_for_bf16():
    cpu = torch.device("cpu")
    weights = torch.ones(2, 2)
    with runtime.autocast(cpu, torch.float32):
        assert (weights @ weights).dtype is torch.float32
    with runtime.autocast(cpu, torch.bfloat16):
        assert (weights @ weights).dtype is torch.bfloat16


def test_determinism_is_undone():
    with runtime.deterministic_mode(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with runtime.deterministic_mode(False):
        assert not torch.are_deterministic_algorithms_enabled()


@needs_glibc
def test_freed_memory_is_kept_for_the_next_step():
    """A tensor that comes again gets the pages of the one before, which the system need not clear."""
    program = (
        "import resource, torch\n"
        "from cvtrain.runtime.device import keep_freed_memory\n"
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


@needs_glibc
def test_freed_memory_goes_back_before_a_fork():
    """Otherwise each of its pages is copied when it is written afterwards."""
    program = (
        "import torch\n"
        "from cvtrain.runtime.device import keep_freed_memory, malloc_trim\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096 / 2**20\n"
        "keep_freed_memory(torch.device('cpu'))\n"
        "torch.ones(64 << 20)\n"
        "held = resident()\n"
        "malloc_trim()\n"
        "print(held - resident())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 250  # of 256 MiB
