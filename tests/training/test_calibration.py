"""The temperature: known answers, a naive search, and what a run, `evaluate` and `Classifier` make of it."""

import csv
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import cvtrain
from cvtrain.checkpoint import load_checkpoint
from cvtrain.training.calibration import calibration_error, fit_temperature, top_probs
from cvtrain.training.evaluator import Predictions


def predictions_of(logits, labels):
    classes = np.argsort(-logits, axis=1, kind="stable")
    probs = torch.from_numpy(logits).softmax(1).numpy()
    return Predictions(
        indices=np.arange(len(labels)),
        labels=labels,
        top_classes=classes,
        top_probs=np.take_along_axis(probs, classes, 1),
        losses=np.zeros(len(labels), np.float32),
        logits=logits,
    )


def drawn(scale, num_images=4000, num_classes=5):
    """Logits whose labels were drawn from softmax(logits / scale)."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (num_images, num_classes))
    probs = torch.from_numpy(logits).softmax(1).numpy()
    labels = np.array([generator.choice(num_classes, p=row) for row in probs])
    return predictions_of((logits * scale).astype(np.float32), labels)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_scale_of_too_sure_logits_is_found(scale):
    predictions = drawn(scale)
    temperature = fit_temperature(predictions)
    assert temperature == pytest.approx(scale, rel=0.05)
    assert calibration_error(predictions, temperature) < 0.02
    if scale != 1:
        assert calibration_error(predictions, 1.0) > 0.1


def test_it_is_the_minimum_of_the_cross_entropy_with_one_image_of_any_class():
    predictions = drawn(2.0, num_images=60, num_classes=3)
    logits, labels = torch.from_numpy(predictions.logits).double(), torch.from_numpy(predictions.labels)

    def loss(temperature):
        any_class = -(logits / temperature).log_softmax(1).mean()
        return (60 * F.cross_entropy(logits / temperature, labels) + any_class) / 61

    grid = np.geomspace(0.05, 20, 4001)
    best = grid[np.argmin([float(loss(temperature)) for temperature in grid])]
    assert fit_temperature(predictions) == pytest.approx(best, rel=0.002)


def test_predictions_that_are_all_right_stay_below_certainty():
    logits = np.full((50, 2), -1.0, np.float32)
    logits[:, 0] = 1
    predictions = predictions_of(logits, np.zeros(50, np.int64))
    probs = top_probs(predictions, fit_temperature(predictions), torch.device("cpu"))
    np.testing.assert_allclose(probs[:, 0], 1 - 0.5 / 51, rtol=1e-5)  # a rule of succession


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((0, 3), np.float32), np.zeros(0, np.int64)),
        (np.zeros((4, 0), np.float32), np.zeros(4, np.int64)),
        (np.zeros((4, 1), np.float32), np.zeros(4, np.int64)),
        (np.full((4, 3), np.nan, np.float32), np.zeros(4, np.int64)),
    ],
)
def test_without_logits_it_is_1(logits, labels):
    assert fit_temperature(predictions_of(logits, labels)) == 1.0


@pytest.mark.parametrize("logits", [np.zeros((4, 3)), np.eye(3)[[1, 2, 0, 1]] * 9])
def test_it_stays_in_its_range(logits):
    temperature = fit_temperature(predictions_of(logits.astype(np.float32), np.zeros(4, np.int64)))
    assert 0.05 <= temperature <= 20.0


def test_run_evaluate_and_classifier_give_the_same_probabilities(compose_config, tmp_path):
    from cvtrain.commands.evaluate import evaluate
    from cvtrain.commands.train import train
    from cvtrain.config.schema.root import EvaluateConfig

    run_dir = tmp_path / "run"
    config = compose_config("data=digits", "model=mlp", "model.hidden=[8]", "trainer.epochs=2", "plots=false")
    train(config, run_dir=run_dir)
    best = load_checkpoint(run_dir / "checkpoints" / "best.pt")
    assert 0.05 < best["temperature"] < 20 and best["temperature"] != 1.0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["calibration"]["temperature"] == best["temperature"]
    assert summary["calibration"]["error_after"] < summary["calibration"]["error_before"]
    evaluate(EvaluateConfig(checkpoint=str(run_dir / "checkpoints" / "best.pt")), run_dir=tmp_path / "again")
    table = (run_dir / "predictions_val.csv").read_bytes()
    assert (tmp_path / "again" / "predictions_val.csv").read_bytes() == table
    assert cvtrain.load(run_dir / "checkpoints" / "best.pt").temperature == best["temperature"]
    rows = list(csv.DictReader(table.decode().splitlines()))
    error = json.loads((tmp_path / "again" / "summary.json").read_text())["calibration"]["error_after"]
    assert error == pytest.approx(summary["calibration"]["error_after"]) and len(rows) == 359


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "1", None])
def test_a_temperature_that_is_none_is_refused(value, tmp_path):
    from cvtrain.checkpoint.errors import CheckpointError
    from cvtrain.commands.evaluate import read_temperature

    with pytest.raises(CheckpointError, match="damaged: its temperature is"):
        read_temperature({"temperature": value}, tmp_path / "best.pt")
