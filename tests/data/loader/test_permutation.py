"""The order of very many samples: a bijection, uniform, pure, and any part of it equal to that part of the whole."""

import numpy as np
import pytest

import cvtrain.data.loader.sampler
from cvtrain.data.loader.permutation import FeistelPermutation
from cvtrain.data.loader.sampler import EpochSampler

KNOWN_KEYS = list(range(8))


def keys(seed: int) -> np.ndarray:
    return np.asarray(np.random.PCG64(seed).random_raw(FeistelPermutation.num_keys))


@pytest.fixture
def large(monkeypatch) -> None:
    """Every shuffled plan is one of very many samples."""
    monkeypatch.setattr(cvtrain.data.loader.sampler, "MAX_SORTED", 0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 255, 1000, 65_536, 65_537, 1_000_003])
def test_every_number_comes_once(size: int) -> None:
    numbers = FeistelPermutation(size, keys(3))[:]
    assert numbers.dtype == np.int64
    np.testing.assert_array_equal(np.sort(numbers), np.arange(size))


def test_it_is_the_network_that_it_says_it_is() -> None:
    # One number at a time, in Python's own arithmetic. A change breaks the continuation of runs started before.
    def encrypt(value: int) -> int:
        left, right = divmod(value, 4)
        for key in KNOWN_KEYS:
            mixed = (right + key) % 2**64
            mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
            left, right = right, left ^ (mixed ^ (mixed >> 31)) % 4
        return left * 4 + right

    def walk(value: int) -> int:
        value = encrypt(value)
        return value if value < 10 else walk(value)

    assert FeistelPermutation(10, np.array(KNOWN_KEYS))[:].tolist() == [walk(place) for place in range(10)]
    assert walk(0) == 1 and walk(1) == 8 and walk(2) == 9


def test_a_part_is_that_part_of_the_whole() -> None:
    permutation = FeistelPermutation(300_007, keys(1))
    whole = permutation[:]
    for start, stop in ((0, 1), (5, 5), (65_530, 131_080), (299_000, 300_007)):
        np.testing.assert_array_equal(permutation[start:stop], whole[start:stop])
    places = np.array([[7, 300_006], [7, 0]])
    np.testing.assert_array_equal(permutation.take(places), whole[places])


def test_pairs_of_place_and_number_are_uniform() -> None:
    # Over 4,000 keys each of 7 x 7 pairs comes Binomial(4000, 1/7) times: chi-squared with 36 degrees of freedom, whose
    # mean is 36 and standard deviation 8.5.
    counts = np.zeros((7, 7))
    for seed in range(4000):
        counts[np.arange(7), FeistelPermutation(7, keys(seed))[:]] += 1
    expected = 4000 / 7
    assert ((counts - expected) ** 2 / expected).sum() < 36 + 5 * 8.5


def test_neighbours_are_unrelated() -> None:
    numbers = FeistelPermutation(1_000_003, keys(2))[:] / 1_000_003
    # The correlation of a million independent pairs has standard deviation 0.001.
    for lag in (1, 2, 64, 1024):
        assert abs(np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1]) < 0.005
    assert abs(np.corrcoef(numbers, np.arange(len(numbers)))[0, 1]) < 0.005
    # Each tenth of the places has a tenth of each tenth of the numbers: 10,000 with standard deviation 95.
    counts = np.histogram2d(np.arange(len(numbers)), numbers, bins=10)[0]
    assert np.abs(counts - 10_000).max() < 5 * 95


def test_a_plan_of_very_many_samples_is_pure_and_differs_by_epoch_and_seed(large) -> None:
    plan = EpochSampler(10_007, 64, seed=3, shuffle=True)
    orders = [plan.order(epoch) for epoch in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(10_007))
        # Two random orders agree in one place on average.
        assert sum((order == other).sum() for other in orders if other is not order) < 20
    np.testing.assert_array_equal(EpochSampler(10_007, 100, seed=3, shuffle=True).order(1), orders[1])
    assert (EpochSampler(10_007, 64, seed=4, shuffle=True).order(1) == orders[1]).sum() < 10
    assert plan.order(0)[:5].tolist() == next(plan.batches(0)).indices[:5].tolist()


def test_few_samples_keep_the_order_that_they_always_had() -> None:
    assert cvtrain.data.loader.sampler.MAX_SORTED == 4_194_304
    assert EpochSampler(10, 4, seed=0, shuffle=True).order(0).tolist() == [9, 8, 0, 5, 7, 2, 1, 6, 3, 4]


@pytest.mark.parametrize("kind", ["sorted", "feistel", "drawn", "in order", "subset", "limited"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_shares_of_a_batch_make_the_batch(kind: str, world_size: int, request) -> None:
    if kind == "feistel":
        request.getfixturevalue("large")
    options = {
        "drawn": {"weights": np.arange(1.0, 104.0)},
        "subset": {"subset": np.arange(0, 103, 2)},
        "limited": {"limit_batches": 3},
    }.get(kind, {})
    shuffle = kind in ("sorted", "feistel", "drawn", "limited")
    whole = list(EpochSampler(103, 24, 5, shuffle, **options).batches(2, start_batch=1))
    shares = [
        list(EpochSampler(103, 24, 5, shuffle, **options, rank=rank, world_size=world_size).batches(2, start_batch=1))
        for rank in range(world_size)
    ]
    for number, key in enumerate(whole):
        parts = [share[number] for share in shares]
        assert {part.number for part in parts} == {key.number}
        np.testing.assert_array_equal(np.concatenate([part.indices for part in parts]), key.indices)
        sizes = [len(part.indices) for part in parts if len(part.indices)]
        assert max(sizes) - min(sizes) <= 1


def test_a_short_batch_gives_two_images_or_none() -> None:
    def sizes(num_images: int, batch_size: int) -> list[int]:
        plans = [EpochSampler(num_images, batch_size, 0, True, rank=rank, world_size=4) for rank in range(4)]
        return [len(list(plan.batches(0))[-1].indices) for plan in plans]

    assert sizes(16, 16) == [4, 4, 4, 4]
    assert sizes(23, 16) == [3, 2, 2, 0]
    assert sizes(19, 16) == [3, 0, 0, 0]
    assert sizes(17, 16) == [1, 0, 0, 0]
    assert sizes(6, 4) == [1, 1, 0, 0]  # full batches give one each
