import math
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cvtrain.config.schema.optim import LOSS_CONFIGS, BCEConfig, CrossEntropyConfig, FocalConfig, LossConfig
from cvtrain.data.augment.mixup import Box, cutmix, mixup
from cvtrain.data.balance import class_weights
from cvtrain.losses import BinaryCrossEntropy, CrossEntropy, Focal, build_criterion, loss_with_aux_heads

B, K = 17, 6
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(B, K, generator=GENERATOR) * 3
LABELS = torch.randint(K, (B,), generator=GENERATOR)
ONE_HOT = F.one_hot(LABELS, K).float()
SOFT = torch.rand(B, K, generator=GENERATOR).softmax(dim=1)
WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5, 1.5, 0.8])
CONFIGS = [CrossEntropyConfig(), FocalConfig(), BCEConfig()]
EVERY = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


def build(config: LossConfig, class_weights=None):
    return build_criterion(config, num_classes=K, class_weights=class_weights)


def naive_loss(config: LossConfig, targets: np.ndarray, weights: np.ndarray | None) -> float:
    """In float64, one sample and one class at a time."""
    w = np.ones(K) if weights is None else weights
    total, norm = 0.0, 0.0
    for logits, target in zip(LOGITS.double().numpy(), targets, strict=True):
        probs = np.exp(logits) / np.exp(logits).sum()
        sample_weight = sum(target[c] * w[c] for c in range(K))
        loss = 0.0
        for c in range(K):
            t = target[c] * (1 - config.label_smoothing) + config.label_smoothing / K
            if isinstance(config, BCEConfig):
                q = 1 / (1 + math.exp(-logits[c]))
                loss -= sample_weight * (t * math.log(q) + (1 - t) * math.log(1 - q)) / K
            else:
                gamma = config.gamma if isinstance(config, FocalConfig) else 0.0
                loss -= sample_weight * t * (1 - probs[c]) ** gamma * math.log(probs[c])
        total, norm = total + loss, norm + sample_weight
    return total / norm


def test_every_config_has_a_loss():
    built = {name: type(build(config_class())) for name, config_class in LOSS_CONFIGS.items()}
    assert built == {"cross_entropy": CrossEntropy, "focal": Focal, "bce": BinaryCrossEntropy}
    assert build(FocalConfig(gamma=1.5)).gamma == 1.5


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [LABELS, ONE_HOT, SOFT], ids=["ids", "one_hot", "soft"])
@pytest.mark.parametrize("config_class", [CrossEntropyConfig, FocalConfig, BCEConfig])
def test_losses_match_a_naive_loop(config_class, targets, smoothing, weights):
    config = config_class(label_smoothing=smoothing)
    expected = naive_loss(
        config,
        (ONE_HOT if targets is LABELS else targets).double().numpy(),
        None if weights is None else weights.double().numpy(),
    )
    loss = build(config, weights)(LOGITS, targets)
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=2e-6)


# With both, torch weighs the smoothed terms, which pulls every sample towards the rarest class.
@pytest.mark.parametrize(("smoothing", "weights"), [(0.0, None), (0.1, None), (0.0, WEIGHTS)])
def test_cross_entropy_of_ids_is_torchs(smoothing, weights):
    ours = build(CrossEntropyConfig(label_smoothing=smoothing), weights)(LOGITS, LABELS)
    torch.testing.assert_close(
        ours, F.cross_entropy(LOGITS, LABELS, weight=weights, label_smoothing=smoothing), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("config_class", [CrossEntropyConfig, FocalConfig, BCEConfig])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
@pytest.mark.parametrize("balance", ["none", "class_weights"])
def test_balance_smoothing_and_mixing_match_a_naive_loop(config_class, smoothing, mix, balance):
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.zeros(12, int), np.ones(6, int), np.full(2, 2)])
    images = torch.rand(len(labels), 3, 8, 8)
    logits = torch.from_numpy(rng.normal(size=(len(labels), 3))).float()
    counts = np.bincount(labels)
    w = len(labels) / (3 * counts) if balance == "class_weights" else np.ones(3)
    partner = np.roll(labels, 3)
    targets, share = torch.from_numpy(labels), 1.0
    if mix == "mixup":
        share = 0.3
        _, targets = mixup(images, targets, num_classes=3, weight=share, shift=3)
    elif mix == "cutmix":
        share = 1 - 4 * 6 / 64
        _, targets = cutmix(images, targets, num_classes=3, box=Box(top=0, bottom=4, left=1, right=7), shift=3)
    config = config_class(label_smoothing=smoothing)
    total = norm = 0.0
    for row, own, other in zip(logits.double().numpy(), labels, partner, strict=True):
        weight = share * w[own] + (1 - share) * w[other]
        target = np.full(3, smoothing / 3)
        target[own] += (1 - smoothing) * share
        target[other] += (1 - smoothing) * (1 - share)
        p, q = np.exp(row) / np.exp(row).sum(), 1 / (1 + np.exp(-row))
        if isinstance(config, BCEConfig):
            loss = -np.mean(target * np.log(q) + (1 - target) * np.log(1 - q))
        else:
            gamma = config.gamma if isinstance(config, FocalConfig) else 0.0
            loss = -np.sum(target * (1 - p) ** gamma * np.log(p))
        total, norm = total + weight * loss, norm + weight
    weights = torch.from_numpy(class_weights(counts)).float() if balance == "class_weights" else None
    criterion = build_criterion(config, num_classes=3, class_weights=weights)
    assert criterion(logits, targets).item() == pytest.approx(total / norm, rel=2e-6)
    assert float(criterion.total_weight(targets)) == pytest.approx(norm, rel=2e-6)


@pytest.mark.parametrize("config_class", [CrossEntropyConfig, FocalConfig, BCEConfig])
def test_smoothed_weighted_minimum_is_the_own_class(config_class):
    """100 cats, 100 dogs, 2 foxes, each with its own logits: smoothing must not make foxes of them."""
    labels = torch.tensor([0] * 100 + [1] * 100 + [2] * 2)
    weights = torch.from_numpy(class_weights(np.bincount(labels.numpy()))).float()
    criterion = build_criterion(config_class(label_smoothing=0.1), num_classes=3, class_weights=weights)
    logits = torch.zeros(3, 3, requires_grad=True)  # one row per class
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        criterion(logits[labels], labels).backward()
        optimizer.step()
    assert logits.argmax(dim=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_soft_targets_is_torchs(smoothing):
    ours = build(CrossEntropyConfig(label_smoothing=smoothing))(LOGITS, SOFT)
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, SOFT, label_smoothing=smoothing), rtol=1e-6, atol=0)


@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["ids", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_focal_with_gamma_0_is_cross_entropy(targets, smoothing, weights):
    focal = build(FocalConfig(gamma=0.0, label_smoothing=smoothing), weights)
    cross_entropy = build(CrossEntropyConfig(label_smoothing=smoothing), weights)
    torch.testing.assert_close(focal(LOGITS, targets), cross_entropy(LOGITS, targets), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        focal.per_sample(LOGITS, targets), cross_entropy.per_sample(LOGITS, targets), rtol=1e-5, atol=1e-6
    )


def test_focal_known_value():
    # p = 1/4 for four equal logits: (3/4)^2 log 4.
    loss = build_criterion(FocalConfig(gamma=2.0), num_classes=4)(torch.zeros(1, 4), torch.tensor([2]))
    assert loss.item() == pytest.approx(0.5625 * math.log(4), rel=1e-6)


def test_bce_known_value():
    # Every sigmoid is 1/2, whatever the target.
    for targets in (torch.tensor([2]), torch.full((1, 4), 0.25)):
        loss = build_criterion(BCEConfig(label_smoothing=0.3), num_classes=4)(torch.zeros(1, 4), targets)
        assert loss.item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_focal_gradient_is_finite_where_samples_are_certain(gamma, scale):
    logits = (ONE_HOT * scale).requires_grad_()
    targets = torch.cat([LABELS[:8], (LABELS[8:] + 1) % K])  # half right, half wrong
    loss = build(FocalConfig(gamma=gamma))(logits, targets)
    loss.backward()
    assert loss.item() == pytest.approx(scale * 9 / 17, rel=1e-5)
    assert torch.isfinite(logits.grad).all()
    torch.testing.assert_close(logits.grad[:8], torch.zeros(8, K), rtol=0, atol=1e-6)


@pytest.mark.parametrize("config_class", [CrossEntropyConfig, FocalConfig, BCEConfig])
def test_gradients_against_autograd_of_the_formula_in_float64(config_class):
    logits = LOGITS.clone().requires_grad_()
    build(config_class(label_smoothing=0.1), WEIGHTS)(logits, SOFT).backward()
    exact, weights, hard = LOGITS.double().requires_grad_(), WEIGHTS.double(), SOFT.double()
    soft = hard * 0.9 + 0.1 / K
    probs = exact.softmax(dim=1)
    losses = {
        CrossEntropyConfig: lambda: -(soft * probs.log()).sum(dim=1),
        FocalConfig: lambda: -(soft * (1 - probs) ** 2 * probs.log()).sum(dim=1),
        BCEConfig: lambda: -(soft * exact.sigmoid().log() + (1 - soft) * (1 - exact.sigmoid()).log()).mean(dim=1),
    }[config_class]()
    ((losses * (hard @ weights)).sum() / (hard @ weights).sum()).backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)


@EVERY
@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["ids", "soft"])
def test_per_sample_is_plain_and_averages_over_any_batching(config, targets):
    smoothed = type(config)(label_smoothing=0.2)
    losses = build(smoothed, WEIGHTS).per_sample(LOGITS, targets)
    assert losses.shape == (B,) and losses.dtype == torch.float32
    plain = build(config)
    assert losses.mean().item() == pytest.approx(plain(LOGITS, targets).item(), rel=1e-6)
    parts = [plain.per_sample(LOGITS[a:b], targets[a:b]) for a, b in ((0, 1), (1, 9), (9, B))]
    torch.testing.assert_close(torch.cat(parts), losses, rtol=1e-6, atol=1e-7)


@EVERY
def test_bfloat16_logits_are_computed_in_float32(config):
    low = LOGITS.bfloat16()
    criterion = build(config)
    assert torch.equal(criterion(low, LABELS), criterion(low.float(), LABELS))
    assert torch.equal(criterion.per_sample(low, LABELS), criterion.per_sample(low.float(), LABELS))


@EVERY
def test_equal_weights_change_nothing(config):
    torch.testing.assert_close(build(config, torch.full((K,), 2.0))(LOGITS, SOFT), build(config)(LOGITS, SOFT))


def test_class_weights_move_with_the_module_and_stay_out_of_its_state():
    criterion = build(CrossEntropyConfig(), WEIGHTS)
    assert criterion.to("meta").class_weights.device.type == "meta"
    assert criterion.state_dict() == {}


def test_wrong_shapes_say_what_is_wanted():
    with pytest.raises(ValueError, match=r"logits have shape \(17, 6\); they have to be \(batch, 5\)"):
        build_criterion(CrossEntropyConfig(), num_classes=5)(LOGITS, LABELS)
    with pytest.raises(ValueError, match=r"class_weights has shape \(6,\); it has to be \(5,\)"):
        build_criterion(CrossEntropyConfig(), num_classes=5, class_weights=WEIGHTS)


GoogLeNetOutputs = namedtuple("GoogLeNetOutputs", ["logits", "aux_logits2", "aux_logits1"])


def test_model_loss_adds_the_auxiliary_heads():
    criterion = build(CrossEntropyConfig())
    main, one, two = (criterion(LOGITS * scale, LABELS).item() for scale in (1.0, 0.5, 0.1))
    outputs = GoogLeNetOutputs(LOGITS, LOGITS * 0.5, LOGITS * 0.1)
    loss, logits = loss_with_aux_heads(criterion, outputs, LABELS, 0.3)
    assert loss.item() == pytest.approx(main + 0.3 * (one + two), rel=1e-6)
    assert logits is LOGITS


def test_model_loss_without_auxiliary_outputs():
    criterion = build(CrossEntropyConfig())
    for outputs in (LOGITS, GoogLeNetOutputs(LOGITS, None, None)):
        loss, logits = loss_with_aux_heads(criterion, outputs, LABELS, 0.3)
        assert torch.equal(loss, criterion(LOGITS, LABELS))
        assert logits is LOGITS


@pytest.mark.parametrize("outputs", [{"logits": LOGITS}, (LOGITS, LOGITS)], ids=["dict", "tuple"])
def test_model_loss_names_an_output_it_cannot_read(outputs):
    with pytest.raises(ValueError, match=rf"the model's output is a {type(outputs).__name__}; it has to be a tensor"):
        loss_with_aux_heads(build(CrossEntropyConfig()), outputs, LABELS, 0.3)
