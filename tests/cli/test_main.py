"""The command line from outside: verbs, exit statuses, what is imported, completion, sweeps, installed forms."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import cvtrain.cli.main as cli
from cvtrain.cli import hydra_job
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import CustomConfig, DigitsConfig
from cvtrain.config.schema.model import CustomModelConfig, MLPConfig
from cvtrain.config.schema.optim import AdamWConfig, SGDConfig
from cvtrain.config.schema.root import Config, EvaluateConfig

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "wandb", "albumentations", "kornia", "matplotlib", "sklearn", "numpy", "PIL", "rich")


@pytest.fixture
def calls(monkeypatch):
    """Verbs that record what they are given instead of training; the value that they return is the seed."""
    seen = []

    def record(config, run_dir, overrides):
        seen.append(SimpleNamespace(config=config, run_dir=run_dir, overrides=overrides))
        return 0.5

    for verb in cli.VERBS:
        monkeypatch.setitem(cli.VERBS, verb, record)
    return seen


def run_module(*arguments, cwd, env=None, code=None):
    command = [sys.executable, *(["-c", code] if code else ["-m", "cvtrain"]), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


# Verbs


def test_no_verb_trains_the_mlp_on_digits(cvtrain, calls):
    assert cvtrain().status == 0
    (call,) = calls
    assert type(call.config) is Config
    assert type(call.config.data) is DigitsConfig and type(call.config.model) is MLPConfig
    assert type(call.config.optimizer) is AdamWConfig
    assert call.config.name == "digits_mlp" and call.overrides == []


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["hydra.run.dir=here", "hydra.job.chdir=true", "hydra.job.name=other", "+hydra.job.env_set.FOO=bar"],
        ["experiment=mine", "--config-dir", "extra", "hydra.output_subdir=.hydra"],
    ],
)
def test_one_run_equals_what_hydra_makes_of_it(cvtrain, monkeypatch, tmp_path, overrides):
    (tmp_path / "extra" / "experiment").mkdir(parents=True)
    (tmp_path / "extra" / "experiment" / "mine.yaml").write_text("# @package _global_\nname: mine\n")
    seen = []

    def record(config, run_dir, overrides):
        hydra_config = OmegaConf.to_container(HydraConfig.instance().cfg, resolve=False)
        tokens = hydra_config["hydra"]["overrides"]["hydra"]
        hydra_config["hydra"]["overrides"]["hydra"] = [token for token in tokens if token != "hydra.mode=RUN"]
        where = Path.cwd(), os.environ.get("FOO"), logging.getLogger().level, len(logging.getLogger().handlers)
        seen.append((config, overrides, hydra_config, where))
        return 0.5

    monkeypatch.setitem(cli.VERBS, "train", record)
    fixed = [] if "hydra.run.dir=here" in overrides else ["hydra.run.dir=there"]
    assert cvtrain(*overrides, *fixed).status == 0
    tokens = [token for token in (*overrides, *fixed) if "=" in token]
    monkeypatch.setattr(
        hydra_job,
        "run_composed",
        lambda job, config: Hydra(task_name="train", config_loader=job.composer.loader).run("train", job, tokens),
    )
    assert cvtrain(*overrides, *fixed).status == 0
    ours, hydras = seen
    assert ours == hydras


def test_train_is_the_verb_of_no_verb(cvtrain, calls):
    cvtrain("train", "seed=3")
    cvtrain("seed=3")
    assert calls[0].config == calls[1].config
    assert calls[0].overrides == ["seed=3"]


def test_a_key_that_is_given_twice_is_said_and_the_last_counts(cvtrain, calls):
    done = cvtrain("optimizer.lr=0.1", "seed=1", "model=custom", "model=mlp", "++optimizer.lr=0.3", "optimizer.lr=0.2")
    assert done.status == 0
    (call,) = calls
    assert call.config.optimizer.lr == 0.2 and type(call.config.model) is MLPConfig
    assert done.err.splitlines() == [
        "warning: optimizer.lr is given more than once: optimizer.lr=0.2 counts",
        "warning: model is given more than once: model=mlp counts",
    ]
    assert cvtrain("optimizer.lr=0.1", "seed=1").err == ""


def test_flags_may_stand_before_and_after_overrides(cvtrain):
    before = cvtrain("--cfg", "job", "optimizer=sgd", "-p", "optimizer.name")
    after = cvtrain("train", "optimizer=sgd", "-p", "optimizer.name", "--cfg", "job")
    assert (before.status, before.out.strip()) == (after.status, after.out.strip()) == (0, "sgd")


def test_evaluate_gets_its_own_config(cvtrain, calls, tmp_path):
    (tmp_path / "best.pt").touch()
    assert cvtrain("evaluate", "checkpoint=best.pt", "split=test").status == 0
    (call,) = calls
    assert type(call.config) is EvaluateConfig
    assert call.config.split.value == "test"
    assert call.run_dir.parent == tmp_path / "runs" / "evaluate" / "test"


def test_every_verb_has_a_config_file_and_a_dataclass():
    from cvtrain.config.composer import conf_dir
    from cvtrain.config.schema.root import VERBS

    assert set(cli.VERBS) == set(VERBS) == {file.stem for file in conf_dir().glob("*.yaml")}


def test_subclass_configs_of_the_chosen_groups_arrive(cvtrain, calls, tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    arguments = ["data=custom", "data.root=photos", "optimizer=sgd", "model=custom", "model.target=a.B"]
    assert cvtrain(*arguments, "model.kwargs.depth=2", "model.kwargs.sizes=[1,2]").status == 0
    (call,) = calls
    assert type(call.config.data) is CustomConfig and type(call.config.optimizer) is SGDConfig
    assert type(call.config.model) is CustomModelConfig
    assert call.config.model.kwargs == {"depth": 2, "sizes": [1, 2]}
    assert call.config.augment.name == "standard"


# Exit statuses


def test_wrong_command_is_2_without_traceback_or_folder(cvtrain, calls, tmp_path):
    answer = cvtrain("optimzer.lr=0.1")
    assert answer.status == 2 and answer.out == ""
    assert answer.err == (
        "error: optimzer.lr=0.1: no such setting\n  did you mean optimizer.lr?\n  set on the command line\n"
    )
    assert list(tmp_path.iterdir()) == [] and calls == []


def test_config_error_of_the_run_is_2_and_tells_where_the_value_was_set(cvtrain, monkeypatch):
    def refuse(config, run_dir, overrides):
        raise ConfigError(key="model.dropout", value=config.model.dropout, rule="is too much", remedy="take less")

    monkeypatch.setitem(cli.VERBS, "train", refuse)
    answer = cvtrain("model.dropout=0.9")
    assert answer.status == 2
    assert answer.err == "error: model.dropout=0.9: is too much\n  take less\n  set on the command line\n"


def test_config_error_of_a_run_with_results_is_kept_in_its_log_file(cvtrain, monkeypatch, tmp_path):
    def refuse(config, run_dir, overrides):
        (run_dir / "summary.json").write_text("{}")  # without results its folder would go
        raise ConfigError(key="seed", value=1, rule="is unlucky")

    monkeypatch.setitem(cli.VERBS, "train", refuse)
    cvtrain("seed=1")
    (log,) = tmp_path.glob("runs/digits_mlp/*/train.log")
    assert "ERROR cvtrain: seed=1: is unlucky" in log.read_text()


def test_a_bug_keeps_its_traceback(cvtrain, monkeypatch, tmp_path):
    def fail(config, run_dir, overrides):
        raise ZeroDivisionError("a bug")

    monkeypatch.setitem(cli.VERBS, "train", fail)
    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        cvtrain()
    assert caught.traceback[-1].name == "fail"
    (log,) = tmp_path.glob("runs/digits_mlp/*/train.log")
    assert 'raise ZeroDivisionError("a bug")' in log.read_text()


def test_interruption_is_130(cvtrain, monkeypatch):
    def interrupt(config, run_dir, overrides):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "train", interrupt)
    assert cvtrain().status == 130


def test_exit_status_of_the_task_comes_through(cvtrain, monkeypatch):
    def leave(config, run_dir, overrides):
        raise SystemExit(130)

    monkeypatch.setitem(cli.VERBS, "train", leave)
    with pytest.raises(SystemExit) as caught:
        cvtrain()
    assert caught.value.code == 130


def test_traceback_of_a_wrong_command_on_request(cvtrain, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    answer = cvtrain("trainer.epochs=-1")
    assert answer.status == 2
    assert answer.err.startswith("Traceback") and "error: trainer.epochs=-1" in answer.err
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_process_state_is_put_back(cvtrain, calls, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    argv = list(sys.argv)
    cvtrain("seed=1")
    assert sys.argv == argv and "HYDRA_FULL_ERROR" not in os.environ


# Showing


def test_version(cvtrain):
    assert cvtrain("--version").out == "cvtrain 0.1.0\n"


def test_help_lists_groups_and_no_schemas(cvtrain):
    answer = cvtrain("--help")
    assert answer.status == 0
    assert "optimizer   adadelta adagrad adam adamax adamw muon nadam radam rmsprop sgd\n" in answer.out
    assert "experiment  " in answer.out and "schema" not in answer.out
    assert answer.out.count("cvtrain data=custom data.root=photos") == 3


def test_help_lists_groups_of_the_users_folder(cvtrain, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "my_recipe.yaml").write_text("# @package _global_\nseed: 7\n")
    assert " my_recipe" in cvtrain("--config-dir", "mine", "--help").out


def test_evaluate_help_lists_its_settings(cvtrain):
    out = cvtrain("evaluate", "--help").out
    assert "checkpoint=required" in out and "split=val" in out and "optimizer" not in out


def test_commands_of_the_help_compose(cvtrain, tmp_path):
    for verb in ("train", "evaluate"):
        lines = [line.strip() for line in cvtrain(verb, "--help").out.splitlines() if line.startswith("  cvtrain ")]
        assert len(lines) >= 4
        for line in lines:
            words = line.split("  ")[0].split()[1:]
            words = [word for word in words if (word != "--multirun" and "," not in word) or "[" in word]
            answer = cvtrain(*words, "--cfg", "job")
            assert answer.status == 0, (line, answer.err)


def test_cfg_shows_types_and_makes_no_folder(cvtrain, tmp_path):
    answer = cvtrain("--cfg", "job", "-p", "optimizer", "optimizer=sgd")
    assert "momentum: 0.9\nnesterov: false\n" in answer.out
    cvtrain("--cfg", "all")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["defaults", "searchpath", "config", "defaults-tree"])
def test_info(cvtrain, flag):
    assert cvtrain("--info", flag).status == 0


def test_wrong_cfg_command_is_explained(cvtrain):
    answer = cvtrain("--cfg", "job", "loss=focall")
    assert answer.status == 2 and "did you mean loss=focal?" in answer.err


# Files of the user's own


def test_users_experiment_file(cvtrain, calls, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /optimizer: sgd\nname: mine\noptimizer: {lr: 0.25}\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)
    assert cvtrain("--config-dir", "conf", "experiment=mine").status == 0
    (call,) = calls
    assert (call.config.optimizer.name, call.config.optimizer.lr) == ("sgd", 0.25)
    assert call.run_dir.parent == tmp_path / "runs" / "mine"


def test_searchpath_finds_users_groups(cvtrain, calls, tmp_path):
    (tmp_path / "more" / "optimizer").mkdir(parents=True)
    (tmp_path / "more" / "optimizer" / "hot.yaml").write_text(
        "defaults:\n  - /schema/optimizer/sgd@_here_\n  - _self_\nlr: 9\n"
    )
    assert cvtrain(f"hydra.searchpath=[file://{tmp_path / 'more'}]", "optimizer=hot").status == 0
    assert calls[0].config.optimizer.lr == 9


def test_wrong_value_in_users_file_names_the_file(cvtrain, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\noptimizer: {eps: 0}\n")
    answer = cvtrain("--config-dir", "conf", "experiment=mine")
    assert answer.err == (
        "error: optimizer.eps=0: must be a number above 0\n"
        "  added to the denominator\n  set in conf/experiment/mine.yaml\n"
    )


def test_broken_yaml_names_file_and_line(cvtrain, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 1\n  name: [\n")
    answer = cvtrain("--config-dir", "conf", "experiment=mine")
    assert answer.status == 2
    assert "conf/experiment/mine.yaml, line 3: is not valid YAML" in answer.err


# Sweeps


def test_multirun_runs_every_job_in_one_folder(cvtrain, calls, tmp_path):
    answer = cvtrain("--multirun", "model=mlp,resnet18", "seed=1,2", "model.freeze=none")
    assert answer.status == 0
    assert [(call.config.model.name, call.config.seed) for call in calls] == [
        ("mlp", 1),
        ("mlp", 2),
        ("resnet18", 1),
        ("resnet18", 2),
    ]
    (sweep,) = (tmp_path / "runs" / "multirun").iterdir()
    assert [call.run_dir for call in calls] == [sweep / str(number) for number in range(4)]
    assert "#3 : model=resnet18 seed=2 model.freeze=none" in answer.out


def test_multirun_checks_every_job_before_the_first(cvtrain, calls, tmp_path):
    answer = cvtrain("--multirun", "optimizer.lr=0.1,-0.1", "seed=1,2")
    assert answer.status == 2 and calls == []
    assert answer.err.count("error:") == 1 and "optimizer.lr=-0.1: must be a number above 0" in answer.err
    assert list(tmp_path.iterdir()) == []


def test_open_mappings_sweep_too(cvtrain, calls):
    assert cvtrain("-m", "model=custom", "model.target=a.B", "model.kwargs.width=16,32").status == 0
    assert [call.config.model.kwargs for call in calls] == [{"width": 16}, {"width": 32}]


def test_hydra_mode_in_a_file_counts_as_multirun(cvtrain, calls, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2\n"
    (tmp_path / "conf" / "experiment" / "sweep.yaml").write_text(text)
    assert cvtrain("--config-dir", "conf", "experiment=sweep").status == 0
    assert [call.config.seed for call in calls] == [1, 2]


def test_secrets_are_taken_out_of_multirun_yaml(cvtrain, calls, tmp_path):
    cvtrain("-m", "model=custom", "model.target=a.B", "model.kwargs.api_key=abcdefgh12345", "seed=1,2")
    (record,) = tmp_path.glob("runs/multirun/*/multirun.yaml")
    assert "abcdefgh12345" not in record.read_text() and "<redacted>" in record.read_text()


# Small liberties


def test_null_takes_an_optional_group_out(cvtrain):
    answer = cvtrain("experiment=null", "debug=null", "logger=null", "--cfg", "job", "-p", "logger")
    assert answer.out == "# @package logger\ncsv: null\ntensorboard: null\nwandb: null\nmlflow: null\n"


def test_two_runs_of_one_second_get_two_folders(cvtrain, calls):
    for _ in range(3):
        cvtrain("name=same")
    assert len({call.run_dir for call in calls}) == 3
    assert all(call.run_dir.is_dir() for call in calls)


# Processes


@pytest.mark.parametrize(
    ("arguments", "status"),
    [("--help", 0), ("--cfg job", 0), ("optimzer.lr=1 model=resnet81 data=custom", 2), ("evaluate", 2), ("resnet", 2)],
)
def test_quick_answers_import_nothing_heavy(tmp_path, arguments, status):
    code = (
        "import sys, json, atexit\n"
        f"atexit.register(lambda: print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr))\n"
        "from cvtrain.cli.main import main\nmain()"
    )
    result = run_module(*arguments.split(), cwd=tmp_path, code=code)
    assert result.returncode == status, result.stderr
    assert json.loads(result.stderr.splitlines()[-1]) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cvtrain ev", ["evaluate"]),
        ("cvtrain model=resnet1", ["model=resnet101", "model=resnet152", "model=resnet18"]),
        ("cvtrain train optimizer=sgd optimizer.m", ["optimizer.momentum="]),
        ("cvtrain evaluate sp", ["split="]),
        ("cvtrain --multirun loss=", ["loss=bce", "loss=cross_entropy", "loss=focal"]),
    ],
)
def test_completion(cvtrain, monkeypatch, line, words):
    monkeypatch.setenv("COMP_LINE", line)
    assert cvtrain("-sc", "query=bash").out.split() == words


def test_completion_of_nothing_offers_verbs_and_groups_but_no_schemas(cvtrain, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "cvtrain ")
    words = cvtrain("-sc", "query=bash").out.split()
    assert {"train", "evaluate", "--help", "model=", "trainer."} <= set(words)
    assert not [word for word in words if word.startswith("schema")]
    monkeypatch.setenv("COMP_LINE", "cvtrain evaluate ")
    words = cvtrain("-sc", "query=bash").out.split()
    assert "checkpoint=" in words and "optimizer=" not in words and "train" not in words


def test_console_logging_is_plain_and_complete(cvtrain, monkeypatch, tmp_path):
    import logging

    def say(config, run_dir, overrides):
        logging.getLogger("cvtrain.x").info("[red]%s", "a" * 300)
        logging.getLogger("cvtrain.x").debug("quiet")

    monkeypatch.setitem(cli.VERBS, "train", say)
    answer = cvtrain()
    assert answer.out == f"[red]{'a' * 300}\n"
    (log,) = tmp_path.glob("runs/digits_mlp/*/train.log")
    assert log.read_text().endswith(f"INFO cvtrain.x: [red]{'a' * 300}\n")


def test_log_level_is_of_console_and_file(cvtrain, monkeypatch):
    import logging

    monkeypatch.setitem(cli.VERBS, "train", lambda *given: logging.getLogger("x").info("quiet"))
    assert cvtrain("log_level=WARNING").out == ""
