"""metrics.jsonl and metrics.csv by their exact text, also after a kill."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cvtrain.loggers.files import FileLogger, read_metrics


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_exact_text_and_columns_that_appear_later(tmp_path: Path) -> None:
    logger = FileLogger(run_dir=tmp_path / "run")
    logger.log_metrics(20, 0, {"train/loss": 0.1, "train/accuracy": np.float32(0.5)})
    logger.log_metrics(40, 0, {"train/loss": torch.tensor(0.25), "train/accuracy": 1})
    logger.log_metrics(40, 0, {"val/accuracy": 1 / 3, "train/loss": 3.0})
    # On disk before finish.
    assert text(tmp_path / "run/metrics.jsonl") == (
        '{"step": 20, "epoch": 1, "train/loss": 0.1, "train/accuracy": 0.5}\n'
        '{"step": 40, "epoch": 1, "train/loss": 0.25, "train/accuracy": 1}\n'
        '{"step": 40, "epoch": 1, "val/accuracy": 0.3333333333333333, "train/loss": 3.0}\n'
    )
    assert text(tmp_path / "run/metrics.csv") == (
        "step,epoch,train/loss,train/accuracy,val/accuracy\n20,1,0.1,0.5,\n40,1,0.25,1,\n40,1,3.0,,0.3333333333333333\n"
    )
    logger.finish(0)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.csv", "metrics.jsonl"]


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    logger = FileLogger(run_dir=tmp_path)
    logger.log_metrics(1, 0, {"a": math.nan, "b": math.inf, "c": -math.inf})
    row = json.loads(text(tmp_path / "metrics.jsonl"), parse_constant=pytest.fail)
    assert row == {"step": 1, "epoch": 1, "a": None, "b": None, "c": None}
    assert text(tmp_path / "metrics.csv").splitlines()[1] == "1,1,nan,inf,-inf"
    logger.finish(0)


def test_names_that_csv_has_to_quote(tmp_path: Path) -> None:
    logger = FileLogger(run_dir=tmp_path)
    logger.log_metrics(1, 0, {'f1/"big, red"': 0.5})
    logger.log_metrics(2, 0, {"other": 0.25})
    logger.finish(0)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"step": "1", "epoch": "1", 'f1/"big, red"': "0.5", "other": ""},
            {"step": "2", "epoch": "1", 'f1/"big, red"': "", "other": "0.25"},
        ]


def test_a_value_that_is_no_number_writes_nothing(tmp_path: Path) -> None:
    logger = FileLogger(run_dir=tmp_path)
    with pytest.raises(ValueError, match="could not convert"):
        logger.log_metrics(1, 0, {"a": 1.0, "b": "high"})  # type: ignore[dict-item]
    logger.finish(0)
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_second_logger_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    first = FileLogger(run_dir=tmp_path)
    first.log_metrics(1, 0, {"a": 1.0})
    first.finish(0)
    second = FileLogger(run_dir=tmp_path)
    second.log_metrics(2, 1, {"b": 2.0})
    second.finish(0)
    assert text(tmp_path / "metrics.csv") == "step,epoch,a,b\n1,1,1.0,\n2,2,,2.0\n"
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize("torn", ['{"step": 2, "ep', "garbage", '{"step": 2, "epoch": 1, "a": 5.0}'])
def test_a_torn_last_line_is_passed_over_and_cut(tmp_path: Path, torn: str) -> None:
    logger = FileLogger(run_dir=tmp_path)
    logger.log_metrics(1, 0, {"a": 1.0})
    logger.finish(0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("2,1,5")
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    logger = FileLogger(run_dir=tmp_path)
    logger.log_metrics(3, 0, {"a": 2.0})
    logger.finish(0)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]
    assert text(tmp_path / "metrics.csv") == "step,epoch,a\n1,1,1.0\n3,1,2.0\n"


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\noops\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a JSON object"):
        read_metrics(path)


def test_rows_that_a_checkpoint_does_not_know_are_dropped(tmp_path: Path) -> None:
    logger = FileLogger(run_dir=tmp_path)
    for step in (10, 20, 30):
        logger.log_metrics(step, step // 20, {"a": float(step)})
        logger.log_metrics(step, step // 20, {"late": math.nan} if step == 10 else {"late": 1.0})
    assert logger.state() == {"num_rows": 6}
    logger.finish(1)
    again = FileLogger(run_dir=tmp_path, num_rows=4)
    again.log_metrics(25, 1, {"a": 25.0})
    assert again.state() == {"num_rows": 5}
    again.finish(0)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [10, 10, 20, 20, 25]
    assert text(tmp_path / "metrics.csv") == (
        "step,epoch,a,late\n10,1,10.0,\n10,1,,nan\n20,2,20.0,\n20,2,,1.0\n25,2,25.0,\n"
    )


def test_no_row_may_be_kept(tmp_path: Path) -> None:
    logger = FileLogger(run_dir=tmp_path)
    logger.log_metrics(10, 0, {"a": 1.0})
    logger.finish(0)
    FileLogger(run_dir=tmp_path, num_rows=0).finish(0)
    assert text(tmp_path / "metrics.jsonl") == ""
    assert text(tmp_path / "metrics.csv") == "step,epoch,a\n"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_loses_no_logged_point(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from cvtrain.loggers.files import FileLogger\n"
        "logger = FileLogger(run_dir=Path(sys.argv[1]))\n"
        "for step in range(500): logger.log_metrics(step, 0, {'a': 0.5})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(500))
    assert len(text(tmp_path / "metrics.csv").splitlines()) == 501
