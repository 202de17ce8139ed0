"""`reproduce`: a run repeated to the bit, and what is said of one that was changed, cut or damaged."""

import json
import shutil

import pytest
from restored_logging import logging_restored

from cvtrain.cli.main import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run on digits."""
    folder = tmp_path_factory.mktemp("run") / "first"
    words = ("trainer.max_steps=6", "trainer.log_every_steps=2", "plots=false", "data.test_fraction=0.1", "seed=3")
    with logging_restored():
        assert run([*words, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def command(finished, tmp_path, monkeypatch, capsys):
    """`command(*words)` repeats a copy of the run and returns exit code and output."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "first")

    def call(*words):
        try:
            code = run(["reproduce", *words])
        except SystemExit as request:
            code = request.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def test_a_run_is_repeated_to_the_bit(command, tmp_path):
    code, output = command("first", "run_dir=again")
    assert code == 0
    lines = output.splitlines()
    assert lines[-1] == "reproduced"
    assert "weights: 6 tensors, equal to the bit" in lines
    result = json.loads((tmp_path / "again" / "reproduction.json").read_text())
    assert (result["equal"], result["figures"]["last_step"], result["figures"]["num_different"]) == (True, 6, 0)
    names = {line.partition(":")[0] for line in (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()}
    assert result["figures"]["num_values"] > 10 and names
    assert (tmp_path / "again" / "reproduce.log").is_file()


def test_the_first_figure_that_differs_is_named(command, tmp_path):
    metrics = tmp_path / "first" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    row = next(row for row in rows if row["step"] == 4 and "train/loss" in row)
    row["train/loss"] += 0.5
    metrics.write_text("".join(json.dumps(each) + "\n" for each in rows))
    environment = json.loads((tmp_path / "first" / "environment.json").read_text())
    environment["versions"]["numpy"] = "1.0"
    (tmp_path / "first" / "environment.json").write_text(json.dumps(environment))
    code, output = command("first")
    assert code == 1
    assert "the first to differ, step 4 (epoch 1): train/loss was" in output
    assert "a difference of 0.5" in output
    assert "likely cause: other versions: numpy 1.0 ->" in output
    assert output.splitlines()[-1] == "not reproduced"


def test_a_run_that_was_cut_is_compared_up_to_its_last_step(command, tmp_path):
    metrics = tmp_path / "first" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if json.loads(line)["step"] < 6) + '{"step": 6, "epo')
    (tmp_path / "first" / "summary.json").unlink()
    code, output = command("first")
    assert code == 0
    assert "the run was not finished: figures are compared up to its last step, 4" in output


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: shutil.rmtree(run), "run=first: no such folder"),
        (lambda run: (run / "config.yaml").unlink(), "is no run that can be repeated: it has no config.yaml"),
        (lambda run: (run / "checkpoints" / "last.pt").unlink(), "it ended before its first checkpoint"),
        (lambda run: (run / "config.yaml").write_text("a: [b"), "config.yaml cannot be read"),
        (lambda run: (run / "config.yaml").write_text("- 1"), "config.yaml is damaged"),
        (lambda run: (run / "metrics.jsonl").write_text("x\ny\n"), "metrics.jsonl is damaged"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl is empty"),
        (lambda run: (run / "checkpoints" / "last.pt").write_bytes(b"x" * 999), "last.pt"),
    ],
)
def test_damaged_runs(command, tmp_path, damage, words):
    damage(tmp_path / "first")
    code, output = command("first")
    assert code == 2 and words in output
    assert not list(tmp_path.glob("runs/reproduce/*/*"))


def test_a_run_does_not_overwrite_itself(command):
    code, output = command("first", "run_dir=first")
    assert code == 2 and "run_dir=first: is the run itself" in output


def test_one_run_at_a_time(command):
    code, output = command("first", "second")
    assert code == 2 and "error: run=first second: one run at a time is repeated" in output
