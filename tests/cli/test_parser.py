"""Flags without Hydra's parser, which hands argparse a help object that Python 3.14 refuses."""

import argparse

import pytest

import cvtrain.cli.main as cli
from cvtrain.cli.parser import build_parser


def test_every_help_text_formats_as_python_314_demands():
    parser = build_parser()
    formatter = argparse.HelpFormatter("cvtrain")
    for action in parser._actions:
        assert isinstance(action.help, str)
        # `add_argument` of 3.14 makes this call, and refuses the argument if it raises.
        assert formatter._expand_help(action)


@pytest.mark.parametrize(
    "command", ["seed=1", "-m seed=1,2", "--cfg job", "--help", "--hydra-help", "--info searchpath", "help evaluate"]
)
def test_no_command_builds_hydras_parser(cvtrain, monkeypatch, command):
    def refuse():
        raise AssertionError("Hydra's parser")

    monkeypatch.setattr("hydra._internal.utils.get_args_parser", refuse)
    monkeypatch.setattr("hydra.main", refuse)
    monkeypatch.setitem(cli.VERBS, "train", lambda config, run_dir, overrides: 0.0)
    assert cvtrain(*command.split()).status == 0


@pytest.mark.parametrize(
    ("command", "rule"),
    [
        ("-m --cfg job", "--multirun --cfg: exclude each other"),
        ("--resolve", "--resolve: has no effect by itself"),
        ("--cfg jobs", "argument --cfg/-c: invalid choice: 'jobs'"),
        ("--experimental-rerun x.pkl", "--experimental-rerun x.pkl: no such flag"),
    ],
)
def test_wrong_flags_are_refused(cvtrain, command, rule):
    answer = cvtrain(*command.split())
    assert answer.status == 2 and answer.err.startswith(f"error: {rule}")


@pytest.mark.parametrize("verb", [*cli.VERBS, "list"])
def test_help_names_every_verb_and_shows_each(cvtrain, verb):
    assert f"cvtrain {verb}" in cvtrain("--help").out.replace("[train]", "train")
    shown = cvtrain("help", verb)
    assert shown.status == 0 and shown.out == cvtrain(verb, "--help").out


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        ("evalute", "did you mean evaluate?"),
        ("predcit", "did you mean predict?"),
        ("help evalute", "did you mean evaluate?"),
        ("sweep=digits_mlp", "did you mean cvtrain sweep sweep=digits_mlp?"),
        ("list modles", "did you mean cvtrain list models?"),
        ("list models rsenet18", "did you mean resnet18?"),
    ],
)
def test_wrong_verbs_get_the_closest(cvtrain, command, remedy):
    answer = cvtrain(*command.split())
    assert answer.status == 2 and remedy in answer.err


def test_list_prints_one_line_per_option(cvtrain):
    lines = cvtrain("list", "optimizers").out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "adadelta", "adagrad", "adam", "adamax", "adamw", "muon", "nadam", "radam", "rmsprop", "sgd",
    ]  # fmt: skip
    assert all(len(line.split()) > 2 for line in lines)
    # sentences of several lines of a file are whole
    assert all(line[-1] in ".:" for line in lines + cvtrain("list", "data").out.splitlines())
    assert {line.split()[0] for line in cvtrain("list", "models", "ResNet-18").out.splitlines()} >= {"resnet18"}
