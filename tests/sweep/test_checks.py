"""What a search would ask of runs is checked against their config: names, ranges, groups, effects."""

import subprocess
import sys

import pytest
import yaml

from cvtrain.config.composer import Composer, conf_dir
from cvtrain.config.errors import ConfigError
from cvtrain.config.load import typed_config
from cvtrain.config.schema.root import register_schemas
from cvtrain.sweep.checks import _compose_job, check_spec, probing_jobs
from cvtrain.sweep.spec import load_spec


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Checks a search over these parameters, with these overrides for all trials."""
    register_schemas()
    monkeypatch.chdir(tmp_path)

    def run(parameters, *fixed):
        content = {"method": "random", "parameters": parameters}
        path = tmp_path / "search.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return check_spec(load_spec(path), Composer("train"), list(fixed))

    return run


WRONG = [
    ({"optimzer.lr": {"value": 1}}, [], "optimzer.lr=1: no such setting\n  did you mean optimizer.lr?"),
    ({"model": {"values": ["mlp", "resnet1"]}}, [], "model=resnet1: no such option"),
    ({"optimizer.lr": {"values": [0.1, -1]}}, [], "optimizer.lr=-1: must be a number above 0"),
    ({"optimizer.lr": {"mu": 0.0, "sigma": 1.0}}, [], "must be a number"),
    ({"model.dropout": {"min": 0.0, "max": 2.0}}, [], "model.dropout=2: must be a number at least 0 and below 1"),
    ({"trainer.epochs": {"values": ["many"]}}, [], "trainer.epochs=many: must be a whole number"),
    ({"trainer.ema_decay": {"values": [None, "x"]}}, [], "trainer.ema_decay=x: must be a number"),
    ({"optimizer.momentum": {"min": 0.1, "max": 0.9}}, [], "has no effect here: momentum belongs to optimizer=sgd"),
    ({"optimizer.lr": {"value": 1}}, ["optimizer.lr=2"], "is searched, and set on the command line too"),
    ({"resume": {"value": "auto"}}, [], "cannot be a parameter of a search"),
    ({"hydra.run.dir": {"value": "x"}}, [], "cannot be a parameter of a search"),
]


@pytest.mark.parametrize(("parameters", "fixed", "said"), WRONG, ids=[said[:40] for *_, said in WRONG])
def test_what_no_run_accepts_is_refused(check, parameters, fixed, said):
    with pytest.raises(ConfigError) as caught:
        check(parameters, *fixed)
    assert said in str(caught.value)
    assert "set in search.yaml" in str(caught.value)


def test_what_runs_accept_is_accepted(check):
    config = check(
        {
            "model": {"values": ["mlp", "resnet18"]},
            "optimizer": {"values": ["adamw", "sgd"]},
            "optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 0.1},
            "logger": {"values": [None, ["csv", "tensorboard"]]},
            "trainer.ema_decay": {"values": [None, 0.99]},
            "scheduler": {"value": "cosine"},
        },
        "trainer.epochs=2",
    )
    assert config.trainer.epochs == 2


def test_a_required_setting_can_be_searched(check, tmp_path):
    for folder in ("a/ants", "a/bees", "b/ants", "b/bees"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.jpg").touch()
    roots = {"data.root": {"values": ["a", "b"]}}
    assert check({"optimizer.lr": {"value": 0.1}, **roots}, "data=custom").data.root == "a"
    with pytest.raises(ConfigError, match=r"data\.root=c: no such folder(.*\n)*.*set in search\.yaml"):
        check({"data.root": {"values": ["c"]}}, "data=custom")
    with pytest.raises(ConfigError) as caught:
        check(roots, "data=custom", "model.hidden=[8]")
    assert [problem.key for problem in caught.value.problems] == ["model.hidden"]
    with pytest.raises(ConfigError, match=r"data\.root: has to be set"):
        check({"optimizer.lr": {"value": 0.1}}, "data=custom")


def test_a_large_search_is_checked_value_by_value(tmp_path):
    spec_path = tmp_path / "search.yaml"
    names = [f"model.kwargs.x{number}" for number in range(6)]
    parameters = {name: {"values": [1, 2, 3]} for name in names}
    spec_path.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters}), encoding="utf-8")
    jobs = probing_jobs(load_spec(spec_path).parameters)
    assert len(jobs) == 1 + 6 * 2
    assert jobs[0] == [f"++{name}=1" for name in names]
    assert {token for job in jobs for token in job} == {f"++{name}={value}" for name in names for value in (1, 2, 3)}


def test_shipped_searches_are_accepted_without_torch():
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from cvtrain.config.composer import Composer\n"
        "from cvtrain.config.schema.root import register_schemas\n"
        "from cvtrain.sweep.checks import check_spec\n"
        "from cvtrain.sweep.spec import load_spec\n"
        "register_schemas()\n"
        "for path in sorted(Path(sys.argv[1]).glob('*.yaml')):\n"
        "    check_spec(load_spec(path), Composer('train'), [])\n"
        "assert not {'torch', 'optuna', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(conf_dir() / "sweep")], check=True, timeout=120)


@pytest.mark.parametrize(
    "job",
    [
        ["optimizer.lr=0.5", "trainer.max_steps=null"],
        ["model=resnet18", "model.pretrained=false", "optimizer=sgd", "optimizer.momentum=0.5"],
        ["model=mlp", "model.hidden=[16,8]", "scheduler=constant"],
    ],
)
def test_a_trial_is_checked_as_a_composition_of_its_own_would_give_it(job):
    register_schemas()
    composer = Composer("train")
    fixed = ["trainer.epochs=3", "optimizer.weight_decay=0.1"]
    bases = {}
    for _ in range(2):  # the second time from what is kept
        quick = typed_config(_compose_job(composer, fixed, job, bases), composer, [*fixed, *job])
        assert quick == typed_config(composer.compose([*fixed, *job]), composer, [*fixed, *job])
    assert len(bases) == 1
