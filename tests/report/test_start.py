"""What a run shows on the console: the lines at its start, and a row per epoch."""

import re

from cvtrain.report.start import describe_start

BASE = ("data=digits", "model.hidden=[4]", "optimizer.lr=0.01", "trainer.device=cpu", "plots=false", "seed=3")


def test_start_is_six_lines_with_tables_below(assembled):
    run = assembled(*BASE, "trainer.epochs=2", "data.num_workers=0", "trainer.precision=fp32")
    lines = describe_start(run)
    assert [line for line, _ in lines][:5] == [
        "data: digits: 1,438 train, 359 val images, 10 classes",
        "data: val is a stratified 0.2 of train (data.val_fraction, data.split_seed=0); "
        "there is no test split: val selects, and nothing else is scored",
        "model: mlp, 310 parameters, images 1x8x8",
        "recipe: scratch, adamw lr 0.01, cosine, 2 epochs of 45 steps, batch 32, augment none, "
        "mean [0.305] std [0.376]",
        "device: cpu, fp32, 0 data workers, seed 3",
    ]
    assert lines[5][0].startswith("run folder: ") and len(lines) == 6
    assert [details.split()[:1] for _, details in lines] == [["class"], [], ["layer"], ["parameter"], [], []]


def test_changed_stem_is_named(assembled):
    settings = ("model=resnet18", "model.pretrained=false", "trainer.device=cpu", "plots=false")
    small, usual = (
        describe_start(assembled("data=digits", *settings, f"model.stem={stem}"))[2][0] for stem in ("auto", "imagenet")
    )
    assert "stem 3x3 without pooling" in small and "stem" not in usual


def rows_of(messages: list[str]) -> list[list[str]]:
    return [message.split() for message in messages if re.match(r" +\d+/\d+ ", message)]


def test_one_row_per_epoch(assembled, caplog):
    run = assembled(*BASE, "trainer.epochs=3", "trainer.eval_every_epochs=2")
    with caplog.at_level("INFO", logger="cvtrain"):
        run.trainer.fit()
    first, second, third = rows_of(caplog.messages)
    assert [row[:2] for row in (first, second, third)] == [["1/3", "45"], ["2/3", "90"], ["3/3", "135"]]
    assert len(first) == len(second) - 3 == 8  # without val loss, val acc and the mark for best
    assert second[4:6] == [f"{value:.4f}" for value in history(run, 90)] and second[-1] == "best"
    assert third[6] == "2.49e-05" or float(third[6]) < 1e-3
    assert sum("train loss" in message for message in caplog.messages) == 1
    assert sum(message.startswith("time left: about ") for message in caplog.messages) == 1


def history(run, step: int) -> tuple[float, float]:
    """Return val loss and accuracy at `step`, from metrics.csv."""
    import csv

    with (run.run_dir / "metrics.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["step"] == str(step) and row["val/loss"]]
    return float(row["val/loss"]), float(row["val/accuracy"])


def test_evaluations_between_epochs_get_a_row(assembled, caplog):
    run = assembled(*BASE, "trainer.epochs=1", "trainer.eval_every_steps=30")
    with caplog.at_level("INFO", logger="cvtrain"):
        run.trainer.fit()
    assert [row[:2] for row in rows_of(caplog.messages)] == [["1/1", "30"], ["1/1", "45"]]
