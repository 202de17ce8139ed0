"""A new head on loaded weights starts at the logistic regression on the backbone's features."""

import logging
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from cvtrain.checkpoint import load_checkpoint
from cvtrain.commands.train import train
from cvtrain.config.errors import ConfigError

HEAD = (
    "model=custom",
    "model.target=feature_networks.LinearHead",
    "model.head=classifier",
    "data.batch_size=96",
    "data.eval_batch_size=50",
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "augment=none",
    "plots=false",
    "data.num_workers=0",
)


@pytest.fixture
def weights(tmp_path):
    """A state dict for another number of classes."""
    from feature_networks import LinearHead, save_weights

    return save_weights(LinearHead, tmp_path)


def features_of(run, loader):
    """By a plain loop: features in evaluation mode, and labels."""
    model = run.trainer.model.eval()
    batches = list(loader.epoch(0))
    with torch.no_grad():
        features = torch.cat([model.body(run.normalizer(batch.images)) for batch in batches])
    return features, torch.cat([batch.labels for batch in batches])


def test_the_head_is_scikit_learns_regression_on_the_features(assembled, weights, caplog):
    with caplog.at_level(logging.INFO):
        run = assembled(*HEAD, weights)
    features, labels = features_of(run, run.loaders.train)
    l2 = float(caplog.text.split("images, L2 ")[1].split()[0])
    scale = features.square().mean().sqrt().item()
    oracle = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-9, max_iter=5000).fit(
        features.double() / scale, labels
    )
    head = run.trainer.model.classifier
    weight, bias = head.weight.detach().double() * scale, head.bias.detach().double()
    found, best = (
        float(F.cross_entropy(features.double() / scale @ w.T + b, labels) + l2 / 2 * w.square().sum())
        for w, b in ((weight, bias), (torch.from_numpy(oracle.coef_), torch.from_numpy(oracle.intercept_)))
    )
    assert found == pytest.approx(best, rel=0.01)
    assert "on the features of 1,438 images" in caplog.text


def test_zero_head_gives_every_class_the_same_chance(assembled, weights):
    run = assembled(*HEAD, weights, "model.head_init=zero")
    features, labels = features_of(run, run.loaders.val)
    loss = F.cross_entropy(run.trainer.model.classifier(features), labels)
    assert loss.item() == pytest.approx(math.log(10), rel=1e-6)


def test_frozen_backbone_without_epochs_is_scored_and_kept(compose_config, weights, tmp_path):
    config = compose_config(*HEAD, weights, "model.freeze=backbone", "trainer.eval_flip=false")
    result = train(config, run_dir=tmp_path / "run")
    assert result.best_checkpoint is not None
    assert result.metrics["val/accuracy"] > 0.8
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["0", "0"]]


def test_where_all_trains_the_regression_is_evaluated_and_training_starts_at_zero(
    compose_config, weights, tmp_path, caplog
):
    overrides = (*HEAD, weights, "trainer.epochs=1")
    with caplog.at_level(logging.INFO):
        result = train(compose_config(*overrides, "optimizer.lr=1e-9"), run_dir=tmp_path / "run")
    start = train(compose_config(*HEAD, weights, "model.freeze=backbone"), run_dir=tmp_path / "start")
    assert result.monitor == start.monitor  # a step that is too small to learn from leaves the regression the best
    assert "head: is evaluated at the logistic regression on the features of 1,438 images" in caplog.text
    last = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert last["model"]["classifier.weight"].abs().max() < 1e-6


def test_a_run_that_is_cut_before_its_first_step_starts_at_zero_too(compose_config, weights, tmp_path, monkeypatch):
    from cvtrain.training.trainer import Trainer

    overrides = (*HEAD, weights, "trainer.epochs=1")
    whole = train(compose_config(*overrides), run_dir=tmp_path / "whole")

    def cut(trainer):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_epoch", cut)
        train(compose_config(*overrides), run_dir=tmp_path / "cut")
    assert load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.pt")["position"]["step"] == 0
    resumed = train(compose_config(*overrides, f"resume={tmp_path / 'cut'}"), run_dir=tmp_path / "cut")
    assert resumed.metrics == whole.metrics
    states = [load_checkpoint(tmp_path / name / "checkpoints" / "last.pt")["model"] for name in ("whole", "cut")]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_training_goes_on_from_the_start_and_never_ends_below_it(compose_config, weights, tmp_path):
    config = compose_config(*HEAD, weights, "optimizer.lr=0.5", "trainer.epochs=2", "model.head_init=logreg")
    result = train(config, run_dir=tmp_path / "run")
    start = train(compose_config(*HEAD, weights, "model.freeze=backbone"), run_dir=tmp_path / "start")
    assert result.monitor >= start.monitor


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["loss=bce"], "loss=bce scores each class by itself"),
        (["model.target=feature_networks.Photographic"], "the head is no linear layer"),
    ],
)
def test_heads_that_no_regression_can_set_start_at_zero(assembled, tmp_path, overrides, reason, caplog):
    import feature_networks

    network = feature_networks.Photographic if "Photographic" in overrides[0] else feature_networks.LinearHead
    torch.save(network(7, 1).state_dict(), tmp_path / "weights.pt")
    with caplog.at_level(logging.INFO):
        run = assembled(*HEAD, f"model.weights={tmp_path}/weights.pt", *overrides)
    assert f"head: starts at zero logits, since {reason}" in caplog.text
    labels = torch.zeros(2, dtype=torch.int64)
    loss = F.cross_entropy(run.trainer.model.eval()(torch.rand(2, 1, 8, 8)), labels)
    assert loss.item() == pytest.approx(math.log(10), rel=0.02)
    with pytest.raises(ConfigError, match=f"model.head_init=logreg: cannot be: {reason}"):
        assembled(*HEAD, f"model.weights={tmp_path}/weights.pt", *overrides, "model.head_init=logreg")


def test_no_epochs_and_nothing_that_sets_the_head_is_refused(assembled, weights):
    with pytest.raises(ConfigError, match=r"trainer\.epochs=0: nothing would set the head: model\.head_init=zero"):
        assembled(*HEAD, weights, "model.head_init=zero", "trainer.epochs=0", "trainer.eval_at_start=true")


@pytest.mark.parametrize(("overrides", "warns"), [([], True), (["optimizer=adamw"], False)])
def test_muon_on_pretrained_weights_warns(assembled, weights, overrides, warns, caplog):
    assembled(*HEAD, weights, "optimizer=muon", *overrides)
    assert ("optimizer=muon on pretrained weights" in caplog.text) is warns


def test_random_weights_start_as_the_architecture_says(assembled):
    torch.manual_seed(0)
    run = assembled(*HEAD)
    assert np.abs(run.trainer.model.classifier.weight.detach().numpy()).max() > 0.05
