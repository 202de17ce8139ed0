"""resuming: which folder, which overrides, and which settings may differ."""

import json
from pathlib import Path

import pytest
import yaml

from cvtrain.config.errors import ConfigError
from cvtrain.config.resume import compare_configs, expand_resume, newest_unfinished, resolve_run_dir


def make_run(folder: Path, *overrides: str, epochs: int = 20, end_reason: str | None = None) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.pt").touch()
    (folder / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"epochs": epochs}}))
    if end_reason is not None:
        (folder / "summary.json").write_text(json.dumps({"end_reason": end_reason}))
    return folder


def nothing() -> None:
    return None


def test_a_new_run_keeps_its_tokens():
    tokens = ["model=mlp", "optimizer.lr=0.1"]
    assert expand_resume(tokens, nothing) == tokens
    assert expand_resume([*tokens, "resume=null"], nothing) == [*tokens, "resume=null"]
    assert expand_resume([*tokens, "resume=auto"], nothing) == [*tokens, "resume=auto"]


@pytest.mark.parametrize("word", ["path", "auto", "must"])
def test_the_runs_own_overrides_come_first_and_new_ones_win(tmp_path, word):
    folder = make_run(tmp_path / "run", "model=resnet18", "optimizer.lr=0.1", "resume=auto", "++model.kwargs.x=1")
    resume = f"resume={folder if word == 'path' else word}"
    tokens = expand_resume([resume, "optimizer.lr=0.01"], lambda: folder)
    assert tokens == ["model=resnet18", "++model.kwargs.x=1", resume, "optimizer.lr=0.01"]


def test_plus_epochs_adds_to_what_the_run_had(tmp_path):
    folder = make_run(tmp_path / "run", "trainer.epochs=30", epochs=30)
    assert expand_resume([f"resume={folder}", "trainer.epochs=+10"], nothing)[-1] == "trainer.epochs=40"
    with pytest.raises(ConfigError, match="there is no run to add epochs to"):
        expand_resume(["trainer.epochs=+10"], nothing)


def test_what_a_path_may_be(tmp_path):
    folder = make_run(tmp_path / "run")
    for path in (folder, folder / "checkpoints", folder / "checkpoints" / "last.pt"):
        assert resolve_run_dir(str(path)) == folder
    assert resolve_run_dir("auto") is None
    with pytest.raises(ConfigError, match="there is no such file or folder"):
        resolve_run_dir(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no run and no checkpoint of one is there"):
        resolve_run_dir(str(tmp_path))


def test_the_newest_unfinished_run(tmp_path):
    assert newest_unfinished(tmp_path / "nowhere") is None
    make_run(tmp_path / "2026-01-01_10-00-00")
    interrupted = make_run(tmp_path / "2026-01-02_10-00-00", end_reason="interrupted")
    make_run(tmp_path / "2026-01-03_10-00-00", end_reason="all epochs done")
    (tmp_path / "2026-01-04_10-00-00").mkdir()  # cut before its first checkpoint
    assert newest_unfinished(tmp_path) == interrupted


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("model.hidden", "breaking"),
        ("data.image_size", "breaking"),
        ("seed", "breaking"),
        ("optimizer.name", "breaking"),
        ("optimizer.lr", "training"),
        ("scheduler.end_factor", "training"),
        ("data.reader", "training"),
        ("model.freeze", "training"),
        ("data.num_workers", "harmless"),
        ("data.root", "harmless"),
        ("model.pretrained", "harmless"),
        ("logger.wandb.project", "harmless"),
        ("trainer.log_every_steps", "harmless"),
        ("checkpoint.every_steps", "harmless"),
    ],
)
def test_kinds_of_changes(key, kind):
    def nested(value: int) -> dict:
        for part in reversed(key.split(".")):
            value = {part: value}
        return value

    changes = compare_configs(nested(1), nested(2))
    assert [str(change) for change in getattr(changes, kind)] == [f"{key}: 1 -> 2"]
    assert sum(len(found) for found in (changes.breaking, changes.training, changes.harmless)) == 1


def test_an_average_cannot_appear_or_vanish():
    off, on = {"trainer": {"ema_decay": None}}, {"trainer": {"ema_decay": 0.9}}
    assert len(compare_configs(off, on).breaking) == len(compare_configs(on, off).breaking) == 1
    assert len(compare_configs(on, {"trainer": {"ema_decay": 0.99}}).training) == 1
