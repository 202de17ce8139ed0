"""Progress of a run as text: a row per epoch, a line a minute."""

import logging

import pytest

from cvtrain.runtime import progress
from cvtrain.runtime.console import DisplayFormatter, log_with_details
from cvtrain.runtime.progress import EpochTable, LineProgress, format_duration

VALUES = {
    "train/epoch_loss": 1.25,
    "train/epoch_accuracy": 0.5,
    "val/loss": 1.0,
    "val/accuracy": 0.625,
    "train/lr": 0.001,
    "perf/images_per_second": 12345.6,
}


def test_rows_stand_under_one_header():
    table = EpochTable(10)
    header, first = table.lines(1, 45, VALUES, seconds=3, is_best=True)
    (second,) = table.lines(10, 450, {"train/epoch_loss": 1.0}, seconds=75)
    assert header.split("  ")[-1] == "time"
    assert first.split() == [
        *("1/10", "45", "1.2500", "0.5000", "1.0000", "0.6250", "1.00e-03", "12,346", "3", "s", "best")
    ]
    assert second.split() == ["10/10", "450", "1.0000", "1:15"]
    assert header.index("train loss") + len("train loss") == first.index("1.2500") + 6 == second.index("1.0000") + 6
    assert len(header) == first.index("3 s") + 3 == len(second)


@pytest.mark.parametrize(("seconds", "text"), [(48.2, "48 s"), (725, "12:05"), (12015, "3:20:15"), (59.9, "1:00")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_a_line_a_minute(monkeypatch, caplog):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bar = LineProgress()
    bar.start("epoch 1/3", 1000)
    bar.set_text("loss 1.0")
    with caplog.at_level(logging.INFO):
        for clock[0] in range(10, 130, 10):
            bar.advance(50)
    assert [record.getMessage() for record in caplog.records] == [
        "epoch 1/3: 300 of 1,000 images, 2:20 left  loss 1.0",
        "epoch 1/3: 600 of 1,000 images, 1:20 left  loss 1.0",
    ]


def test_details_go_to_the_file_only(caplog):
    with caplog.at_level(logging.INFO):
        log_with_details(logging.getLogger("cvtrain"), "model mlp", "layer\nhead")
    (record,) = caplog.records
    assert DisplayFormatter("%(message)s").format(record) == "model mlp"
    assert DisplayFormatter("%(message)s", with_details=True).format(record) == "model mlp\n  layer\n  head"
