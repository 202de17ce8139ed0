"""The order of samples: a permutation per epoch, known values, drawn counts, and the position to go on from."""

import numpy as np
import pytest

from cvtrain.data.balance import oversampling_weights
from cvtrain.data.loader.sampler import EpochSampler

KNOWN_ORDER = [9, 8, 0, 5, 7, 2, 1, 6, 3, 4]
KNOWN_DRAW = [4, 7, 7, 9, 9, 6, 8, 6, 3, 3]


def flat(plan: EpochSampler, epoch: int, start_batch: int = 0) -> list[int]:
    return [int(index) for key in plan.batches(epoch, start_batch) for index in key.indices]


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    plan = EpochSampler(101, 8, seed=3, shuffle=True)
    orders = [flat(plan, epoch) for epoch in range(4)]
    for order in orders:
        assert sorted(order) == list(range(101))
    assert len({tuple(order) for order in orders}) == 4


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    plan = EpochSampler(1000, 7, seed=3, shuffle=True)
    flat(plan, 0)
    np.random.seed(0)  # noqa: NPY002 (the global generator must not matter)
    assert flat(plan, 5) == flat(EpochSampler(1000, 13, seed=3, shuffle=True), 5)
    assert flat(plan, 5) != flat(EpochSampler(1000, 7, seed=4, shuffle=True), 5)


def test_order_is_the_same_on_every_machine_and_with_every_numpy() -> None:
    # Known values: a change of these breaks the continuation of every run that was started before.
    assert flat(EpochSampler(10, 4, seed=0, shuffle=True), 0) == KNOWN_ORDER
    assert flat(EpochSampler(10, 4, seed=0, shuffle=True, weights=np.arange(10.0)), 0) == KNOWN_DRAW


def test_first_places_are_uniform() -> None:
    firsts = [int(EpochSampler(4, 4, seed=1, shuffle=True).order(epoch)[0]) for epoch in range(2000)]
    counts = np.bincount(firsts, minlength=4)
    # Binomial(2000, 1/4): mean 500, standard deviation 19.4.
    assert (np.abs(counts - 500) < 4 * 19.4).all()


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 4, [3]), (1, 1, [1]), (0, 4, [])]
)
def test_the_last_batch_is_shorter(num_samples: int, batch_size: int, sizes: list[int]) -> None:
    plan = EpochSampler(num_samples, batch_size, seed=0, shuffle=True)
    assert [len(key.indices) for key in plan.batches(0)] == sizes
    assert plan.num_batches == len(sizes) and plan.num_images == num_samples


def test_keys_say_which_batch_they_are_and_a_start_batch_continues() -> None:
    plan = EpochSampler(23, 4, seed=0, shuffle=True)
    keys = list(plan.batches(6))
    assert [(key.epoch, key.number) for key in keys] == [(6, number) for number in range(6)]
    rest = list(plan.batches(6, start_batch=4))
    assert [key.number for key in rest] == [4, 5]
    for key, expected in zip(rest, keys[4:], strict=True):
        np.testing.assert_array_equal(key.indices, expected.indices)
    assert list(plan.batches(6, start_batch=6)) == []


def test_without_shuffle_the_order_is_the_sources() -> None:
    assert flat(EpochSampler(9, 4, seed=0, shuffle=False), 3) == list(range(9))


def test_limited_training_takes_the_head_of_each_order() -> None:
    plan = EpochSampler(50, 4, seed=0, shuffle=True, limit_batches=3)
    assert plan.num_batches == 3 and plan.num_images == 12
    assert flat(plan, 1) == flat(EpochSampler(50, 4, seed=0, shuffle=True), 1)[:12]


def test_limited_evaluation_is_spread_over_the_source() -> None:
    plan = EpochSampler(100, 5, seed=0, shuffle=False, limit_batches=2)
    assert flat(plan, 0) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert flat(EpochSampler(7, 5, seed=0, shuffle=False, limit_batches=9), 0) == list(range(7))


def test_a_subset_is_all_that_is_used() -> None:
    subset = np.array([5, 3, 40, 8])
    assert flat(EpochSampler(50, 3, seed=0, shuffle=False, subset=subset), 2) == [5, 3, 40, 8]
    assert sorted(flat(EpochSampler(50, 3, seed=0, shuffle=True, subset=subset), 2)) == [3, 5, 8, 40]


def test_weights_draw_each_class_equally_often() -> None:
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    plan = EpochSampler(1000, 32, seed=0, shuffle=True, weights=oversampling_weights(labels, 3))
    drawn = np.concatenate([plan.order(epoch) for epoch in range(30)])
    assert len(drawn) == 30_000
    counts = np.bincount(labels[drawn])
    # Binomial(30000, 1/3): mean 10000, standard deviation 81.6.
    assert (np.abs(counts - 10_000) < 4 * 81.6).all()
    # Within the rarest class, 10 samples share its 10000 draws: standard deviation 31.6 each.
    per_sample = np.bincount(drawn, minlength=1000)[990:]
    assert (np.abs(per_sample - 1000) < 5 * 31.6).all()
    assert not np.array_equal(plan.order(0), plan.order(1))
    np.testing.assert_array_equal(plan.order(4), plan.order(4))


def test_samples_of_weight_zero_are_never_drawn() -> None:
    weights = np.array([0.0, 1.0, 0.0, 2.0, 0.0])
    drawn = np.concatenate(
        [EpochSampler(5, 5, seed=0, shuffle=True, weights=weights).order(epoch) for epoch in range(500)]
    )
    assert set(drawn.tolist()) == {1, 3}


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [1.0, np.nan], [np.inf, 1.0]])
def test_senseless_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="sampling weights must be finite, not negative, and not all zero"):
        EpochSampler(2, 1, seed=0, shuffle=True, weights=np.array(weights))
