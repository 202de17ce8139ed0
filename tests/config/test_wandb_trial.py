"""A trial's command line, as W&B's agent writes it for every macro, becomes overrides with the sweep's exact values."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cvtrain.config.errors import ConfigError
from cvtrain.config.metric_names import metric_problem
from cvtrain.config.resolvers import run_dir
from cvtrain.config.resume import default_resume_for_trial, unfinished_run
from cvtrain.config.wandb_trial import current_trial, with_parameters

# Each kind of value that a sweep file can hold; what Python prints for most of them is not what Hydra would read.
VALUES: dict[str, Any] = {
    "model": "resnet18",
    "optimizer.lr": 1e-05,
    "optimizer.weight_decay": 3,
    "trainer.deterministic": True,
    "trainer.compile": False,
    "trainer.clip_grad_norm": None,
    "model.hidden": [64, 32],
    "model.dropout": 0.25,
    "name": "two words, a comma",
    "data.kwargs.rule": "a=b (c) 'd' \\",
    "augment.transforms": [{"RandomRotation": {"degrees": 10}}, {"Invert": {"p": 0.5}}],
    "logger.wandb.tags": ["a b", "c"],
}
MACROS = (
    "args",
    "args_no_hyphens",
    "args_no_boolean_flags",
    "args_no_equals",
    "args_append_hydra",
    "args_override_hydra",
    "args_json",
    "args_json_file",
)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`start(values)`: the environment in which the agent starts a trial; gives the words of each macro."""

    def begin(values: dict[str, Any]) -> dict[str, list[str]]:
        from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
        from wandb.sdk.lib.config_util import save_config_file_from_dict

        args = {name: {"value": value} for name, value in values.items()}
        path = tmp_path / "wandb" / "sweep-s1" / "config-r1.yaml"
        save_config_file_from_dict(str(path), args)
        monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
        monkeypatch.setenv("WANDB_RUN_ID", "r1")
        monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))
        return create_sweep_command_args({"args": args}) | {"args_json_file": [str(path.with_suffix(".json"))]}

    return begin


def parsed(tokens: list[str]) -> dict[str, Any]:
    overrides = OverridesParser.create().parse_overrides(tokens)
    return {override.key_or_group: override.value() for override in overrides}


@pytest.mark.parametrize("macro", MACROS)
def test_values_are_exact_whatever_the_macro(start, macro):
    words = start(VALUES)[macro]
    trial = current_trial()
    tokens = with_parameters(["seed=1", *words, "logger=wandb"], trial)
    assert (tokens[0], tokens[-1]) == ("seed=1", "logger=wandb")
    assert parsed(tokens[1:-1]) == VALUES
    # Given to another process of the same trial, the command stays as it is.
    assert with_parameters(tokens, trial) == tokens


def test_parameters_arrive_without_a_macro_and_beside_the_commands_own_settings(start):
    start({"seed": 3})
    assert with_parameters(["model=mlp", "seed.x=1"], current_trial()) == ["model=mlp", "seed.x=1", "seed=3"]


def test_texts_that_mean_numbers_or_null_and_nested_parameters(start):
    """To W&B's reader of YAML `1e-5` is text; `"null"` is what sweep files had to write until now."""
    nested = {"momentum": {"x": 0.9}}
    transforms = [{"Normalize": {"std": "1e-2", "mean": "null"}}]
    words = start({"optimizer.lr": "1e-5", "a.clip": "null", "optimizer": nested, "augment.transforms": transforms})
    tokens = with_parameters(words["args_no_hyphens"], current_trial())
    assert parsed(tokens) == {
        "optimizer.lr": 1e-5,
        "a.clip": None,
        "optimizer.momentum.x": 0.9,
        "augment.transforms": [{"Normalize": {"std": 0.01, "mean": None}}],
    }


def test_a_preempted_trial_gets_its_whole_config_and_takes_what_the_sweep_chose(start):
    config = {"model": "resnet18", "model.name": "resnet18", "seed": 0, "optimizer.lr": 0.1, "_wandb": {"t": 1}}
    words = start(config | {"sweep_parameters": ["model", "optimizer.lr"]})
    for macro in MACROS:
        tokens = with_parameters(["a=1", *words[macro]], current_trial())
        assert tokens == ["a=1", "model=resnet18", "optimizer.lr=0.1"]


def test_without_an_agent_nothing_is_a_trial(monkeypatch):
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert current_trial() is None
    assert default_resume_for_trial(["seed=1"], False) == ["seed=1"]


@pytest.mark.parametrize("content", [None, "a: 1", "[1]", "a: {value: 1", b"\xff\xfe\x00"])
def test_a_file_of_parameters_that_cannot_be_read_is_named(start, tmp_path, content):
    start({"seed": 3})
    path = tmp_path / "wandb" / "sweep-s1" / "config-r1.yaml"
    path.unlink() if content is None else path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"WANDB_SWEEP_PARAM_PATH=.*cannot be read"):
        current_trial()


def test_a_trial_has_one_folder_and_goes_on_in_it(start, tmp_path):
    start({"seed": 3})
    folder = tmp_path / "runs" / "digits" / "sweep_s1" / "r1"
    root = str(tmp_path / "runs")
    assert default_resume_for_trial(["seed=3"], False) == ["seed=3", "resume=auto"]
    assert default_resume_for_trial(["seed=3"], True) == ["seed=3"]
    assert default_resume_for_trial(["resume=null"], False) == ["resume=null"]
    assert unfinished_run(root, "digits") is None
    assert run_dir(root, "digits", "auto") == run_dir(root, "digits", None) == str(folder)
    (folder / "checkpoints").mkdir()
    assert unfinished_run(root, "digits") == folder


def test_metrics_are_those_that_a_run_logs(tmp_path):
    """Against the figures of a run that the package's users see: rows and summary of the files."""
    for name in ("val/loss", "train/epoch_loss", "perf/images_per_second", "best.metrics.val/accuracy"):
        assert metric_problem("metric.name", name) is None
    problem = metric_problem("metric.name", "val_acc")
    assert "no run logs this metric" in str(problem) and "did you mean val/acc" in str(problem)
    assert "did you mean val/loss" in str(metric_problem("metric.name", "loss"))
    assert json.dumps(metric_problem("metric.name", 3).value) == "3"
