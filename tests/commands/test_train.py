"""Whole runs: what train and evaluate leave behind, on folders of images that the test makes."""

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cvtrain.checkpoint import load_checkpoint, save_checkpoint
from cvtrain.commands.evaluate import evaluate
from cvtrain.commands.train import TrainResult, train
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import OnBadImage
from cvtrain.config.schema.root import EvaluateConfig, EvaluateDataConfig, SavedModelConfig, Split
from cvtrain.data.images.errors import BadImageError
from cvtrain.models.weights import WeightsError
from cvtrain.report import evaluation as evaluation_files
from cvtrain.report import run_report as outcome
from cvtrain.training.build import build_run

SMALL = (
    "model=mlp",
    "model.hidden=[8]",
    "augment=none",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.epochs=2",
    "data.image_size=8",
    "data.batch_size=8",
    "data.num_workers=0",
    "plots=false",
)
COLORS = {"blue": (30, 40, 200), "red": (200, 40, 30), "zebra": (120, 120, 120)}


def write_images(folder: Path, color: tuple[int, int, int], count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        pixels = np.clip(rng.normal(color, 25, (12, 14, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")


@pytest.fixture
def photos(tmp_path) -> Path:
    """train/ val/ test/ with folders of two classes."""
    root = tmp_path / "photos"
    for split, count in (("train", 15), ("val", 6), ("test", 5)):
        for number, name in enumerate(("blue", "red")):
            write_images(root / split / name, COLORS[name], count, seed=number)
    return root


@pytest.fixture
def run(compose_config, tmp_path) -> Callable[..., TrainResult]:
    def run(*overrides: str, folder: str = "run") -> TrainResult:
        return train(compose_config(*overrides), run_dir=tmp_path / folder, overrides=list(overrides))

    return run


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_on_a_folder_leaves_what_the_docs_say(run, photos, tmp_path):
    result = run("data=custom", f"data.root={photos}", *SMALL, "plots=true")
    folder = tmp_path / "run"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} >= {
        "config.yaml",
        "overrides.yaml",
        "environment.json",
        "metrics.jsonl",
        "metrics.csv",
        "summary.json",
        "checkpoints/last.pt",
        "checkpoints/best.pt",
        "plots/curves.png",
        "plots/train_samples.png",
        "plots/confusion_val.png",
        "plots/confusion_test.png",
        "predictions_val.csv",
        "predictions_test.csv",
        "per_class_val.csv",
        "per_class_test.csv",
        "report.html",
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["images"] == {"train": 30, "val": 12, "test": 10}
    assert summary["steps"] == 8
    assert summary["classes"] == ["blue", "red"]
    assert result.metrics["test/accuracy"] == 1.0  # colours this far apart are easy
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["hidden"] == [8]
    assert f"data.root={photos}" in yaml.safe_load((folder / "overrides.yaml").read_text())
    predictions = table(folder / "predictions_val.csv")
    assert [row["path"] for row in predictions][:2] == ["val/blue/000.png", "val/blue/001.png"]
    assert len(predictions) == 12
    shares = [float(row["prob_blue"]) + float(row["prob_red"]) for row in predictions]
    assert shares == pytest.approx([1.0] * 12, abs=1e-5)
    assert [row["class"] for row in table(folder / "per_class_test.csv")] == ["blue", "red"]


def test_pictures_are_drawn_one_after_another(run, photos, monkeypatch):
    """Two threads that import matplotlib at once each find half of it: the end of a short run was an ImportError."""
    drawn = []

    def slow(name: str, seconds: float) -> Callable[..., None]:
        def draw(*arguments: object, **options: object) -> None:
            time.sleep(seconds)
            drawn.append(name)

        return draw

    monkeypatch.setattr(outcome, "plot_images", slow("samples", 0.2))
    monkeypatch.setattr(evaluation_files, "plot_confusion", slow("confusion", 0))
    monkeypatch.setattr(outcome, "plot_curves", slow("curves", 0))
    run("data=custom", f"data.root={photos}", *SMALL, "plots=true", "trainer.max_steps=1")
    assert drawn[0] == "samples" and "curves" in drawn


def test_the_checkpoint_describes_itself(run, photos, tmp_path):
    run("data=custom", f"data.root={photos}", *SMALL)
    state = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)
    assert state["classes"] == ["blue", "red"]
    assert state["preprocessing"] == {
        "image_size": 8,
        "channels": 3,
        "resize": "resize_crop",
        "crop_fraction": 0.875,
        "interpolation": "bilinear",
        "mean": pytest.approx([0.485, 0.456, 0.406]),
        "std": pytest.approx([0.229, 0.224, 0.225]),
    }
    assert state["config"]["data"]["root"] == str(photos)
    assert state["schemas"]["data"] == "custom"
    assert set(state["versions"]) == {"cvtrain", "torch"}


def test_evaluate_gives_the_figures_of_the_run_itself(run, photos, tmp_path):
    result = run("data=custom", f"data.root={photos}", *SMALL, "trainer.ema_decay=0.8", "loss.label_smoothing=0.1")
    checkpoint = str(tmp_path / "run" / "checkpoints" / "best.pt")
    for split in (Split.val, Split.test):
        scored = evaluate(EvaluateConfig(checkpoint=checkpoint, split=split), run_dir=tmp_path / split.value)
        expected = {name: value for name, value in result.metrics.items() if name.startswith(split.value)}
        assert scored.metrics == expected  # equal, not close
        mine, theirs = (
            folder / f"predictions_{split.value}.csv" for folder in (tmp_path / split.value, tmp_path / "run")
        )
        assert mine.read_bytes() == theirs.read_bytes()


def test_evaluate_on_another_folder(run, photos, tmp_path):
    run("data=custom", f"data.root={photos}", *SMALL)
    checkpoint = str(tmp_path / "run" / "checkpoints" / "best.pt")
    other = tmp_path / "other"
    write_images(other / "red", COLORS["red"], 4, seed=7)
    write_images(other / "blue", COLORS["blue"], 3, seed=8)
    config = EvaluateConfig(checkpoint=checkpoint, split=Split.all, data=EvaluateDataConfig(root=str(other)))
    scored = evaluate(config, run_dir=tmp_path / "scored")
    assert scored.evaluation.num_images == 7
    assert scored.metrics["all/accuracy"] == 1.0
    write_images(other / "zebra", COLORS["zebra"], 4, seed=9)
    with pytest.raises(ConfigError, match="zebra"):
        evaluate(config, run_dir=tmp_path / "refused")


def test_evaluate_says_what_splits_there_are(run, tmp_path):
    run(*SMALL, "trainer.epochs=1")
    checkpoint = str(tmp_path / "run" / "checkpoints" / "last.pt")
    with pytest.raises(ConfigError, match=r"split=test: the data has no such split\n  it has train, val"):
        evaluate(EvaluateConfig(checkpoint=checkpoint, split=Split.test), run_dir=tmp_path / "e")
    with pytest.raises(ConfigError, match=r"data\.root=x: the checkpoint was trained with data=digits"):
        evaluate(EvaluateConfig(checkpoint=checkpoint, data=EvaluateDataConfig(root="x")), run_dir=tmp_path / "e")


NETS = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.features = nn.Linear(64, width)
        self.out = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.out(self.features(images.flatten(1)).relu())
"""


def test_a_checkpoint_never_names_code_to_run(run, tmp_path, monkeypatch):
    (tmp_path / "my_nets_of_test_runs.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    target = "my_nets_of_test_runs.Tiny"
    result = run(
        "model=custom", f"model.target={target}", "model.kwargs.width=6", "trainer.epochs=1", "trainer.precision=fp32"
    )
    checkpoint = str(tmp_path / "run" / "checkpoints" / "best.pt")
    with pytest.raises(ConfigError, match=rf"never names code to run\n  if you trust it, set model\.target={target}"):
        evaluate(EvaluateConfig(checkpoint=checkpoint), run_dir=tmp_path / "refused")
    config = EvaluateConfig(checkpoint=checkpoint, model=SavedModelConfig(target=target))
    assert evaluate(config, run_dir=tmp_path / "scored").metrics == result.metrics


def test_a_checkpoint_that_claims_a_huge_network_is_refused_before_memory_is_taken(run, tmp_path):
    run(*SMALL, "trainer.epochs=1", "trainer.limit_train_batches=1")
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    state = load_checkpoint(path)
    state["config"]["model"]["hidden"] = [10**6, 10**6]  # 4 TB of weights
    save_checkpoint(path, state)
    with pytest.raises(WeightsError, match="do not fit MLP"):
        evaluate(EvaluateConfig(checkpoint=str(path)), run_dir=tmp_path / "e")


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def test_bad_images_are_skipped_listed_and_counted(run, photos, tmp_path, caplog):
    damage(photos / "train" / "red" / "003.png")
    damage(photos / "val" / "blue" / "002.png")
    run("data=custom", f"data.root={photos}", *SMALL, "data.on_bad_image=skip")
    skipped = table(tmp_path / "run" / "skipped_images.csv")
    assert [(row["split"], row["path"]) for row in skipped] == [
        ("train", "train/red/003.png"),
        ("val", "val/blue/002.png"),
    ]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["skipped_images"] == 2
    assert len(table(tmp_path / "run" / "predictions_val.csv")) == 11
    assert "2 images could not be read and were skipped" in caplog.text
    config = EvaluateConfig(checkpoint=str(tmp_path / "run" / "checkpoints" / "best.pt"))
    assert evaluate(config, run_dir=tmp_path / "e").evaluation.num_images == 11
    assert "1 images could not be read and are not in these figures" in caplog.text
    config.data = EvaluateDataConfig(on_bad_image=OnBadImage.error)
    with pytest.raises(BadImageError, match=r"val/blue/002\.png"):
        evaluate(config, run_dir=tmp_path / "e2")


def test_a_run_that_goes_on_still_lists_what_was_skipped_before(run, photos, tmp_path):
    bad = photos / "train" / "red" / "003.png"
    good = bad.read_bytes()
    damage(bad)
    command = ("data=custom", f"data.root={photos}", *SMALL, "data.on_bad_image=skip", "data.cache=none")
    run(*command, "trainer.epochs=1")
    bad.write_bytes(good)
    run(*command, "trainer.epochs=2", "resume=auto")
    assert [row["path"] for row in table(tmp_path / "run" / "skipped_images.csv")] == ["train/red/003.png"]


def test_a_bad_image_stops_the_run_by_name_and_keeps_what_was_learnt(run, photos, tmp_path):
    damage(photos / "val" / "blue" / "002.png")
    with pytest.raises(BadImageError, match=r"val/blue/002\.png \(image 2 of its split\)"):
        run("data=custom", f"data.root={photos}", *SMALL)
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["position"]["step"] == 4


def test_balance(tmp_path, compose_config):
    root = tmp_path / "uneven"
    write_images(root / "blue", COLORS["blue"], 40, seed=0)
    write_images(root / "red", COLORS["red"], 10, seed=1)
    command = ("data=custom", f"data.root={root}", *SMALL)

    drawn = build_run(compose_config(*command, "data.balance=oversample"), tmp_path)
    drawn.logger.finish(0)
    labels = drawn.splits.train.labels
    share = np.mean([labels[drawn.loaders.train.plan.order(epoch)].mean() for epoch in range(50)])
    assert share == pytest.approx(0.5, abs=0.05)  # 8 of 40 are red; 2,000 draws: 5 standard deviations

    weighted = build_run(compose_config(*command, "data.balance=class_weights"), tmp_path)
    weighted.logger.finish(0)
    # 32 blue and 8 red: N / (K * n_c)
    assert weighted.trainer.criterion.class_weights.tolist() == pytest.approx([40 / (2 * 32), 40 / (2 * 8)])


@pytest.mark.parametrize("loss", ["focal", "bce"])
def test_losses_and_mixing_train(run, photos, tmp_path, loss):
    result = run(
        "data=custom", f"data.root={photos}", *SMALL, f"loss={loss}", "augment.mixup_alpha=0.2", "trainer.epochs=6"
    )
    assert result.metrics["val/accuracy"] == 1.0


def test_a_convolutional_net_with_the_standard_augmentation_and_workers(run, photos):
    result = run(
        "data=custom",
        f"data.root={photos}",
        "model=resnet18",
        "model.pretrained=false",
        "data.image_size=32",
        "data.num_workers=2",
        "data.batch_size=10",
        "optimizer.lr=3e-4",
        "trainer.epochs=2",
        "trainer.device=cpu",
    )
    assert result.metrics["val/loss"] < 0.7  # it has seen six batches
    assert result.exit_code == 0


def test_secrets_are_in_no_file(run, tmp_path):
    secret = "hf_" + "a1B2" * 8
    run(
        *SMALL,
        "trainer.epochs=1",
        "trainer.limit_train_batches=2",
        f"output_root=https://me:{secret}@host/x",
        folder="run",
    )
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
