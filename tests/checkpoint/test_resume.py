"""Resume: a run that is cut anywhere and goes on ends as one that was never touched, to the bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cvtrain.checkpoint import load_checkpoint
from cvtrain.commands.train import TrainResult, train
from cvtrain.config.errors import ConfigError
from cvtrain.loggers.files import read_metrics
from cvtrain.runtime.files import temporary_path
from cvtrain.training.nonfinite import NonFiniteLossError
from cvtrain.training.state import StopReason
from cvtrain.training.trainer import Trainer

# Everything that draws or remembers: augmentation, dropout, mixing, averaging, accumulation, momentum, a schedule.
RICH = (
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.epochs=3",
    "trainer.limit_train_batches=7",
    "trainer.grad_accum_steps=2",
    "trainer.ema_decay=0.9",
    "trainer.clip_grad_norm=1.0",
    "trainer.log_every_steps=3",
    "trainer.eval_every_steps=5",
    "model.hidden=[16]",
    "model.norm=batch",
    "augment.transforms=[{RandomRotation: {degrees: 10}}]",
    "augment.mixup_alpha=0.3",
    "plots=false",
    "checkpoint.every_steps=2",
)


class Killed(BaseException):
    """Stands for kill -9: nothing that handles errors may see it."""


@pytest.fixture
def run(compose_config, tmp_path, monkeypatch):
    """Train in a folder; with `kill_at` the process is gone when that step begins (or that evaluation)."""

    def run(
        folder: str, *overrides: str, kill_at: int | None = None, kill_evaluation: int | None = None
    ) -> TrainResult:
        with monkeypatch.context() as patch:
            if kill_at is not None:
                plain_step = Trainer.train_step

                def step(self, batch):
                    if self.step == kill_at:
                        raise Killed
                    return plain_step(self, batch)

                patch.setattr(Trainer, "train_step", step)
            if kill_evaluation is not None:
                plain_evaluate = Trainer.evaluate

                def evaluate(self):
                    if self.step == kill_evaluation:
                        raise Killed
                    return plain_evaluate(self)

                patch.setattr(Trainer, "evaluate", evaluate)
            return train(compose_config(*RICH, *overrides), run_dir=tmp_path / folder, overrides=list(overrides))

    return run


@pytest.fixture(scope="module")
def whole(compose_config, tmp_path_factory) -> Path:
    """The folder of a run that nobody touched."""
    folder = tmp_path_factory.mktemp("untouched") / "whole"
    train(compose_config(*RICH), run_dir=folder, overrides=[])
    return folder


def rows(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl without speeds, which no run repeats."""
    return [
        {name: value for name, value in row.items() if not name.startswith("perf/")}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same(one, other, where="state"):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_same(value, other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, value in enumerate(one):
            assert_same(value, other[index], f"{where}[{index}]")
    else:
        assert one == other, where


PARTS = ("model", "ema", "optimizer", "schedule", "scaler", "monitor", "window", "position", "metrics")


def assert_same_runs(one: Path, other: Path) -> None:
    for name in ("last.pt", "best.pt"):
        first, second = (load_checkpoint(folder / "checkpoints" / name) for folder in (one, other))
        for part in PARTS:
            assert_same(first[part], second[part], f"{name}: {part}")
    assert rows(one) == rows(other)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    for key in ("end_reason", "epochs", "steps", "best", "last", "images"):
        assert summaries[0][key] == summaries[1][key]
    assert (one / "predictions_val.csv").read_bytes() == (other / "predictions_val.csv").read_bytes()


@pytest.mark.parametrize(
    "kills",
    [
        [{"kill_at": 3}],
        [{"kill_at": 6}, {"kill_at": 7}, {"kill_at": 20}],
        [{"kill_evaluation": 5}],
        [{"kill_evaluation": 7}, {"kill_evaluation": 14}],
        [{"kill_evaluation": 21}],
        [{"kill_at": 11}, {"kill_evaluation": 15}],
    ],
)
def test_a_killed_run_goes_on_to_the_same_end(run, whole, tmp_path, kills):
    for kill in kills:
        with pytest.raises(Killed):
            run("cut", "resume=auto", **kill)
    assert run("cut", "resume=auto").end_reason is StopReason.epochs
    assert_same_runs(whole, tmp_path / "cut")


def test_the_number_of_workers_may_change_on_the_way(run, whole, tmp_path):
    for workers, step in ((0, 4), (2, 9), (1, 16)):
        with pytest.raises(Killed):
            run("cut", "resume=auto", f"data.num_workers={workers}", kill_at=step)
    run("cut", "resume=auto", "data.num_workers=0")
    assert_same_runs(whole, tmp_path / "cut")


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_over(run, tmp_path):
    run("whole", "trainer.log_every_steps=1", "checkpoint.every_steps=6")
    with pytest.raises(Killed):
        run("cut", "trainer.log_every_steps=1", "checkpoint.every_steps=6", "resume=auto", kill_at=4)
    assert len(rows(tmp_path / "cut")) == 4
    run("cut", "trainer.log_every_steps=1", "checkpoint.every_steps=6", "resume=auto")
    assert_same_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_run_that_was_killed_in_its_report_gives_the_same_report(run, tmp_path, monkeypatch):
    run("whole", "trainer.epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr("cvtrain.commands.train.write_report", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run("cut", "trainer.epochs=1")
    run("cut", "trainer.epochs=1", "resume=auto")
    assert_same_runs(tmp_path / "whole", tmp_path / "cut")


def test_what_a_killed_process_was_writing_is_removed(run, tmp_path):
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    host, process_id = temporary_path(tmp_path / "name").name.split(".")[3], int(process.stdout)
    left = [
        tmp_path / "run" / folder / f".{name}.abcd.{host}.{process_id}.00000000.tmp"
        for folder, name in (("", "metrics.csv"), ("plots", "curves.png"), ("checkpoints", "last.pt"))
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    run("run", "trainer.epochs=1")
    assert not any(path.exists() for path in left)


def test_a_longer_run_goes_on_where_the_shorter_one_ended(run, tmp_path, caplog):
    run("longer", "scheduler=constant", "trainer.epochs=2")
    with caplog.at_level("INFO"):
        result = run("longer", "scheduler=constant", "trainer.epochs=3", "resume=auto")
    assert result.end_reason is StopReason.epochs
    assert "the run now ends at step 21 instead of 14; the learning rate is 0.001 from here on" in caplog.text
    run("whole", "scheduler=constant", "trainer.epochs=3")
    one, other = (load_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("longer", "whole"))
    assert_same(one["model"], other["model"])  # a constant rate knows nothing of the end
    assert (tmp_path / "longer" / "history" / "step_00000014" / "config.yaml").exists()


def test_breaking_changes_are_refused_by_name(run):
    run("run", "trainer.epochs=1")
    with pytest.raises(ConfigError) as caught:
        run("run", "resume=auto", "model.hidden=[32]", "data.batch_size=64", "trainer.log_every_steps=4")
    message = str(caught.value)
    assert "model.hidden: [16] -> [32]" in message
    assert "data.batch_size: 32 -> 64" in message
    assert "log_every_steps" not in message


def test_other_changes_are_applied_and_listed(run, tmp_path, caplog):
    run("run", "trainer.epochs=1", "optimizer.lr=0.001", "scheduler=constant")
    with caplog.at_level("INFO"):
        run("run", "resume=auto", "trainer.epochs=2", "optimizer.lr=0.0005", "scheduler=constant", "data.num_workers=1")
    assert "changed: data.num_workers: auto -> 1" in caplog.text
    assert "from here on the run differs from an unchanged one: optimizer.lr: 0.001 -> 0.0005" in caplog.text
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert {group["lr"] for group in state["optimizer"]["param_groups"]} == {0.0005}


def test_a_finished_run_has_nothing_left_to_do(run, tmp_path):
    run("run", "trainer.epochs=1")
    before = rows(tmp_path / "run")
    assert run("run", "trainer.epochs=1", "resume=auto").end_reason is StopReason.epochs
    assert rows(tmp_path / "run") == before


def poison(monkeypatch, *, steps: set[int], above_rate: float = 0.0) -> None:
    """Make the loss of these steps NaN, as long as the learning rate is above a bound."""
    plain = Trainer.train_step

    def step(self, batch):
        forward = self.criterion.forward
        if self.step in steps and self.learning_rate(self.step) > above_rate:
            self.criterion.forward = lambda logits, targets: forward(logits, targets) * float("nan")
        try:
            return plain(self, batch)
        finally:
            self.criterion.forward = forward

    monkeypatch.setattr(Trainer, "train_step", step)


def test_rollback_goes_back_with_a_smaller_rate(run, tmp_path, monkeypatch, caplog):
    poison(monkeypatch, steps={9}, above_rate=0.0003)
    result = run("run", "trainer.on_nonfinite=rollback", "scheduler=constant")
    assert result.end_reason is StopReason.epochs
    assert caplog.text.count("back to the checkpoint of step 8") == 2  # 0.001 -> 0.0005 -> 0.00025
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert state["recovery"]["lr_scale"] == 0.25
    assert {group["lr"] for group in state["optimizer"]["param_groups"]} == {0.00025}
    steps = [row["step"] for row in rows(tmp_path / "run") if "train/loss" in row]
    assert steps == sorted(set(steps))  # rows after the restored step are dropped


def test_rollback_gives_up_in_the_end(run, monkeypatch):
    poison(monkeypatch, steps={9})
    with pytest.raises(NonFiniteLossError, match="step 9"):
        run("run", "trainer.on_nonfinite=rollback")


def test_out_of_memory_halves_the_micro_batch_and_is_remembered(run, tmp_path, monkeypatch, caplog):
    def narrow(self, images):
        if len(images) > 8:
            raise torch.OutOfMemoryError("pretended")
        return plain(self, images)

    from cvtrain.models.mlp import MLP

    plain = MLP.forward
    run("whole", "trainer.grad_accum_steps=4")
    monkeypatch.setattr(
        MLP, "forward", lambda self, images: narrow(self, images) if self.training else plain(self, images)
    )
    run("tight", "trainer.grad_accum_steps=1", "trainer.epochs=1")
    assert "a batch is split into 4 micro-batches of at most 8 images" in caplog.text
    assert caplog.text.count("out of memory") == 2  # 1 -> 2 -> 4, then never again
    caplog.clear()
    run("tight", "trainer.grad_accum_steps=1", "resume=auto")
    assert "out of memory" not in caplog.text
    assert load_checkpoint(tmp_path / "tight" / "checkpoints" / "last.pt")["recovery"]["grad_accum_steps"] == 4


def test_when_no_checkpoint_is_whole_each_is_named(run, tmp_path):
    run("run", "trainer.epochs=1")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"resume=auto: none of its checkpoints can be used") as caught:
        run("run", "resume=auto")
    assert "last.pt" in str(caught.value)
    assert "best.pt" in str(caught.value)
