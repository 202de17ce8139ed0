"""Seeds as pure functions, and the global generators."""

import random

import numpy as np
import torch

from cvtrain.runtime.rng import (
    derive_seed,
    derive_seeds,
    deterministic_mode,
    get_rng_state,
    seed_everything,
    seed_step,
    set_rng_state,
)


def test_derive_seed_known_answers():
    # Written down once: the order of samples and every augmentation hang on these never changing.
    assert derive_seed(0) == 0xE220A8397B1DCDAF >> 1  # SplitMix64's first output for state 0
    assert derive_seed(0, 1, 2) == 8825289091277911490
    assert derive_seed(0, 1, 3) == 6830919859777061816


def test_derive_seeds_are_those_of_each_index():
    indices = np.array([0, 1, 7, 2**40, 2**62], dtype=np.int64)
    for parts in ((), (3,), (2**63 - 1, 5), (-1, 0)):
        expected = [derive_seed(*parts, int(index)) for index in indices]
        assert derive_seeds(*parts, last=indices) == expected
    assert derive_seeds(1, last=np.array([], dtype=np.int64)) == []


def test_derive_seed_separates_neighbours_and_order():
    seeds = {derive_seed(a, b, c) for a in range(10) for b in range(10) for c in range(100)}
    assert len(seeds) == 10 * 10 * 100
    assert derive_seed(1, 2) != derive_seed(2, 1)
    assert derive_seed(1) != derive_seed(1, 0)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_derive_seed_bits_are_balanced():
    seeds = np.array([derive_seed(7, index) for index in range(20000)], dtype=np.uint64)
    for bit in range(63):
        share = float(((seeds >> np.uint64(bit)) & np.uint64(1)).mean())
        assert abs(share - 0.5) < 0.02, f"bit {bit}"  # 5 standard deviations of a fair coin


def test_seed_step_makes_draws_a_function_of_the_step():
    seed_step(3, 10)
    first = torch.rand(4)
    torch.rand(100)
    seed_step(3, 10)
    assert torch.equal(first, torch.rand(4))
    seed_step(3, 11)
    assert not torch.equal(first, torch.rand(4))


def test_seed_generators_seeds_all_three():
    draws = []
    for _ in range(2):
        seed_everything(5)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert draws[0] == draws[1]


def test_generator_states_round_trip():
    cpu = torch.device("cpu")
    seed_everything(9)
    random.gauss(0, 1)
    np.random.normal()
    states = get_rng_state(cpu)

    def draw() -> tuple:
        return random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))

    first = draw()
    assert draw() != first
    set_rng_state(states, cpu)
    assert draw() == first


def test_determinism_is_undone():
    with deterministic_mode(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_mode(False):
        assert not torch.are_deterministic_algorithms_enabled()
