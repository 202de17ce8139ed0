"""What a checkpoint may ask of `evaluate`: no request, no environment, no write outside, no size that nobody named."""

import http.server
import threading
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cvtrain.checkpoint import load_checkpoint, save_checkpoint
from cvtrain.commands.evaluate import evaluate
from cvtrain.commands.train import train
from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.schema.data import (
    CsvConfig,
    DatasetConfig,
    HuggingFaceConfig,
    TorchvisionDataConfig,
    TorchvisionSet,
)
from cvtrain.config.schema.model import CustomModelConfig, TimmModelConfig
from cvtrain.config.schema.root import EvaluateConfig, EvaluateDataConfig, SavedModelConfig
from cvtrain.config.serialize import flatten, from_plain, schema_names, to_plain
from cvtrain.report.plotter import Plotter

SECRET = "secret-of-the-environment"
SMALL = (
    "data=custom",
    "augment=none",
    "model=mlp",
    "model.hidden=[8]",
    "data.image_size=8",
    "data.batch_size=8",
    "data.num_workers=0",
    "plots=false",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.epochs=1",
    "trainer.progress=false",
)


class NoPlots(Plotter):
    def draw(self, plot, *arguments):
        """Draw nothing."""


def make_images(root: Path, *classes: str) -> None:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.random.default_rng(10 * number + index).integers(0, 255, (10, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")


@pytest.fixture(scope="module")
def trained(compose_config, tmp_path_factory):
    """State of a checkpoint of a run on a folder with two classes."""
    root = tmp_path_factory.mktemp("trained")
    make_images(root / "photos", "ants", "bees")
    train(compose_config(*SMALL, f"data.root={root / 'photos'}"), run_dir=root / "run")
    state = load_checkpoint(root / "run" / "checkpoints" / "last.pt")
    return {key: value for key, value in state.items() if key not in ("format", "format_version")}


@pytest.fixture
def requests(monkeypatch, tmp_path):
    """Paths that were asked for at a server that every HTTP client goes through, with a home and a secret to watch."""
    found: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_CONNECT = do_GET

        def log_message(self, *arguments):
            """Print nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_ENDPOINT"):
        monkeypatch.setenv(name, address)
    monkeypatch.setenv("CVTRAIN_SECRET", SECRET)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield address, found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def score(tmp_path, monkeypatch):
    """Evaluate a state as a checkpoint file in a run folder of its own; the refusal, or None."""
    monkeypatch.setattr("cvtrain.commands.evaluate.Plotter", NoPlots)

    def score(state, **settings):
        number = len(list(tmp_path.glob("out*")))
        path = tmp_path / "hostile" / f"{number}.pt"
        save_checkpoint(path, state)
        config = EvaluateConfig(checkpoint=str(path), device="cpu", **settings)
        try:
            evaluate(config, run_dir=tmp_path / f"out{number}")
        except (ConfigError, RunError) as error:
            return error
        return None

    return score


def outside(tmp_path):
    """Files that no evaluation may add to or change."""
    files = (path for part in ("home", "work") for path in (tmp_path / part).rglob("*"))
    return {path: path.stat().st_mtime_ns for path in files}


def with_setting(state, key, value):
    changed = deepcopy({name: state[name] for name in ("config", "paths", "schemas")})
    *parts, last = key.split(".")
    node = changed["config"]
    for part in parts:
        node = node[part]
    node[last] = value
    if key in changed["paths"]:
        del changed["paths"][key]
    return state | changed


def with_group(state, group, config):
    """The state with another option of a group, as a run of it would have saved it."""
    typed = from_plain(state["config"], state["schemas"])
    setattr(typed, group, config)
    return state | {"config": to_plain(typed), "schemas": schema_names(typed), "paths": {}}


def test_no_setting_reads_the_environment_asks_a_server_or_writes_elsewhere(
    trained, requests, score, tmp_path, monkeypatch
):
    address, asked = requests
    monkeypatch.setattr("cvtrain.report.run_report.write_environment", lambda path: None)  # 0.5 s, of this process
    hostile = f"{address}/${{oc.env:CVTRAIN_SECRET}}"
    before = outside(tmp_path)
    keys = [key for key in flatten(trained["config"]) if not isinstance(flatten(trained["config"])[key], dict)]
    assert len(keys) > 60
    for key in keys:
        kept = flatten(trained["config"])[key]
        error = score(with_setting(trained, key, [hostile] if isinstance(kept, list) else hostile))
        assert SECRET not in str(error), key
        assert not asked and outside(tmp_path) == before, key
        if key.startswith("data.") and key not in ("data.cache_dir",):
            assert error is not None, key
    for folder in tmp_path.glob("out*"):
        assert not any(SECRET in path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


OTHER_SOURCES = {
    "hugging face": (
        "data",
        lambda: HuggingFaceConfig(path="someone/photos", download=True),
        r"data\.path=someone/photos",
    ),
    "torchvision": (
        "data",
        lambda: TorchvisionDataConfig(name="mnist", dataset=TorchvisionSet.mnist, root="sets", download=True),
        r"data\.download=true",
    ),
    "dataset": ("data", lambda: DatasetConfig(target="torchvision.datasets.MNIST"), r"data\.target=torchvision"),
    "manifest": ("data", lambda: CsvConfig(file="http://127.0.0.1:1/list.csv"), r"data\.file=http"),
    "class": ("model", lambda: CustomModelConfig(target="torch.hub.load"), r"model\.target=torch\.hub\.load"),
    "hub": ("model", lambda: TimmModelConfig(name="x", arch="hf-hub:someone/net"), "a checkpoint alone never does"),
    "file": (
        "model",
        lambda: TimmModelConfig(name="x", arch="resnet18", kwargs={"pretrained_cfg": {"file": "/x"}}),
        "a checkpoint alone never does",
    ),
}


@pytest.mark.parametrize("kind", OTHER_SOURCES)
def test_other_sources_have_to_be_named_again(trained, requests, score, tmp_path, kind):
    group, make, remedy = OTHER_SOURCES[kind]
    before = outside(tmp_path)
    error = score(with_group(trained, group, make()))
    assert isinstance(error, ConfigError)
    assert not requests[1] and outside(tmp_path) == before
    with pytest.raises(ConfigError, match=remedy):
        raise error


def test_a_class_named_again_does_not_bring_a_download(trained, requests, score):
    data = DatasetConfig(target="x.Y", train_kwargs={"root": "sets", "download": True})
    error = score(with_group(trained, "data", data), data=EvaluateDataConfig(target="torchvision.datasets.MNIST"))
    assert "data.download=true" in str(error) and not requests[1]


def test_caches_of_a_checkpoint_are_not_written(trained, requests, score, tmp_path):
    before = outside(tmp_path)
    state = with_setting(trained, "data.cache", "disk")
    assert score(state) is None
    assert score(with_setting(state, "data.cache_dir", str(tmp_path / "work" / "cache"))) is None
    assert outside(tmp_path) == before


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("data.image_size", 8192, "data.image_size=8192"),
        ("data.batch_size", 10**9, "batch_size=1000000000"),
        ("data.num_workers", 1000, "data.num_workers=1000"),
    ],
)
def test_sizes_that_nobody_named_are_refused(trained, score, key, value, remedy):
    error = score(with_setting(trained, key, value))
    assert f"if you trust it, set {remedy}" in str(error)


def test_a_size_that_the_command_line_names_is_taken(trained, score):
    state = with_setting(trained, "data.batch_size", 10**9)
    assert score(state, batch_size=4) is None


def test_values_out_of_range_are_refused(trained, score):
    for key, value in (("data.channels", 10**9), ("data.crop_fraction", 0.0), ("data.image_size", 0)):
        assert f"has a false setting {key}={value}" in str(score(with_setting(trained, key, value)))


def test_a_folder_named_like_an_interpolation_is_a_folder(trained, score, tmp_path):
    for name in ("${x}", "\\${oc.env:HOME}", "a${"):
        make_images(tmp_path / name, "ants", "bees")
        assert score(with_setting(trained, "data.root", str(tmp_path / name))) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(trained, score, bad):
    state = deepcopy(trained)
    name = next(iter(state["model"]))
    state["model"][name].view(-1)[1] = bad
    error = score(state)
    assert isinstance(error, RunError) and not isinstance(error, ConfigError)
    assert f"of {name} are NaN or infinite" in str(error) and "mean nothing" in str(error)


def test_one_known_class_can_be_scored(trained, score, tmp_path):
    make_images(tmp_path / "one", "bees")
    assert score(trained, data=EvaluateDataConfig(root=str(tmp_path / "one"))) is None


def test_relative_data_is_found_from_another_folder(compose_config, score, tmp_path, monkeypatch):
    make_images(tmp_path / "photos", "ants", "bees")
    monkeypatch.chdir(tmp_path)
    train(compose_config(*SMALL, "data.root=photos"), run_dir=tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    del state["format"], state["format_version"]
    assert state["config"]["data"]["root"] == "photos"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert score(state) is None


def test_a_run_is_resumed_from_another_folder(cvtrain, tmp_path, monkeypatch):
    make_images(tmp_path / "photos", "ants", "bees")
    assert cvtrain(*SMALL, "data.root=photos", "hydra.run.dir=run").status == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    answer = cvtrain(f"resume={tmp_path / 'run'}", "trainer.epochs=2")
    assert answer.status == 0, answer.err
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["position"]["epoch"] == 2


def test_a_named_class_of_a_checkpoint_is_built_from_the_command_line(trained, score):
    state = with_group(trained, "model", CustomModelConfig(target="torch.hub.load"))
    error = score(state, model=SavedModelConfig(target="no_such_package.Net"))
    assert "no_such_package" in str(error)
