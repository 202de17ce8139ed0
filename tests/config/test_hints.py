"""What a newcomer types: words without `=`, flags of other programs, lists with spaces. Each has its remedy."""

import itertools
import os
import shlex
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("command", "faults"),
    [
        ("trian", {"trian": "did you mean train?"}),
        (
            "deploy checkpoint=x",
            {"deploy": "verbs: train, check, evaluate, predict, merge, report, reproduce, export, serve, cache, "},
        ),
        ("usage", {"usage": "that is cvtrain --help"}),
        ("train evaluate", {"evaluate": "the verb comes first: cvtrain evaluate key=value ..."}),
        ("resnet18", {"resnet18": "did you mean model=resnet18?"}),
        ("resume", {"resume": "write resume=..., without spaces around ="}),
        (
            "model = resnet18",
            {"model": "write model=..., without spaces around =", "resnet18": "did you mean model=resnet18?"},
        ),
        (
            "runs/best.pt",
            {"runs/best.pt": "did you mean predict checkpoint=runs/best.pt or evaluate checkpoint=runs/best.pt"},
        ),
        ("evaluate runs/best.pt", {"runs/best.pt": "did you mean checkpoint=runs/best.pt?"}),
        ("evaluate checkpoint", {"checkpoint": "write checkpoint=..., without spaces around ="}),
        ("sweep digits_mlp", {"digits_mlp": "did you mean sweep=digits_mlp?"}),
        ("cache clear", {"clear": "did you mean clean=all or clean=stale?"}),
        ("cache linear", {"linear": "did you mean clean=all or clean=stale?"}),
        ("logger=[csv, tensorboard]", {"tensorboard]": "leave spaces out, or quote it: 'key=[a, b]'"}),
        ("model.hidden=[64, 64]", {"64]": "leave spaces out, or quote it: 'key=[a, b]'"}),
        ("--epochs=5", {"--epochs=5": "settings are written without dashes: trainer.epochs=5"}),
        ("train --epochs 5", {"--epochs 5": "settings are written without dashes: trainer.epochs=5"}),
        (
            "--batch-size 64 --lr 0.1",
            {
                "--batch-size 64": "settings are written without dashes: data.batch_size=64",
                "--lr 0.1": "settings are written without dashes: optimizer.lr=0.1",
            },
        ),
        ("--model resnet18", {"--model resnet18": "settings are written without dashes: model=resnet18"}),
        ("--lr", {"--lr": "settings are written without dashes: optimizer.lr=..."}),
        ("--lr seed=1", {"--lr": "settings are written without dashes: optimizer.lr=..."}),
        ("--multirn seed=1,2", {"--multirn": "did you mean --multirun?"}),
        ("--api-key abcdefgh12345", {"--api-key <redacted>": "settings are written key=value, without dashes"}),
        ("-v", {"-v": "settings are written key=value, without dashes"}),
    ],
)
def test_a_word_that_is_no_setting_is_answered_with_what_to_write(cvtrain, tmp_path, command, faults):
    answer = cvtrain(*shlex.split(command))
    assert answer.status == 2 and answer.out == ""
    lines = answer.err.splitlines()
    told = {line.removeprefix("error: "): below for line, below in itertools.pairwise(lines) if line[0] == "e"}
    assert len(told) == len(faults)
    for (line, below), (word, remedy) in zip(told.items(), faults.items(), strict=True):
        assert line.startswith(f"{word}: ") and below.strip().startswith(remedy)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("token", "remedy"),
    [
        ("model.hidden=[64", "a bracket is left open; a list is written model.hidden=[a,b]"),
        ("augment.transforms=[{RandomCrop:{padding:4}]", "a bracket is left open"),
        ("data.image_size=(32,32)", "a list is written data.image_size=[32,32]"),
        ("seed=a'b", "quote it for Hydra and for the shell: 'seed="),
    ],
)
def test_a_value_outside_of_the_grammar_says_how_it_is_written(problems_of, token, remedy):
    (problem,) = problems_of(token)
    assert problem.rule == "is not in Hydra's grammar of values"
    assert problem.remedy.splitlines()[-1].startswith(remedy)


@pytest.mark.parametrize(
    ("token", "meant"),
    [
        ("patience=3", "trainer.early_stop_patience"),
        ("trainer.patience=3", "trainer.early_stop_patience"),
        ("data.path=photos", "data.root"),
        ("scheduler=none", "scheduler=constant"),
        ("optimizer.name=sgd", "optimizer=sgd"),
        ("+optimizer.name=sgd", "optimizer=sgd"),
        ("+optimizer.lr=1", "optimizer.lr=1"),
    ],
)
def test_names_of_other_tools_say_what_they_mean(problems_of, token, meant):
    (problem,) = problems_of(token)
    assert problem.remedy.splitlines()[0] == f"did you mean {meant}?"


@pytest.mark.parametrize(
    ("token", "remedy"),
    [
        ("+foo=1", "cvtrain --cfg job shows what there is"),
        ("trainer.foo=1", "cvtrain --cfg job -p trainer shows what there is"),
    ],
)
def test_a_key_that_is_like_none_says_where_to_look(problems_of, token, remedy):
    (problem,) = problems_of(token)
    assert (problem.rule, problem.remedy) == ("no such setting", remedy)


def test_a_folder_where_nothing_can_be_written_is_told_before_the_run(problems_of, monkeypatch, tmp_path):
    (tmp_path / "closed").mkdir()
    told = f"nothing can be written in {tmp_path / 'closed'}, where the run's folder would be"
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).resolve().name != "closed" and may(path, mode))
    (problem,) = problems_of("output_root=closed/runs")
    assert (problem.key, problem.rule, problem.remedy) == (
        "output_root",
        told,
        "set output_root=... to a folder of yours",
    )
    assert problems_of("output_root=open/runs") == []
    assert problems_of("output_root=closed/runs", "hydra.run.dir=open/here") == []
    monkeypatch.chdir("closed")
    (problem,) = problems_of()  # `runs` here
    assert problem.rule == told
