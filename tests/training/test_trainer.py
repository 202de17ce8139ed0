"""The loop: against a loop written out by hand, and each of its settings against what it promises."""

import json
import multiprocessing
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from cvtrain.checkpoint import load_checkpoint
from cvtrain.commands.train import train
from cvtrain.training.build import Run
from cvtrain.training.nonfinite import NonFiniteLossError
from cvtrain.training.state import StopReason

SMALL = (
    "model.hidden=[16]",
    "model.dropout=0",
    "data.batch_size=64",
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "plots=false",
)
PLAIN_SGD = (
    "optimizer=sgd",
    "optimizer.momentum=0",
    "optimizer.lr=0.1",
    "optimizer.kernel=single",
    "scheduler=constant",
)


@pytest.fixture
def make_run(assembled):
    return partial(assembled, *SMALL)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.trainer.model.state_dict().items()}


def assert_equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_equals_a_loop_written_by_hand_to_the_bit(make_run):
    run = make_run(*PLAIN_SGD, "trainer.epochs=2", "trainer.limit_train_batches=6", "data.num_workers=0")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), run.trainer.model.parameters(), strict=True):
            mine.copy_(theirs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    source = run.splits.train
    mean, std = torch.tensor(0.3053), torch.tensor(0.3764)
    for epoch in range(2):
        for key in run.loaders.train.plan.batches(epoch):
            pixels = torch.stack([torch.from_numpy(source.read(int(i))).permute(2, 0, 1) for i in key.indices])
            images = (pixels.float() / 255.0 - mean) / std
            loss = nn.functional.cross_entropy(model(images), torch.from_numpy(source.labels[key.indices]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    assert run.trainer.fit() is StopReason.epochs
    assert (run.trainer.step, run.trainer.state.epoch, run.trainer.state.batch) == (12, 2, 0)
    for mine, theirs in zip(model.parameters(), run.trainer.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_all_workers_start_before_the_first_step(make_run, monkeypatch):
    """A fork shares memory: what a step writes after it is copied, page by page."""
    run = make_run("data.num_workers=1", "trainer.epochs=2", "trainer.limit_train_batches=2")
    train_step, seen = run.trainer.train_step, []
    workers = lambda: {process.pid for process in multiprocessing.active_children()}  # noqa: E731
    monkeypatch.setattr(run.trainer, "train_step", lambda batch: [seen.append(workers()), train_step(batch)][1])
    before = workers()
    run.trainer.fit()
    assert len(seen) == 4 and len(seen[0] - before) == 2 and all(pids == seen[0] for pids in seen)
    run.loaders.close()


@pytest.mark.parametrize("overrides", [("model.dropout=0.5", "trainer.ema_decay=0.9"), ("augment.mixup_alpha=0.4",)])
def test_the_same_seed_gives_the_same_run_for_any_number_of_workers(make_run, overrides):
    results = []
    for workers in (0, 2):
        run = make_run(f"data.num_workers={workers}", "trainer.epochs=2", "trainer.limit_train_batches=4", *overrides)
        run.trainer.fit()
        results.append((weights(run), run.trainer.last_evaluation.metrics, run.trainer.ema.model.state_dict()))
    assert_equal_weights(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert_equal_weights(results[0][2], results[1][2])


def test_another_seed_gives_another_run(make_run):
    runs = [make_run(f"seed={seed}", "trainer.epochs=1", "trainer.limit_train_batches=2") for seed in (0, 1)]
    for run in runs:
        run.trainer.fit()
    first, second = (run.trainer.model.state_dict() for run in runs)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_micro_batches_add_up_to_the_batch(make_run):
    results = []
    for parts in (1, 4):
        run = make_run(
            *PLAIN_SGD, "trainer.epochs=1", "trainer.limit_train_batches=3", f"trainer.grad_accum_steps={parts}"
        )
        run.trainer.fit()
        results.append(weights(run))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-5, atol=1e-6)


def test_clipping_bounds_the_first_update(make_run):
    run = make_run(*PLAIN_SGD, "trainer.max_steps=1", "trainer.clip_grad_norm=0.01", "optimizer.lr=1.0")
    before = weights(run)
    run.trainer.fit()
    after = weights(run)
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-4)  # SGD at rate 1 moves by the clipped gradient


def test_limits_end_the_run_with_a_last_evaluation(make_run):
    run = make_run("trainer.epochs=5", "trainer.max_steps=30")
    assert run.trainer.fit() is StopReason.max_steps
    assert run.trainer.step == 30
    assert run.trainer.last_evaluation.step == 30
    position = load_checkpoint(run.run_dir / "checkpoints" / "last.pt")["position"]
    assert (position["step"], position["epoch"], position["batch"]) == (30, 1, 30 - 23)


def test_max_minutes(make_run):
    run = make_run("trainer.epochs=1000", "trainer.max_minutes=0.001", "model.hidden=[]")
    assert run.trainer.fit() is StopReason.max_minutes
    assert run.trainer.step < 23 * 20
    assert run.trainer.last_evaluation.step == run.trainer.step


def test_early_stopping_counts_evaluations_without_a_better_one(make_run):
    run = make_run(*PLAIN_SGD, "optimizer.lr=1e-12", "trainer.epochs=50", "trainer.early_stop_patience=3")
    assert run.trainer.fit() is StopReason.early_stop
    assert run.trainer.state.epoch == 4  # the first is the best, three more are not better


def test_evaluation_by_epochs_and_steps(make_run):
    run = make_run(
        "trainer.epochs=3", "trainer.limit_train_batches=5", "trainer.eval_every_epochs=2", "trainer.eval_every_steps=4"
    )
    run.trainer.fit()
    evaluated = [row["step"] for row in rows(run.run_dir) if "val/accuracy" in row]
    assert evaluated == [4, 8, 10, 12, 15]  # steps 4, 8, 12; the end of epoch 2; the end of the run


def test_logged_rows_have_steps_and_epochs_from_one(make_run):
    run = make_run("trainer.epochs=2", "trainer.limit_train_batches=5", "trainer.log_every_steps=2")
    run.trainer.fit()
    logged = [(row["step"], row["epoch"]) for row in rows(run.run_dir) if "train/loss" in row]
    assert logged == [(2, 1), (4, 1), (5, 1), (6, 2), (8, 2), (10, 2)]
    rates = [row["train/lr"] for row in rows(run.run_dir) if "train/lr" in row]
    assert rates == sorted(rates, reverse=True)


def test_best_follows_the_monitor_and_last_is_the_end(make_run):
    run = make_run("trainer.epochs=3", "trainer.monitor=val/loss")
    run.trainer.fit()
    best = load_checkpoint(run.run_dir / "checkpoints" / "best.pt")
    last = load_checkpoint(run.run_dir / "checkpoints" / "last.pt")
    losses = {row["step"]: row["val/loss"] for row in rows(run.run_dir) if "val/loss" in row}
    assert best["metrics"]["val/loss"] == min(losses.values()) == run.trainer.monitor.best
    assert (last["position"]["step"], last["position"]["epoch"], last["position"]["batch"]) == (69, 3, 0)
    assert_equal_weights(dict(last["model"]), weights(run))


def test_the_average_is_what_is_evaluated(make_run):
    run = make_run("trainer.epochs=1", "trainer.ema_decay=0.99")
    run.trainer.fit()
    images, labels = (
        run.splits.val.source.images if hasattr(run.splits.val, "source") else run.splits.val.images,
        run.splits.val.labels,
    )
    batch = run.trainer.normalizer(torch.from_numpy(images).permute(0, 3, 1, 2))
    with torch.no_grad():
        accuracy = float((run.trainer.ema.model(batch).argmax(1).numpy() == labels).mean())
    assert run.trainer.last_evaluation.metrics["accuracy"] == accuracy
    assert not torch.equal(next(run.trainer.ema.model.parameters()), next(run.trainer.model.parameters()))


def test_frozen_backbone_stands_still_until_the_epoch_it_is_freed(make_run):
    run = make_run(
        "model.freeze=backbone",
        "model.unfreeze_epoch=2",
        "model.norm=batch",
        "trainer.epochs=2",
        "trainer.limit_train_batches=3",
        "trainer.limit_val_batches=1",
    )
    before = weights(run)
    run.trainer.train_epoch()
    middle = weights(run)
    head = run.trainer.freeze.head[0]
    for name in before:
        moved = not torch.equal(before[name], middle[name])
        assert moved == name.startswith(head), name
    run.trainer.train_epoch()
    after = weights(run)
    assert all(not torch.equal(middle[name], after[name]) for name in before)


def poison(run: Run, step: int) -> None:
    """Make the loss of one step NaN."""
    criterion = run.trainer.criterion
    plain = criterion.forward
    criterion.forward = lambda logits, targets: (
        plain(logits, targets) * (float("nan") if run.trainer.step == step else 1.0)
    )


def test_a_nonfinite_loss_stops_the_run_and_names_the_files(make_run):
    run = make_run("trainer.epochs=1")
    poison(run, 3)
    with pytest.raises(NonFiniteLossError, match=r"step 3: the loss is not finite, at learning rate"):
        run.trainer.fit()
    text = (run.run_dir / "nonfinite_batches.txt").read_text()
    third = list(run.loaders.train.plan.batches(0))[3].indices
    assert text.startswith("step 3, epoch 1, learning rate")
    assert [line.strip() for line in text.splitlines()[1:]] == [run.splits.train.name(int(i)) for i in third]


def test_skip_leaves_the_weights_as_they_are_and_goes_on(make_run):
    run = make_run("trainer.epochs=1", "trainer.on_nonfinite=skip", "trainer.max_steps=4")
    poison(run, 3)
    seen = {}
    plain = run.trainer.train_step

    def watched(batch):
        before = weights(run)
        num_images = plain(batch)
        seen[run.trainer.step - 1] = all(torch.equal(before[name], value) for name, value in weights(run).items())
        return num_images

    run.trainer.train_step = watched
    assert run.trainer.fit() is StopReason.max_steps
    assert seen == {0: False, 1: False, 2: False, 3: True}
    assert run.trainer.state.num_skipped_steps == 1


def test_an_interrupt_saves_and_ends_with_130(compose_config, tmp_path, monkeypatch):
    from cvtrain.training.trainer import Trainer

    plain = Trainer.train_step

    def interrupted(self, batch):
        num_images = plain(self, batch)
        if self.step == 30:
            os.kill(os.getpid(), signal.SIGINT)
        return num_images

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    result = train(compose_config(*SMALL, "trainer.epochs=9"), run_dir=tmp_path)
    assert result.exit_code == 130
    assert result.end_reason is StopReason.interrupted
    position = load_checkpoint(tmp_path / "checkpoints" / "last.pt")["position"]
    assert (position["step"], position["epoch"], position["batch"]) == (30, 1, 7)
    assert json.loads((tmp_path / "summary.json").read_text())["end_reason"] == "interrupted"


def test_a_failed_save_is_a_warning(make_run, monkeypatch, caplog):
    import cvtrain.checkpoint.store

    def full_disk(path, snapshot, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cvtrain.checkpoint.store, "write_snapshot", full_disk)
    run = make_run("trainer.epochs=1", "trainer.limit_train_batches=2")
    assert run.trainer.fit() is StopReason.epochs
    assert "No space left on device" in caplog.text


def test_a_single_left_over_image_is_no_batch_for_batch_norm(make_run):
    run = make_run("model.norm=batch", "data.batch_size=479", "trainer.epochs=1")  # 1438 = 3 * 479 + 1
    run.trainer.fit()
    assert run.trainer.step == 3


def test_overfit_one_batch_learns_it(make_run):
    run = make_run("trainer.overfit_one_batch=true", "trainer.epochs=120", "optimizer.lr=0.01", "data.batch_size=16")
    run.trainer.fit()
    assert run.trainer.last_evaluation.metrics["accuracy"] == 1.0
    assert run.trainer.last_evaluation.num_images == 16
