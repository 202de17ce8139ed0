"""One run as Hydra calls it: what a trial of --multirun does with its errors, and how it goes to other processes."""

import os
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
from hydra.core.config_store import ConfigStore

import cvtrain.cli.main as cli
from cvtrain.config.composer import Composer
from cvtrain.config.errors import ConfigError, RunError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def train_as(monkeypatch):
    """Puts a function in the place of `train`."""

    def put(function):
        monkeypatch.setitem(cli.VERBS, "train", function)

    return put


def test_a_failed_trial_is_told_by_number_and_the_others_run(cvtrain, train_as):
    seen = []

    def train(config, run_dir, overrides):
        seen.append(config.seed)
        if config.seed == 2:
            raise RunError("loss is nan")

    train_as(train)
    answer = cvtrain("-m", "seed=1,2,3")
    assert seen == [1, 2, 3]
    assert answer.status == 1 and answer.err.endswith("error: loss is nan\n")
    assert "trial 1 failed (seed=2): loss is nan" in answer.out


def test_every_failed_trial_is_told_though_hydra_raises_the_first_only(cvtrain, train_as, tmp_path):
    def train(config, run_dir, overrides):
        raise ConfigError(key="seed", value=config.seed, rule="is unlucky")

    train_as(train)
    answer = cvtrain("-m", "seed=1,2", "hydra.sweep.dir=all")
    assert answer.status == 2
    assert "trial 0 failed (seed=1): seed=1: is unlucky" in answer.out
    assert "trial 1 failed (seed=2): seed=2: is unlucky" in answer.out
    assert "trial 1 failed" in (tmp_path / "all" / "1" / "train.log").read_text()


def test_seeds_are_runs_of_one_command(cvtrain, train_as, tmp_path):
    seen = []
    train_as(lambda config, run_dir, overrides: seen.append((config.seed, run_dir.name)))
    assert cvtrain("seeds=3", "seed=4", "hydra.sweep.dir=all").status == 0
    assert seen == [(4, "0"), (5, "1"), (6, "2")]


def test_folds_that_cannot_be_made_end_the_command_at_once(cvtrain, train_as, tmp_path):
    seen = []

    def train(config, run_dir, overrides):
        seen.append(config.data.fold)
        raise ConfigError(key="data.fold", value=config.data.fold, rule="no class has 90 images")

    train_as(train)
    answer = cvtrain("folds=3", "hydra.sweep.dir=all")
    assert (seen, answer.status) == (["0/3"], 2)
    assert "error: data.fold=0/3: no class has 90 images" in answer.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds=2", "optimizer.lr=0.1,0.01"], "optimizer.lr=0.1,0.01: several values for one run"),
        (["sweep", "sweep=digits_mlp", "seeds=2"], "seeds=2: makes several runs of one command"),
    ],
)
def test_seeds_are_no_word_of_a_single_run(cvtrain, words, message):
    answer = cvtrain(*words)
    assert answer.status == 2 and message in answer.err


def test_a_failed_trials_line_has_no_secrets(cvtrain, train_as):
    def train(config, run_dir, overrides):
        raise RunError("no")

    train_as(train)
    answer = cvtrain("-m", "model=custom", "model.target=a.B", "model.kwargs.api_key=abcdefgh12345", "seed=1,2")
    failures = [line for line in answer.out.splitlines() if line.startswith("trial")]
    assert len(failures) == 2 and not any("abcdefgh12345" in line for line in failures)


def test_ctrl_c_ends_the_whole_sweep(cvtrain, train_as):
    seen = []

    def train(config, run_dir, overrides):
        seen.append(config.seed)
        raise SystemExit(130)

    train_as(train)
    with pytest.raises(SystemExit) as left:
        cvtrain("-m", "seed=1,2")
    assert left.value.code == 130 and seen == [1]


@pytest.mark.parametrize(("count", "resume"), [(None, None), ("0", None), ("1", "auto")])
def test_a_trial_that_slurm_starts_again_goes_on(cvtrain, train_as, monkeypatch, count, resume):
    if count is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    seen = []
    train_as(lambda config, run_dir, overrides: seen.append(config.resume))
    assert cvtrain("-m", "seed=1,2").status == 0
    assert seen == [resume, resume]


def test_a_single_run_that_slurm_starts_again_does_as_its_command_says(cvtrain, train_as, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    seen = []
    train_as(lambda config, run_dir, overrides: seen.append(config.resume))
    cvtrain()
    assert seen == [None]


def test_trials_with_resume_take_no_overrides_of_a_run_outside_their_sweep(cvtrain, train_as, tmp_path):
    other = tmp_path / "runs" / "digits_mlp" / "2026-01-01_00-00-00"
    (other / "checkpoints").mkdir(parents=True)
    (other / "overrides.yaml").write_text("[model.dropout=0.4]")
    seen = []
    train_as(lambda config, run_dir, overrides: seen.append((config.model.dropout, config.resume)))
    assert cvtrain("-m", "seed=1,2", "resume=auto", "hydra.sweep.dir=all").status == 0
    assert {resume for _, resume in seen} == {"auto"} and 0.4 not in {dropout for dropout, _ in seen}


# Launchers


def test_a_launcher_that_is_not_installed_is_answered_with_its_extra(cvtrain, monkeypatch):
    Composer("train").groups  # noqa: B018  plugins register themselves at the first composition
    launchers = ConfigStore.instance().repo["hydra"]["launcher"]
    for option, extra, package in (
        ("joblib", "joblib", "joblib"),
        ("submitit_slurm", "slurm", "submitit"),
        ("submitit_local", "slurm", "submitit"),
    ):
        monkeypatch.delitem(launchers, f"{option}.yaml", raising=False)
        answer = cvtrain("-m", f"hydra/launcher={option}", "seed=1,2")
        assert answer.status == 2
        assert answer.err == (
            f"error: hydra/launcher={option}: its plugin is not installed\n"
            f"  uv sync --extra {extra}, or pip install hydra-{package}-launcher\n  set on the command line\n"
        )
    answer = cvtrain("-m", "hydra/launcher=slurm", "seed=1,2")
    assert answer.status == 2 and "uv sync --extra slurm" in answer.err
    assert cvtrain("-m", "hydra/launcher=jblib", "seed=1,2").err.startswith(
        "error: hydra/launcher=jblib: no such option\n"
    )


def test_a_launcher_without_multirun_is_refused(cvtrain):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    answer = cvtrain("hydra/launcher=joblib")
    assert answer.status == 2
    assert answer.err.startswith("error: hydra/launcher=joblib: starts the trials of --multirun, and this is one run\n")


@pytest.mark.parametrize("preset", ["slurm", "slurm_cpu", "submitit_slurm"])
def test_slurm_launchers_need_slurm(cvtrain, monkeypatch, tmp_path, preset):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = cvtrain("-m", f"hydra/launcher={preset}", "seed=1,2")
    assert answer.status == 2 and "there is no Slurm here: sbatch is not in PATH" in answer.err
    assert list(tmp_path.iterdir()) == []


def test_the_slurm_presets_put_jobs_back_and_ask_for_a_gpu(cvtrain):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for preset, gpus in (("slurm", "1"), ("slurm_cpu", "null")):
        text = cvtrain(f"hydra/launcher={preset}", "--cfg", "hydra", "-p", "hydra.launcher").out
        assert f"gpus_per_node: {gpus}\n" in text
        assert "requeue: true\n" in text and "max_num_timeout: 100\n" in text


# Other processes


def test_a_job_runs_in_a_fresh_interpreter(tmp_path):
    script = """
import os, sys, cloudpickle
from pathlib import Path
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
assert "cvtrain" not in sys.modules
job = cloudpickle.loads(Path("job.pkl").read_bytes())
from cvtrain.config.schema.root import register_schemas
register_schemas()
cfg = job.composer.compose(["seed=5"])
with open_dict(cfg):
    cfg.hydra.mode, cfg.hydra.job.num, cfg.hydra.job.id = RunMode.MULTIRUN, 3, "3"
    cfg.hydra.runtime.output_dir = "out"
HydraConfig.instance().set_config(cfg)
try:
    print("gave", job(cfg))
except Exception as error:
    print(type(error).__name__, error)
"""
    from cvtrain.cli.hydra_job import Job

    def stop(config, run_dir, overrides):
        assert config.seed == 5 and run_dir == Path("out")
        raise SystemExit(143)

    composer = Composer("train")
    composer.groups  # noqa: B018  what it has read is not sent along
    for task, said in (
        (lambda config, run_dir, overrides: 0.5, "gave 0.5"),
        (stop, "StoppedTrialError trial 3 was stopped by a signal (exit code 143); it is saved in out"),
    ):
        pickled = cloudpickle.dumps(Job(task, composer))
        assert len(pickled) < 5000
        (tmp_path / "job.pkl").write_bytes(pickled)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.strip() == said, done.stderr


def test_joblib_runs_all_trials_in_processes_of_its_own_though_one_fails(cvtrain, train_as, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    test = os.getpid()

    def train(config, run_dir, overrides):
        assert os.getpid() != test
        if config.seed == 2:
            raise RunError("loss is nan")
        (run_dir / "done.txt").write_text(str(config.seed))

    train_as(train)
    answer = cvtrain("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2,3", "hydra.sweep.dir=all")
    assert answer.status == 1 and answer.err.endswith("error: loss is nan\n")
    assert {path.parent.name: path.read_text() for path in tmp_path.glob("all/*/done.txt")} == {"0": "1", "2": "3"}
    assert "trial 1 failed (seed=2): loss is nan" in (tmp_path / "all" / "1" / "train.log").read_text()
