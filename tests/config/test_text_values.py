"""Text settings keep the word as typed, on the command line and in files; an option is not chosen by its name."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cvtrain.config.errors import ConfigError
from cvtrain.config.overrides import normalize_override, unquoted
from cvtrain.config.wandb_trial import Trial

PARSER = OverridesParser.create()
TYPED = [
    "2024_01_05", "1.10", "1e5", "+5", "-5", "NaN", "inf", "on", "null", "None", "true", "010", "12:30", "0x10", ".5",
    "my photos (2024)", "photos/ünïcödé", "写真", "a=b", "a,b", "a@b", "it's", "[x]", "x]", "{a:1}", "{", "C:\\new\\",
    '"half', "glob(*", "$HOME", " spaces ", "${data.name}_x", "${seed} (2)", "http://x/?a=b&c", ".hidden", "../up",
]  # fmt: skip


@pytest.mark.parametrize("text", TYPED)
def test_text_is_taken_as_typed(text):
    token = normalize_override(f"name={text}", "train")
    parsed = PARSER.parse_overrides([token])[0]
    assert not parsed.is_sweep_override()
    assert str(parsed.value()) == text and isinstance(parsed.value(), str)
    assert unquoted(token.removeprefix("name=")) == text
    assert normalize_override(token, "train") == token  # as for a rank or a trial, which get it again


@pytest.mark.parametrize(
    ("typed", "verb", "token"),
    [
        ("resume=null", "train", "resume=null"),
        ("resume=2024_01", "train", "resume='2024_01'"),
        ("checkpoint=a b.pt", "evaluate", "checkpoint='a b.pt'"),
        ("cache_dir=1_0", "cache", "cache_dir='1_0'"),
        ("sweep.name=1_0", "sweep", "sweep.name='1_0'"),
        ("hydra.run.dir=2024_01_05", "train", "hydra.run.dir='2024_01_05'"),
        ("++data.root=1_0", "train", "++data.root='1_0'"),
        ("logger.wandb.tags=[1.10,a b,'c']", "train", "logger.wandb.tags=['1.10','a b','c']"),
        ("data.delimiter=,", "train", "data.delimiter=','"),
        ("trainer.epochs=1_0", "train", "trainer.epochs=1_0"),
        ("model.kwargs.depth=1_0", "train", "++model.kwargs.depth=1_0"),
        ("name='a b'", "train", "name='a b'"),
        ("logger=none", "train", "logger=[]"),
        ("model.arch=resnet18,resnet50", "train", "model.arch=resnet18,resnet50"),
        ("name=choice(a,b)", "train", "name=choice(a,b)"),
    ],
)
def test_only_text_settings_are_quoted(typed, verb, token):
    assert normalize_override(typed, verb) == token


def test_home_is_expanded_in_paths_only(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert normalize_override("data.root=~/my photos", "train") == "data.root='/home/me/my photos'"
    assert normalize_override("data.root=~", "train") == "data.root=/home/me"
    assert normalize_override("name=~x", "train") == "name='~x'"


def test_multirun_splits_texts_at_commas():
    token = normalize_override("name=2024_01_05,1.10, a b ,'c,d'", "train", multirun=True)
    assert token == "name='2024_01_05','1.10','a b','c,d'"
    assert list(PARSER.parse_overrides([token])[0].sweep_string_iterator()) == token.removeprefix("name=").split(",", 3)


def test_multirun_over_a_path_with_a_comma_names_the_line_to_paste(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a,b").mkdir()
    with pytest.raises(ConfigError, match="there is a path of that name") as refused:
        normalize_override("data.root=a,b", "train", multirun=True)
    assert "data.root='\"'\"'a,b'\"'\"''" in str(refused.value)


def test_one_wrong_value_is_one_error(problems_of):
    Path("a(b").mkdir()
    (problem,) = problems_of("data=custom", "data.root=a(b")
    assert (problem.key, problem.rule) == ("data.root", "holds nothing, no class folders")
    (problem,) = problems_of("data=csv", 'data.file="x', "model=mlp")
    assert (problem.key, problem.rule) == ("data.file", "no such file")


def test_wandb_parameters_of_text_settings_stay_text():
    trial = Trial("s", "r", {"name": "1e5", "optimizer.lr": "1e-5", "resume": "null"})
    assert trial.overrides == ["name='1e5'", "optimizer.lr=1e-05", "resume=null"]


def write_experiment(text):
    path = Path("conf/experiment/e.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# @package _global_\n{text}\n")


@pytest.mark.parametrize("text", ["2024_01_05", "1.10", "010", "12:30", "on", "1e5", "yes"])
def test_texts_that_yaml_rewrites_are_refused_unquoted(problems_of, text):
    write_experiment(f"name: {text}")
    (problem,) = problems_of("experiment=e", config_dir="conf")
    assert (problem.key, problem.value, problem.origin) == ("name", text, "in conf/experiment/e.yaml")
    assert problem.remedy == f"write it in quotes: name: '{text}'"
    write_experiment(f"name: '{text.replace(':', '-')}'")
    assert problems_of("experiment=e", config_dir="conf") == []


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ("data: {batch_size: 010}", "is read as 8, in base 8"),
        ("trainer: {max_minutes: 1:30}", "is read as 90, in base 60"),
        ("trainer: {compile: on}", "is read as true"),
        ("trainer: {progress: no}", "is read as false"),
        ("model: {hidden: [010]}", "is read as 8, in base 8"),
    ],
)
def test_numbers_and_switches_of_yaml_1_1_are_refused(problems_of, written, rule):
    write_experiment(written)
    (problem,) = problems_of("experiment=e", config_dir="conf")
    assert problem.rule == rule


def test_values_of_a_merged_mapping_are_judged_as_written(problems_of):
    write_experiment("trainer: &base {epochs: 010}\nscheduler:\n  <<: {warmup_epochs: 012}")
    first, second = problems_of("experiment=e", config_dir="conf")
    assert (first.key, first.rule) == ("trainer.epochs", "is read as 8, in base 8")
    assert (second.key, second.rule) == ("scheduler.warmup_epochs", "is read as 10, in base 8")


def test_plain_numbers_in_files_are_taken(problems_of):
    write_experiment("name: 2024\ntrainer: {epochs: 1_000, max_minutes: 1.5, compile: False}\noptimizer: {lr: 1e-3}")
    assert problems_of("experiment=e", config_dir="conf") == []


def test_dotted_key_in_a_file_is_nested(problems_of):
    write_experiment("optimizer.lr: 0.1")
    (problem,) = problems_of("experiment=e", config_dir="conf")
    assert problem.remedy == "nest it:\noptimizer:\n  lr: ..."


@pytest.mark.parametrize("group", ["optimizer", "model", "scheduler", "loss", "augment", "data", "logger"])
@pytest.mark.parametrize("prefix", ["", "++"])
def test_option_is_not_chosen_by_its_name(problems_of, group, prefix):
    option = {
        "optimizer": "sgd", "model": "resnet50", "scheduler": "onecycle", "loss": "focal", "augment": "light",
        "data": "cifar10", "logger": "wandb",
    }[group]  # fmt: skip
    (problem,) = problems_of(f"{prefix}{group}.name={option}")
    assert (problem.key, problem.remedy) == (f"{group}.name", f"did you mean {group}={option}?")


def test_option_is_not_chosen_by_a_name_in_a_mapping_or_a_sweep(problems_of):
    (problem,) = problems_of("optimizer={name:sgd}")
    assert problem.remedy == "did you mean optimizer=sgd?"
    (problem,) = problems_of("optimizer.name=adamw,sgd", multirun=True)
    assert problem.remedy == "did you mean optimizer=sgd?"
    (problem,) = problems_of("data.name=birds")
    assert problem.remedy == "leave it out; name=... names the run"


def test_experiment_cannot_name_an_option(problems_of):
    write_experiment("optimizer: {name: sgd}")
    (problem,) = problems_of("experiment=e", config_dir="conf")
    assert (problem.key, problem.origin) == ("optimizer.name", "in conf/experiment/e.yaml")


def test_own_option_file_carries_its_own_name(problems_of):
    path = Path("conf/optimizer/mine.yaml")
    path.parent.mkdir(parents=True)
    path.write_text("defaults:\n  - sgd\n  - _self_\nname: mine\n")
    assert problems_of("optimizer=mine", config_dir="conf") == []
    write_experiment("defaults:\n  - override /optimizer: mine")
    assert problems_of("experiment=e", config_dir="conf") == []


def test_label_follows_the_architecture(composer_of, problems_of):
    cfg = composer_of("train").compose(["model=resnet18", "model.arch=resnet50"])
    assert (cfg.model.name, cfg.name) == ("resnet50", "digits_resnet50")
    (problem,) = problems_of("data=cifar10", "data.dataset=svhn")
    assert problem.remedy == "did you mean data=svhn?"


def test_sweep_file_keeps_texts(tmp_path):
    from cvtrain.sweep.spec import load_spec

    path = tmp_path / "s.yaml"
    path.write_text(
        "method: grid\nparameters:\n  name: {values: [2024_01_05, 1.10]}\n  data:\n    parameters:\n"
        "      root: {value: 1_0}\n      batch_size: {value: 010}\n"
    )
    with pytest.raises(ConfigError) as refused:
        load_spec(path)
    assert [(problem.key, problem.value) for problem in refused.value.problems] == [
        ("parameters.name", "2024_01_05"),
        ("parameters.name", "1.10"),
        ("parameters.data.root", "1_0"),
        ("parameters.data.batch_size", "010"),
    ]
