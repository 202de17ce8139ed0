"""Unknown keys, types, ranges and choices: what is said, all at once, and where a value was set."""

import pickle

import pytest

from cvtrain.config.errors import ConfigError, Problem, format_value
from cvtrain.config.hints import closest, closest_keys


def said(problems):
    return {problem.key: problem.remedy.splitlines()[0] if problem.remedy else "" for problem in problems}


@pytest.mark.parametrize(
    ("token", "meant"),
    [
        ("optimzer.lr=0.1", "optimizer.lr"),
        ("optimizer.lrr=0.1", "optimizer.lr"),
        ("+optimizer.lrr=0.1", "optimizer.lr"),
        ("++optimizer.lrr=0.1", "optimizer.lr"),
        ("lr=0.1", "optimizer.lr"),
        ("epochs=5", "trainer.epochs"),
        ("batch_size=5", "data.batch_size"),
        ("max_epochs=5", "trainer.epochs"),
        ("trainer.Epochs=5", "trainer.epochs"),
        ("train.epochs=5", "trainer.epochs"),
        ("model.epochs=5", "trainer.epochs"),
        ("learning_rate=1", "optimizer.lr"),
        ("modle=resnet18", "model=resnet18"),
        ("model=resnet81", "model=resnet18"),
        ("model=ResNet18", "model=resnet18"),
        ("scheduler=cosin", "scheduler=cosine"),
        ("data=cifar", "data=cifar10"),
        ("hydra/job_logging=cvtrian", "hydra/job_logging=cvtrain"),
        ("hydra.run.dri=x", "hydra.run.dir"),
        ("scheduler=none", "scheduler=constant"),
        ("scheduler=null", "scheduler=constant"),
        ("augment=null", "augment=none"),
        ("data=imagefolder", "data=custom"),
        ("patience=3", "trainer.early_stop_patience"),
        ("data.path=photos", "data.root"),
    ],
)
def test_closest_right_name(problems_of, token, meant):
    (problem,) = problems_of(token)
    assert problem.remedy.splitlines()[0] == f"did you mean {meant}?"
    assert problem.origin == "on the command line"


def test_all_problems_at_once(problems_of):
    problems = problems_of(
        "optimzer.lr=1", "loss=focall", "trainer.epochs=x", "optimizer.lr=-1", "seed=1.5", "model.dropout=", "resnet={"
    )
    assert [problem.key for problem in problems] == [
        "resnet",
        "loss",
        "optimzer.lr",
        "trainer.epochs",
        "seed",
        "model.dropout",
        "optimizer.lr",
    ]


@pytest.mark.parametrize(
    ("token", "rule"),
    [
        ("trainer.epochs=abc", "must be a whole number at least 0"),
        ("trainer.epochs=2.5", "must be a whole number at least 0"),
        ("trainer.epochs=true", "must be a whole number at least 0"),
        ("trainer.epochs=null", "must be a whole number at least 0"),
        ("trainer.epochs=-1", "must be a whole number at least 0"),
        ("trainer.max_steps=0", "must be a whole number at least 1, or null"),
        ("optimizer.lr=nan", "must be a number above 0"),
        ("optimizer.lr=inf", "must be a number above 0"),
        ("optimizer.lr=[1]", "must be a number above 0"),
        ("optimizer={lr:-1}", "must be a number above 0"),
        ("optimizer.betas=[0.9,1]", "must be a list of numbers each at least 0 and below 1"),
        ("optimizer.betas=0.9", "must be a list of numbers each at least 0 and below 1"),
        ("trainer.precision=fp8", "must be one of auto, fp32, bf16, fp16"),
        ("data.channels=2", "must be one of 1, 3"),
        ("log_level=LOUD", "must be one of DEBUG, INFO, WARNING, ERROR"),
        ("trainer.compile=maybe", "must be true or false"),
        ("seed=4294967296", "must be a whole number at least 0 and at most 4294967295"),
        ("trainer=fast", "is a section with settings of its own"),
        ("model=null", "has to be one option of the group"),
        ("data=null", "has to be one option of the group"),
        ("~optimizer.lr", "a setting cannot be taken out"),
        ("optimizer.lr=0.1,0.2", "several values for one run"),
        ("'=3", "is not in Hydra's grammar of values"),
        ("=3", "names no setting"),
        ("name=${nothing}", "cannot be resolved"),
        ("model.hidden=[${nothing}]", "cannot be resolved"),
        ("augment.transforms=[{Flip:{p:${nothing}}}]", "cannot be resolved"),
    ],
)
def test_value(problems_of, token, rule):
    (problem,) = problems_of(token)
    assert problem.rule == rule


@pytest.mark.parametrize(
    ("token", "owners"),
    [
        ("optimizer.momentum=0.8", "momentum belongs to optimizer=sgd, rmsprop, muon"),
        ("+optimizer.momentum=0.8", "momentum belongs to optimizer=sgd, rmsprop, muon"),
        ("scheduler.gamma=0.8", "gamma belongs to scheduler=step, multistep, exponential"),
        ("data.file=x.csv", "file belongs to data=csv"),
        (
            "data.dataset=mnist",
            "dataset belongs to data=cifar10, cifar100, fashion_mnist, flowers102, food101, imagenet, ...",
        ),
        ("logger.wandb.project=x", "project belongs to logger=wandb"),
        ("loss.gamma=1", "gamma belongs to loss=focal"),
    ],
)
def test_setting_of_another_option(problems_of, token, owners):
    (problem,) = problems_of(token)
    assert problem.rule == f"has no effect here: {owners}"


@pytest.mark.parametrize(
    "token", ["trainer.epochs=3", "optimizer.lr=1e-3", "seed=0", "trainer.max_steps=null", "data.mean=[1]"]
)
def test_right_values(problems_of, token):
    assert problems_of(token) == []


def test_missing_values_are_named_once(problems_of):
    (problem,) = problems_of("model=torchvision")  # model.name and name point to model.arch
    assert (problem.key, problem.origin) == ("model.arch", "")
    assert problem.rule == "has to be set: the library's name of the network"


def test_open_mappings_take_any_key(problems_of):
    assert problems_of("model=timm", "model.arch=x", "model.kwargs.drop_rate=0.1", "+model.kwargs.a.b=1") == []
    assert problems_of("data=dataset", "data.target=a.B", "data.kwargs={a:1}", "data.train_kwargs.train=true") == []


def test_sweep_of_many_jobs_is_checked_value_by_value(problems_of, monkeypatch):
    from cvtrain.config.composer import Composer

    composed = []
    original = Composer.compose
    monkeypatch.setattr(Composer, "compose", lambda self, tokens: composed.append(tokens) or original(self, tokens))
    command = ["seed=range(0,9)", "optimizer.lr=0.1,0", "data.batch_size=1,2,4"]
    problems = problems_of(*command, multirun=True)
    assert [str(problem.key) for problem in problems] == ["optimizer.lr"]
    assert len([tokens for tokens in composed if "seed=0" in tokens or "seed=8" in tokens]) < 9 + 2 + 3 + 4


def test_wrong_key_in_a_file_names_the_file(problems_of, tmp_path):
    folder = tmp_path / "conf" / "optimizer"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("defaults:\n  - /schema/optimizer/sgd@_here_\n  - _self_\nmomentun: 0.5\n")
    (problem,) = problems_of("optimizer=mine", config_dir="conf")
    assert (problem.key, problem.origin) == ("optimizer.momentun", "in conf/optimizer/mine.yaml")
    assert problem.remedy == "did you mean optimizer.momentum?"


def test_wrong_option_in_a_file_names_the_file(problems_of, tmp_path):
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: resnet81\n")
    (problem,) = problems_of("experiment=mine", config_dir="conf")
    assert (problem.key, problem.value, problem.origin) == ("model", "resnet81", "in conf/experiment/mine.yaml")
    assert problem.remedy.startswith("did you mean model=resnet18?")


def test_value_of_a_shipped_file_names_it(problems_of):
    problems = problems_of("data=cifar10", "data.channels=1", "model.pretrained=false")
    assert [(problem.key, problem.origin) for problem in problems] == [
        ("data.mean", "in conf/data/cifar10.yaml"),
        ("data.std", "in conf/data/cifar10.yaml"),
    ]
    assert problems_of("data=cifar10", "data.channels=1") == []  # the weights' own statistics count


# The error itself


def test_error_text_and_pickle():
    problems = [
        Problem("a.b", 1.0, "is wrong", "do this\nor that", "on the command line"),
        Problem("c", None, "is null"),
        Problem("d", rule="is missing"),
    ]
    error = ConfigError(problems=problems)
    text = "a.b=1: is wrong\n  do this\n  or that\n  set on the command line\nc=null: is null\nd: is missing"
    assert str(error) == text
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == text and copy.problems[0].origin == "on the command line"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1.0, "1"),
        (1e-3, "0.001"),
        (1e-8, "1e-08"),
        ([1, None], "[1,null]"),
        ({"a": True}, "{a:true}"),
    ],
)
def test_format_value(value, text):
    assert format_value(value) == text


def test_closest_prefers_what_begins_alike():
    assert closest("resnext50", ["resnet50", "resnext50_32x4d"]) == ["resnext50_32x4d"]
    assert closest("VGG", ["vgg16_bn", "vgg16", "mlp"], 2) == ["vgg16", "vgg16_bn"]
    assert closest("qqq", ["abc"]) == []
    assert closest_keys("a.lr", ["optimizer.lr", "b.lr2"]) == ["optimizer.lr"]
