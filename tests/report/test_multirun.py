"""The table of a --multirun."""

import json

import yaml

from cvtrain.report.multirun import describe_jobs


def test_jobs_by_number_with_their_own_settings_and_the_best(tmp_path):
    for number, value in ((0, 0.5), (2, 0.75), (10, None)):
        job = tmp_path / str(number)
        job.mkdir()
        (job / "overrides.yaml").write_text(yaml.safe_dump(["trainer.epochs=2", f"seed={number}"]))
        if value is not None:
            summary = {"monitor": "val/accuracy", "best": {"value": value}, "end_reason": "all epochs done"}
            (job / "summary.json").write_text(json.dumps(summary))
    assert describe_jobs(tmp_path) == [
        "job  metric        value   end              settings",
        "0    val/accuracy  0.5000  all epochs done  seed=0",
        "2    val/accuracy  0.7500  all epochs done  seed=2",
        "10                         failed           seed=10",
        f"best: job 2, val/accuracy 0.7500, in {tmp_path / '2'}",
    ]


def test_the_smallest_loss_is_best(tmp_path):
    for number, value in ((0, 0.5), (1, 0.75)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "summary.json").write_text(
            json.dumps({"monitor": "val/loss", "best": {"value": value}, "end_reason": "all epochs done"})
        )
    assert describe_jobs(tmp_path)[-1].startswith("best: job 0, val/loss 0.5000")


def test_nothing_has_run(tmp_path):
    assert describe_jobs(tmp_path / "none") == []
