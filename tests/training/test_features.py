"""Training a head on kept features: to the bit what going through the frozen backbone in each step gives."""

import logging
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch

from cvtrain.checkpoint import load_checkpoint
from cvtrain.config.errors import ConfigError
from cvtrain.training import features as build
from cvtrain.training.build import Run, build_run
from cvtrain.training.features import FeatureLoader
from cvtrain.training.state import StopReason
from cvtrain.training.trainer import Trainer

FROZEN = (
    "model=custom",
    "model.target=feature_networks.Photographic",
    "model.head=classifier",
    "model.freeze=backbone",
    "data.batch_size=96",
    "data.eval_batch_size=50",
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "trainer.epochs=3",
    "augment=none",
    "plots=false",
    "data.num_workers=0",
)
VIEWS = ("augment=light", "augment.views=2")


@pytest.fixture
def make_run(assembled):
    return partial(assembled, *FROZEN)


def keeps_features(run: Run) -> bool:
    return isinstance(run.trainer.train_loader, FeatureLoader)


def assert_equal(one, other, where=""):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other, where)
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{place}]")
    else:
        assert one == other, where


def learnt(path) -> dict:
    """What a checkpoint says of the training: all but clocks, settings and names."""
    state = load_checkpoint(path)
    parts = ("model", "ema", "optimizer", "schedule", "monitor", "position", "metrics", "generators", "bad_images")
    return {part: state[part] for part in parts} | {"window": state["window"]}


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("trainer.ema_decay=0.9", "data.balance=class_weights", "trainer.clip_grad_norm=1", "optimizer=sgd"),
        ("model.target=feature_networks.MapHead", "trainer.channels_last=true", "trainer.grad_accum_steps=3"),
        ("trainer.precision=bf16",),
        VIEWS,
        ("trainer.overfit_one_batch=true",),
        ("trainer.eval_every_steps=4", "trainer.limit_val_batches=2", "trainer.max_steps=13"),
    ],
)
def test_features_equal_the_slow_way_to_the_bit(make_run, overrides):
    fast, slow = make_run(*overrides), make_run(*overrides, "model.cache_features=false")
    assert keeps_features(fast) and not keeps_features(slow)
    for run in (fast, slow):
        run.trainer.fit()
        run.trainer.store.wait()
    for name in ("last.pt", "best.pt"):
        assert_equal(*(learnt(run.run_dir / "checkpoints" / name) for run in (fast, slow)))
    assert_equal(*(vars(run.trainer.last_evaluation.predictions) for run in (fast, slow)))
    assert fast.trainer.step == slow.trainer.step > 0


def test_the_backbone_sees_each_image_once(make_run, monkeypatch):
    run = make_run("trainer.epochs=6")
    seen = []
    plain = build.compute_features
    monkeypatch.setattr(build, "compute_features", lambda *args: seen.append(len(args[2])) or plain(*args))
    run.trainer.fit()
    assert sum(seen) == 1438 + 359
    assert run.trainer.step == 6 * 15


def test_each_view_is_computed_once(make_run, monkeypatch):
    run = make_run(*VIEWS, "trainer.epochs=5")
    seen = []
    plain = build.compute_features
    monkeypatch.setattr(build, "compute_features", lambda *args: seen.append(len(args[2])) or plain(*args))
    first, second, third = (list(run.trainer.train_loader.epoch(epoch)) for epoch in range(3))
    assert sum(seen) == 2 * 1438
    rows = [
        {int(i): row for batch in epoch for i, row in zip(batch.indices, batch.images, strict=True)}
        for epoch in (first, second, third)
    ]
    assert all(torch.equal(rows[0][index], rows[2][index]) for index in rows[0])
    assert sum(torch.equal(rows[0][index], rows[1][index]) for index in rows[0]) < 200
    assert not torch.equal(first[0].indices, third[0].indices)  # the order is that of the epoch


@pytest.mark.parametrize(
    ("overrides", "kill_at"), [(("trainer.ema_decay=0.9",), 7), (("trainer.ema_decay=0.9",), 38), (VIEWS, 26)]
)
def test_a_run_that_goes_on_ends_as_one_that_was_left_alone(make_run, compose_config, monkeypatch, overrides, kill_at):
    settings = (*overrides, "checkpoint.every_steps=3")
    whole, cut = make_run(*settings), make_run(*settings)
    whole.trainer.fit()

    class Killed(BaseException):
        pass

    plain_step = Trainer.train_step

    def step(self, batch):
        if self.step == kill_at:
            raise Killed
        return plain_step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(Killed):
        cut.trainer.fit()
    monkeypatch.setattr(Trainer, "train_step", plain_step)
    state = load_checkpoint(cut.run_dir / "checkpoints" / "last.pt")
    assert 0 < state["position"]["step"] <= kill_at
    cut.logger.finish(1)
    again = build_run(compose_config(*FROZEN, *settings), cut.run_dir, state=state)
    again.trainer.fit()
    again.logger.finish(0)
    assert_equal(*(learnt(run.run_dir / "checkpoints" / "last.pt") for run in (whole, again)))


def test_a_stop_while_features_are_computed_again_ends_the_run(make_run):
    run = make_run()
    loader = run.trainer.train_loader
    loader.should_stop = lambda: True
    assert list(loader.epoch(1)) == []
    loader.should_stop = lambda: False
    assert sum(len(batch) for batch in loader.epoch(1)) == 1438


def test_checkpoints_hold_the_whole_network(cvtrain, tmp_path):
    answer = cvtrain(*FROZEN, "hydra.run.dir=run")
    assert answer.status == 0, answer.err
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    assert {name.partition(".")[0] for name in state["model"]} == {"body", "classifier"}
    scored = cvtrain(
        "evaluate",
        "checkpoint=run/checkpoints/best.pt",
        "model.target=feature_networks.Photographic",
        "hydra.run.dir=scored",
        "batch_size=50",
    )
    assert scored.status == 0, scored.err
    best = next(line for line in answer.out.splitlines() if line.startswith("best:"))
    (accuracy,) = [line.split()[1] for line in scored.out.splitlines() if line.startswith("val/accuracy")]
    assert f"accuracy {accuracy}" in best


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("augment=light",), "augment=light makes new images in each epoch"),
        (("model.unfreeze_epoch=2",), "the backbone trains from epoch 2 on"),
        (("augment.mixup_alpha=0.2",), "augment.mixup_alpha changes images anew in each step"),
        (("trainer.limit_train_batches=2",), "trainer.limit_train_batches takes other images in each epoch"),
        (("trainer.eval_flip=true",), "trainer.eval_flip=true evaluates mirror images too"),
        (("data.balance=oversample",), "data.balance=oversample samples other images"),
        (("model.target=feature_networks.GoesOn",), "the network goes on after its head, classifier"),
        (("model.cache_features=false",), "model.cache_features=false"),
    ],
)
def test_the_log_says_why_features_are_not_kept(make_run, caplog, overrides, words):
    caplog.set_level(logging.INFO)
    run = make_run(*overrides)
    assert not keeps_features(run)
    assert "features: not kept" in caplog.text and words in caplog.text


def test_a_network_that_trains_says_nothing_of_features(make_run, caplog):
    caplog.set_level(logging.INFO)
    assert not keeps_features(make_run("model.freeze=none"))
    assert "features" not in caplog.text


def test_features_that_must_be_kept_and_cannot_be_are_an_error(make_run, monkeypatch):
    with pytest.raises(ConfigError, match="cache_features=true: cannot be: the network goes on after its head"):
        make_run("model.cache_features=true", "model.target=feature_networks.GoesOn")
    monkeypatch.setattr(build, "free_memory", lambda: 2_000_000)
    # (1438 + 359) images of 16 x 4 x 4 float32 are 1,840,128 bytes
    with pytest.raises(ConfigError, match=r"would take 0\.00 GiB, and 0\.00 GiB of memory may be taken"):
        make_run("model.cache_features=true")
    assert not keeps_features(make_run())
    monkeypatch.setattr(build, "free_memory", lambda: 2 * 1_840_128)
    assert keeps_features(make_run())


def test_a_signal_in_the_first_epoch_leaves_a_run_that_goes_on(make_run, compose_config, monkeypatch):
    run = make_run()
    plain_step = Trainer.train_step

    def step(self, batch):
        num_images = plain_step(self, batch)
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return num_images

    monkeypatch.setattr(Trainer, "train_step", step)
    with run.trainer.stop_signals:
        assert run.trainer.fit() is StopReason.interrupted
    assert (run.trainer.step, run.trainer.state.batch) == (4, 4)
