import itertools

import numpy as np
import pytest
import torch

from cvtrain.config.schema.augment import AugmentConfig
from cvtrain.data.augment import build_batch_transform
from cvtrain.data.augment.mixup import Box, cutmix, cutmix_box, mixup, one_hot

NUM_CLASSES = 5
# Sums of two float32 products, in the same order: a few units in the last place of numbers below 1.
TOLERANCE = {"rtol": 0, "atol": 3e-7}


def batch(size=6, height=9, width=7):
    generator = torch.Generator().manual_seed(size)
    images = torch.rand(size, 3, height, width, generator=generator)
    return images, torch.randint(0, NUM_CLASSES, (size,), generator=generator)


def build(**settings):
    return build_batch_transform(AugmentConfig(name="test", **settings), num_classes=NUM_CLASSES)


def naive_targets(labels, weight, shift):
    targets = np.zeros((len(labels), NUM_CLASSES))
    for i in range(len(labels)):
        targets[i, labels[i]] += weight
        targets[i, labels[(i - shift) % len(labels)]] += 1 - weight
    return torch.tensor(targets, dtype=torch.float32)


def test_one_hot():
    rows = one_hot(torch.tensor([2, 0]), 3)
    assert rows.dtype == torch.float32
    assert rows.tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(("weight", "shift"), [(0.0, 1), (0.3, 1), (0.5, 5), (1.0, 2)])
def test_mixup_is_the_naive_loop(weight, shift):
    images, labels = batch()
    given = images.clone(), labels.clone()
    mixed, targets = mixup(images, labels, num_classes=NUM_CLASSES, weight=weight, shift=shift)
    pixels = images.numpy()
    expected = np.empty_like(pixels)
    for i, channel, row, column in np.ndindex(*pixels.shape):
        partner = pixels[(i - shift) % len(pixels), channel, row, column]
        expected[i, channel, row, column] = weight * pixels[i, channel, row, column] + (1 - weight) * partner
    torch.testing.assert_close(mixed, torch.from_numpy(expected), **TOLERANCE)
    torch.testing.assert_close(targets, naive_targets(labels, weight, shift), **TOLERANCE)
    assert torch.equal(images, given[0])
    assert torch.equal(labels, given[1])


@pytest.mark.parametrize(
    ("box", "area"),
    [(Box(2, 6, 1, 5), 16), (Box(0, 9, 0, 7), 63), (Box(3, 3, 0, 7), 0), (Box(8, 9, 6, 7), 1)],
)
def test_cutmix_is_the_naive_loop(box, area):
    images, labels = batch()
    given = images.clone()
    mixed, targets = cutmix(images, labels, num_classes=NUM_CLASSES, box=box, shift=2)
    taken = 0
    for i, row, column in itertools.product(range(6), range(9), range(7)):
        inside = box.top <= row < box.bottom and box.left <= column < box.right
        taken += inside
        source = images[(i - 2) % 6] if inside else images[i]
        assert torch.equal(mixed[i, :, row, column], source[:, row, column])
    assert taken == 6 * area == 6 * box.area
    torch.testing.assert_close(targets, naive_targets(labels, 1 - area / 63, 2), **TOLERANCE)
    assert torch.equal(images, given)


@pytest.mark.parametrize(
    ("weight", "centre", "box"),
    [
        (0.75, (0.5, 0.5), Box(25, 75, 50, 150)),  # sqrt(1/4): half of each side, in the middle
        (0.75, (0.0, 0.0), Box(0, 25, 0, 50)),  # cut off at the corner
        (0.75, (0.99, 0.5), Box(74, 100, 50, 150)),
        (1.0, (0.3, 0.3), Box(30, 30, 60, 60)),  # nothing
        (0.0, (0.5, 0.5), Box(0, 100, 0, 200)),  # everything
    ],
)
def test_cutmix_box(weight, centre, box):
    assert cutmix_box(100, 200, weight=weight, centre=centre) == box


@pytest.mark.parametrize(
    "settings", [{"mixup_alpha": 0.2}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 1, "cutmix_alpha": 1}]
)
def test_batches_are_a_function_of_the_seed_and_rows_sum_to_one(settings):
    transform = build(**settings)
    assert transform.mixes
    images, labels = batch()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    seen = set()
    for seed in range(50):
        mixed, targets = transform(images, labels, seed)
        again, again_targets = transform(images, labels, seed)
        assert torch.equal(mixed, again)
        assert torch.equal(targets, again_targets)
        assert targets.shape == (6, NUM_CLASSES)
        assert targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(6), **TOLERANCE)
        seen.add(mixed.numpy().tobytes())
    assert len(seen) > 25
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_weights_follow_their_beta_distribution(alpha):
    images = torch.zeros(2, 1, 1, 1)
    images[0] = 1
    transform = build(mixup_alpha=alpha)
    weights = np.array([transform(images, torch.tensor([0, 1]), seed)[0][0].item() for seed in range(4000)])
    # Mean 1/2, variance 1 / (4 (2 alpha + 1)); five standard errors.
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(weights.mean() - 0.5) < 5 * np.sqrt(variance / 4000)
    assert abs(weights.var() - variance) < 0.05 * variance + 0.003


def kinds(transform, count=2000):
    """How many of `count` batches were left alone, mixed up, cut."""
    images = torch.zeros(2, 1, 8, 8)
    images[0] = 1
    labels = torch.tensor([0, 1])
    alone = mixed = cut = 0
    for seed in range(count):
        result, targets = transform(images, labels, seed)
        if targets.dtype == torch.int64:
            assert result is images
            alone += 1
        elif len(result[0].unique()) == 1 and 0 < result[0, 0, 0, 0] < 1:
            mixed += 1
        else:
            cut += 1
    return np.array([alone, mixed, cut])


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"mixup_alpha": 1.0}, (0, 1, 0)),
        ({"cutmix_alpha": 1.0}, (0, 0, 1)),
        ({"mixup_alpha": 1.0, "cutmix_alpha": 1.0}, (0, 0.5, 0.5)),
        ({"mixup_alpha": 1.0, "cutmix_alpha": 1.0, "mix_prob": 0.6, "cutmix_share": 0.25}, (0.4, 0.45, 0.15)),
        ({"mixup_alpha": 1.0, "mix_prob": 0.0}, (1, 0, 0)),
    ],
)
def test_batches_are_mixed_in_the_configured_shares(settings, shares):
    shares = np.array(shares)
    spread = 5 * np.sqrt(2000 * shares * (1 - shares))
    assert (abs(kinds(build(**settings)) - 2000 * shares) <= spread).all()


def test_partners_are_every_other_image_of_the_batch():
    images = torch.eye(4).reshape(4, 1, 2, 2)
    transform = build(mixup_alpha=1.0)
    partners = {
        int(transform(images, torch.zeros(4, dtype=torch.int64), seed)[0][0].flatten()[1:].argmax()) + 1
        for seed in range(200)
    }
    assert partners == {1, 2, 3}


def test_an_image_alone_in_its_batch_stays_as_it_is():
    images, labels = batch(size=1)
    result, targets = build(mixup_alpha=1.0, cutmix_alpha=1.0)(images, labels, 0)
    assert result is images
    assert targets is labels


def test_kornia_comes_before_mixing():
    transform = build_batch_transform(
        AugmentConfig(name="test", batch_transforms=[{"RandomInvert": {"p": 1.0}}], cutmix_alpha=1.0),
        num_classes=NUM_CLASSES,
        image_size=8,
    )
    images = torch.zeros(4, 3, 8, 8)
    mixed, targets = transform(images, torch.arange(4), 1)
    assert torch.equal(mixed, torch.ones(4, 3, 8, 8))
    assert targets.shape == (4, NUM_CLASSES)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}])
def test_mixing_never_waits_for_the_device(settings):
    images, labels = (tensor.cuda() for tensor in batch())
    transform = build(**settings)
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixed, targets = transform(images, labels, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected, expected_targets = transform(images.cpu(), labels.cpu(), 3)
    torch.testing.assert_close(mixed.cpu(), expected, **TOLERANCE)
    torch.testing.assert_close(targets.cpu(), expected_targets, **TOLERANCE)
