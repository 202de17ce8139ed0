"""`compose` gives the command line's config and its errors; `overrides_of` is its inverse."""

import pytest
from PIL import Image

from cvtrain.config.compose import compose, overrides_of
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.root import Config


@pytest.fixture
def photos(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "1.png")
    return tmp_path / "photos"


def test_config_is_that_of_the_command_line(compose_config, photos):
    overrides = ("data=custom", f"data.root={photos}", "optimizer.lr=0.5", "logger=[csv,tensorboard]")
    config = compose(*overrides)
    assert type(config) is Config
    assert config == compose_config(*overrides)
    assert (config.model.name, config.optimizer.lr) == ("resnet18", 0.5)


def test_errors_are_those_of_the_command_line(cvtrain):
    wrong = ("optimzer.lr=0.1", "trainer.epochs=-1")
    with pytest.raises(ConfigError) as caught:
        compose(*wrong)
    assert "".join(f"error: {problem}\n" for problem in caught.value.problems) == cvtrain(*wrong).err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("resnet18", "resnet18: is neither a verb nor key=value"),
        ("optimizer.lr=1,2", "optimizer.lr=1,2: several values for one run"),
        ("hydra.run.dir=here", "hydra.run.dir: has no effect from Python"),
        ("trainer.epochs=+3", "there is no run to add epochs to"),
    ],
)
def test_words_that_mean_nothing_in_python(override, message):
    with pytest.raises(ConfigError, match=message.replace("+", r"\+")):
        compose(override)


def test_own_options_from_config_dir(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\noptimizer: {lr: 0.25}\n", encoding="utf-8")
    assert compose("experiment=mine", config_dir=str(tmp_path)).optimizer.lr == 0.25


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment=imagenet_resnet50", "model.pretrained=true", "seed=7"],
        ["model=resnet18", "trainer.epochs=20", "data.batch_size=32"],  # the defaults, which the recipe would change
        ["experiment=cifar10_speed", "debug=smoke"],
        ["model=custom", "model.target=my.Net", "model.kwargs.depth=2", "logger=[]"],
        ["model=timm", "model.arch=resnet18", "data=cifar100", "name='a b'", "logger.csv=null"],
        ["augment=albumentations", "loss=focal", "optimizer=muon", "scheduler=plateau", "logger=[mlflow,wandb]"],
    ],
)
def test_overrides_of_compose_back(overrides):
    config = compose(*overrides)
    assert compose(*overrides_of(config)) == config


def test_overrides_of_a_changed_config():
    config = compose("model=resnet18")
    config.optimizer.lr = 0.125
    assert "optimizer.lr=0.125" in overrides_of(config)
    config.optimizer.lr = -1.0
    with pytest.raises(ConfigError, match=r"optimizer\.lr=-1"):
        overrides_of(config)
