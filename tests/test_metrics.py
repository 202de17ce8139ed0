import math
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from cvtrain.metrics import METRIC_NAMES, ClassificationMetrics, count_confusions


def random_batch(num_samples: int, num_classes: int, seed: int, *, true_from=None, pred_from=None):
    generator = np.random.default_rng(seed)
    labels = generator.choice(true_from or range(num_classes), num_samples)
    preds = generator.choice(pred_from or range(num_classes), num_samples)
    logits = generator.normal(size=(num_samples, num_classes)).astype(np.float32)
    # Right in about half of the cases, at all confidences.
    preds = np.where(generator.random(num_samples) < 0.5, labels, preds) if pred_from is None else preds
    logits[np.arange(num_samples), preds] = logits.max(axis=1) + generator.exponential(2.0, num_samples)
    losses = generator.exponential(size=num_samples).astype(np.float32)
    return torch.from_numpy(logits), torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(losses)


def measure(logits, labels, losses, batch_size: int = 7) -> ClassificationMetrics:
    result = ClassificationMetrics(logits.shape[1])
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        result.update(logits[part], labels[part], losses[part])
    return result


def naive_calibration_error(logits, labels) -> float:
    confidences, preds = logits.softmax(dim=1).double().max(dim=1)
    error = 0.0
    for m in range(15):
        inside = [i for i, confidence in enumerate(confidences.tolist()) if m / 15 < confidence <= (m + 1) / 15]
        if inside:
            accuracy = sum(int(preds[i] == labels[i]) for i in inside) / len(inside)
            confidence = sum(float(confidences[i]) for i in inside) / len(inside)
            error += len(inside) / len(labels) * abs(accuracy - confidence)
    return error


CASES = {
    "two classes": {"num_samples": 50, "num_classes": 2, "seed": 0},
    "ten classes": {"num_samples": 203, "num_classes": 10, "seed": 1},
    "a class never true": {"num_samples": 60, "num_classes": 7, "seed": 2, "true_from": [0, 1, 2, 4, 5, 6]},
    "a class never predicted": {"num_samples": 60, "num_classes": 7, "seed": 3, "pred_from": [0, 1, 2, 4]},
    "neither true nor predicted": {
        "num_samples": 40,
        "num_classes": 9,
        "seed": 4,
        "true_from": [1, 3],
        "pred_from": [3, 5],
    },
    "one class predicted": {"num_samples": 40, "num_classes": 4, "seed": 5, "pred_from": [2]},
    "always wrong": {"num_samples": 30, "num_classes": 8, "seed": 6, "true_from": [0, 1], "pred_from": [2, 3]},
    "one sample": {"num_samples": 1, "num_classes": 6, "seed": 7},
    "one class": {"num_samples": 5, "num_classes": 1, "seed": 8},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_against_scikit_learn(case):
    logits, labels, losses = random_batch(**case)
    num_classes = case["num_classes"]
    result = measure(logits, labels, losses)
    values = result.compute()
    y_true, y_pred = labels.numpy(), logits.argmax(dim=1).numpy()
    with warnings.catch_warnings():
        # scikit-learn says aloud what the degenerate cases are made of.
        warnings.simplefilter("ignore")
        assert values["accuracy"] == pytest.approx(sk.accuracy_score(y_true, y_pred), abs=1e-12)
        assert values["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y_true, y_pred), abs=1e-12)
        assert values["macro_f1"] == pytest.approx(sk.f1_score(y_true, y_pred, average="macro"), abs=1e-12)
        scores = sk.precision_recall_fscore_support(y_true, y_pred, labels=range(num_classes), zero_division=0)
        confusion = sk.confusion_matrix(y_true, y_pred, labels=range(num_classes))
    if num_classes > 5:
        top5 = sk.top_k_accuracy_score(y_true, logits.numpy(), k=5, labels=range(num_classes))
        assert values["top5_accuracy"] == pytest.approx(top5, abs=1e-12)
    assert values["loss"] == pytest.approx(losses.double().mean().item(), abs=1e-12)
    assert values["calibration_error"] == pytest.approx(naive_calibration_error(logits, labels), abs=1e-12)
    true, predicted, counts = count_confusions(y_true, y_pred)
    assert confusion[true, predicted].tolist() == counts.tolist()
    assert counts.sum() == confusion.sum()
    for row, precision, recall, f1, support in zip(result.per_class(), *scores, strict=True):
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision, recall, f1), abs=1e-12)
        assert row["support"] == support


def test_known_answers():
    # True 0, 0, 1; predicted 0, 1, 1 with confidence 3/4 each.
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)], [0.0, math.log(3)]])
    result = measure(logits, torch.tensor([0, 0, 1]), torch.tensor([1.0, 2.0, 6.0]))
    assert result.compute() == pytest.approx(
        {
            "loss": 3.0,
            "accuracy": 2 / 3,
            "macro_f1": 2 / 3,
            "balanced_accuracy": 3 / 4,
            "calibration_error": 3 / 4 - 2 / 3,
        },
        abs=1e-7,
    )
    assert result.per_class() == [
        {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1},
    ]


@pytest.mark.parametrize(("num_classes", "names"), [(5, 5), (6, 6)])
def test_names_and_top5_where_it_makes_sense(num_classes, names):
    values = measure(*random_batch(20, num_classes, 0)).compute()
    assert tuple(values) == tuple(name for name in METRIC_NAMES if num_classes > 5 or name != "top5_accuracy")
    assert len(values) == names
    assert all(type(value) is float for value in values.values())


def test_batching_changes_nothing_but_the_order_of_sums():
    batch = random_batch(101, 10, 3)
    whole = measure(*batch, batch_size=101).compute()
    for batch_size in (1, 8, 100):
        assert measure(*batch, batch_size=batch_size).compute() == pytest.approx(whole, abs=1e-14)


def test_processes_merge_by_adding_their_state():
    logits, labels, losses = random_batch(90, 8, 4)
    ranks = [measure(logits[rank::3], labels[rank::3], losses[rank::3]) for rank in range(3)]
    merged = ranks[0]
    for other in ranks[1:]:
        for mine, theirs in zip(merged.state(), other.state(), strict=True):
            mine.add_(theirs)
    assert merged.compute() == pytest.approx(measure(logits, labels, losses).compute(), abs=1e-14)


def test_confidences_on_the_edges_of_bins_fall_below_them():
    # Confidence 1 is in the last bin; all are right, so the error is 0.
    certain = torch.tensor([[200.0, 0.0], [0.0, 200.0]])
    assert measure(certain, torch.tensor([0, 1]), torch.zeros(2)).compute()["calibration_error"] == 0.0
    # Confidence 1/2 everywhere, half right.
    assert measure(torch.zeros(2, 2), torch.tensor([0, 1]), torch.zeros(2)).compute()["calibration_error"] == 0.0


def test_bfloat16_logits_count_as_their_float32_values():
    logits, labels, losses = random_batch(40, 8, 5)
    low = logits.bfloat16()
    assert measure(low, labels, losses).compute() == measure(low.float(), labels, losses).compute()


def test_nan_logits_show_in_loss_and_calibration_error():
    logits, labels, losses = random_batch(20, 8, 6)
    logits[3] = math.nan
    losses[3] = math.nan
    values = measure(logits, labels, losses).compute()
    assert math.isnan(values["loss"]) and math.isnan(values["calibration_error"])
    assert 0 <= values["accuracy"] <= 1
    assert sum(row["support"] for row in measure(logits, labels, losses).per_class()) == 20


def test_no_samples_give_nan():
    values = ClassificationMetrics(7).compute()
    assert tuple(values) == METRIC_NAMES
    assert all(math.isnan(value) for value in values.values())
    assert ClassificationMetrics(2).per_class() == [{"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}] * 2


def test_update_makes_no_host_wait(monkeypatch):
    batch = random_batch(9, 8, 7)
    result = ClassificationMetrics(8)

    def refuse(*args):
        raise AssertionError("update read from the device")

    for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    result.update(*batch)
    monkeypatch.undo()
    assert sum(row["support"] for row in result.per_class()) == 9
