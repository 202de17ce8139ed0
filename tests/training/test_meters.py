"""tracking: windows, clocks and the monitor against closed forms."""

import math

import pytest
import torch

from cvtrain.training.meters import ThroughputMeter, TrainMetrics
from cvtrain.training.monitor import Monitor, monitor_mode

CPU = torch.device("cpu")


def test_window_weighs_micro_batches_by_their_images():
    window = TrainMetrics(CPU)
    window.add(torch.tensor(1.0), torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    window.add(torch.tensor(4.0), torch.tensor([[2.0, 1.0]]), torch.tensor([0]))
    assert window.read_window() == {"train/loss": 2.0, "train/accuracy": pytest.approx(2 / 3)}
    assert window.read_window() == {}
    window.add(torch.tensor(6.0), torch.tensor([[2.0, 1.0]]), torch.tensor([1]))
    assert window.read_window() == {"train/loss": 6.0, "train/accuracy": 0.0}
    assert window.read_epoch() == {"train/epoch_loss": 3.0, "train/epoch_accuracy": 0.5}
    assert window.read_epoch() == {}


def test_soft_targets_count_by_their_largest_share():
    window = TrainMetrics(CPU)
    window.add(torch.tensor(0.0), torch.tensor([[2.0, 1.0]]), torch.tensor([[0.7, 0.3]]))
    assert window.read_window()["train/accuracy"] == 1.0


def test_window_state_round_trip():
    window = TrainMetrics(CPU)
    window.add(torch.tensor(1.0), torch.tensor([[2.0, 1.0]]), torch.tensor([0]))
    other = TrainMetrics(CPU)
    other.load_state_dict(window.state_dict())
    assert other.read_window() == window.read_window()


def test_stopwatch():
    watch = ThroughputMeter()
    watch.add(wait_seconds=1.0, step_seconds=3.0, num_images=8)
    assert watch.read_window() == {"perf/images_per_second": 2.0, "perf/data_wait_share": 0.25}
    watch.add(wait_seconds=0.0, step_seconds=2.0, num_images=8)
    assert watch.read_window() == {"perf/images_per_second": 4.0, "perf/data_wait_share": 0.0}
    assert watch.totals() == {"perf/images_per_second": 16 / 6, "perf/data_wait_share": 1 / 6}
    assert watch.read_window() == {}


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_monitor(mode, sign):
    monitor = Monitor(name="val/x", mode=mode, min_delta=0.1)
    outcomes = [monitor.observe(sign * value, step) for step, value in enumerate([1.0, 1.05, 1.2, math.nan, 1.25])]
    assert outcomes == [True, False, True, False, False]
    assert (monitor.best, monitor.best_step, monitor.num_bad_evals) == (sign * 1.2, 2, 2)
    other = Monitor(name="val/x", mode=mode, min_delta=0.1)
    other.load_state_dict(monitor.state_dict())
    assert other.state_dict() == monitor.state_dict()


def test_evaluations_that_do_not_count_still_find_the_best():
    monitor = Monitor(name="val/x", mode="max")
    values = [0.5, 0.4, 0.3, 0.6, 0.5, 0.4]
    bad = []
    for epoch, value in enumerate(values, 1):
        monitor.observe(value, epoch, is_counted=epoch >= 5)
        bad.append(monitor.num_bad_evals)
    assert bad == [0, 0, 0, 0, 1, 2] and monitor.best_step == 4


def test_a_first_nan_is_not_the_best():
    monitor = Monitor(name="val/loss", mode="min")
    assert not monitor.observe(math.nan, 0)
    assert monitor.best is None
    assert monitor.observe(3.0, 1)


def test_monitor_mode():
    assert monitor_mode("val/loss", "auto") == "min"
    assert monitor_mode("val/calibration_error", "auto") == "min"
    assert monitor_mode("val/macro_f1", "auto") == "max"
    assert monitor_mode("val/loss", "max") == "max"
