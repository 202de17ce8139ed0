"""Where a run's time goes: the stages add up to it, and the first epoch is kept apart."""

import json
import time

import pytest
import torch

from cvtrain.commands.train import train
from cvtrain.training.timer import StageTimer


def test_marks_add_up_to_all_of_the_time():
    timer = StageTimer(torch.device("cpu"))
    timer.start()
    began = time.perf_counter()
    for name, seconds in (("wait", 0.02), ("forward_backward", 0.03), ("wait", 0.01)):
        time.sleep(seconds)
        timer.mark(name)
    elapsed = time.perf_counter() - began
    seconds = timer.read().loop
    assert seconds["wait"] >= 0.03
    assert seconds["forward_backward"] >= 0.03
    assert sum(seconds.values()) == pytest.approx(elapsed, abs=2e-3)


def test_the_first_epoch_is_left_out_where_there_are_more():
    timer = StageTimer(torch.device("cpu"))
    timer.start()
    for seconds in (0.05, 0.01, 0.01):
        time.sleep(seconds)
        timer.mark("forward_backward")
        timer.end_epoch()
    steady = timer.after_first_epoch()
    assert steady.num_epochs == 2
    assert 0.02 <= steady.total < 0.05
    assert timer.read().total >= 0.07


def test_a_run_says_where_its_time_went(compose_config, tmp_path):
    overrides = ("trainer.epochs=2", "trainer.limit_train_batches=4", "model.hidden=[16]", "plots=false")
    train(compose_config("trainer.device=cpu", *overrides), run_dir=tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    stages = summary["time"]["loop"]
    assert stages.keys() >= {"wait", "transfer", "prepare", "forward_backward", "optimizer", "evaluation", "checkpoint"}
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1)
    assert 0 < summary["time"]["loop_seconds"] <= summary["wall_seconds"]
    assert summary["time"]["data"]["collate"]["seconds"] > 0
    assert summary["time"]["bottleneck"] is None  # after 8 steps
