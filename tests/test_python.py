"""cvtrain from Python: a light import, and the verbs as functions."""

import logging
import subprocess
import sys

import pytest
import yaml
from PIL import Image

import cvtrain as face

SMALL = ("model=mlp", "model.hidden=[8]", "data.image_size=8", "trainer.device=cpu", "trainer.precision=fp32")
QUICK = ("trainer.epochs=1", "trainer.progress=false", "plots=false", "augment=none")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(("ant", "bee")):
        (root / name).mkdir()
        for index in range(10):
            Image.new("RGB", (20 + index, 16), (number * 200, index * 20, 90)).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout


def test_import_loads_neither_torch_nor_hydra():
    code = "import sys, cvtrain; print(sorted({'torch', 'hydra', 'numpy', 'PIL', 'omegaconf'} & set(sys.modules)))"
    assert python(code) == "[]\n"


def test_composing_loads_no_torch():
    code = "import sys, cvtrain; print(cvtrain.compose('seed=3').seed, 'torch' in sys.modules)"
    assert python(code) == "3 False\n"


def test_every_name_is_there():
    assert sorted(dir(face)) == sorted(face.__all__)
    for name in face.__all__:
        assert getattr(face, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        face.trian  # noqa: B018


def test_run_has_the_files_of_the_command_line(here, photos, capsys):
    overrides = ("data=custom", f"data.root={photos}", *SMALL, *QUICK)
    result = face.train(*overrides)
    assert result.run_dir.parent == here.joinpath("runs", "custom_mlp").relative_to(here)
    assert result.best_checkpoint == result.run_dir / "checkpoints" / "best.pt"
    assert 0 <= result.metrics["val/accuracy"] <= 1
    assert yaml.safe_load((result.run_dir / "overrides.yaml").read_text(encoding="utf-8")) == list(overrides)
    assert "results in runs" in (result.run_dir / "train.log").read_text(encoding="utf-8")
    assert face.evaluate(result.best_checkpoint).metrics == result.metrics


def test_changed_config_can_be_resumed_by_command(here, photos, cvtrain):
    config = face.compose("data=custom", f"data.root={photos}", *SMALL, *QUICK)
    config.optimizer.lr = 0.125
    result = face.train(config, run_dir=here / "run")
    assert result.run_dir == here / "run"
    answer = cvtrain(f"resume={here / 'run'}", "trainer.epochs=+1")
    assert answer.status == 0, answer.err
    resumed = yaml.safe_load((here / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert (resumed["optimizer"]["lr"], resumed["trainer"]["epochs"]) == (0.125, 2)


def test_python_resumes_a_run(here, photos):
    first = face.train("data=custom", f"data.root={photos}", *SMALL, *QUICK)
    second = face.train(f"resume={first.run_dir}", "trainer.epochs=+1")
    assert second.run_dir == first.run_dir


def test_logging_is_left_as_it_was(here, photos):
    log = logging.getLogger("cvtrain")
    before = (list(log.handlers), log.level)
    face.train("data=custom", f"data.root={photos}", *SMALL, *QUICK)
    assert (log.handlers, log.level) == before


def test_several_processes_are_refused():
    with pytest.raises(face.ConfigError, match=r"trainer.devices=2: cvtrain.train trains in this process"):
        face.train("trainer.devices=2", "trainer.device=cpu")


def test_something_else_than_overrides_is_refused():
    with pytest.raises(TypeError, match="not int"):
        face.train(3)


def test_parts_of_a_config(photos):
    config = face.compose("data=custom", f"data.root={photos}", *SMALL, *QUICK, "data.num_workers=0")
    splits = face.build_splits(config.data)
    assert splits.classes == ("ant", "bee")
    loaders = face.build_loaders(config, splits)
    try:
        batch = next(iter(loaders.val.epoch(0)))
    finally:
        loaders.close()
    assert batch.images.shape == (4, 3, 8, 8)
    network = face.build_model(config, num_classes=2)
    assert network(batch.images.float()).shape == (4, 2)
