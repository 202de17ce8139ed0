"""Weights spread over real processes (`trainer.parallel=fsdp`) against whole ones, over gloo."""

import json
import sys
from pathlib import Path

import pytest
import torch
from rank_commands import ROOT, SETTINGS, TORCHRUN, run
from rank_runs import compose
from rank_sharding import SHARDED_RUNS

from cvtrain.checkpoint import load_checkpoint
from cvtrain.training.build import build_run

sys.path.insert(0, str(ROOT / "scripts"))
from chaos_compare import differences


def shapes(value):
    """What a nested state is made of, without its numbers."""
    if isinstance(value, dict):
        return {key: shapes(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [shapes(entry) for entry in value]
    return (type(value), value.dtype, tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value)


def loss_of_one_process(folder: Path) -> float:
    """What the run `plain` comes to in this process."""
    made = build_run(compose(SHARDED_RUNS["plain"]), folder)
    made.trainer.fit()
    made.loaders.close()
    made.trainer.store.close()
    made.logger.finish(0)
    return made.trainer.last_evaluation.metrics["loss"]


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (2, ("plain", "normed", "cut")),
        pytest.param(4, ("plain", "normed", "frozen", "skipping", "cut", "moved"), marks=pytest.mark.slow),
    ],
    ids=("2", "4"),
)
def test_spread_weights_come_to_what_whole_ones_come_to(count, names, tmp_path):
    script = str(ROOT / "tests" / "support" / "rank_sharding.py")
    done = run(*TORCHRUN, f"--nproc-per-node={count}", script, str(tmp_path), *names, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    for name in set(names) - {"cut", "moved"}:
        check_run(name, found["runs"][f"{name}_data"], found["runs"][f"{name}_fsdp"], tmp_path, count)
    loss = found["runs"]["plain_fsdp"]["metrics"]["loss"]
    assert loss == pytest.approx(loss_of_one_process(tmp_path / "one"), rel=1e-5)
    if "skipping" in names:
        assert found["runs"]["skipping_fsdp"]["skipped_steps"] == [1] * count
    check_checkpoints(found["resumed"], tmp_path, count, resumed=[name for name in names if name in ("cut", "moved")])
    assert found["scaler"] == [[1.0, 0.5]] * count
    assert "the network's parameter scale is a single number" in found["refusal"]


def check_run(name: str, whole: dict, parts: dict, folder: Path, count: int) -> None:
    assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-5), name
    assert parts["metrics"]["loss"] == pytest.approx(whole["metrics"]["loss"], rel=1e-5), name
    assert parts["indices"] == whole["indices"] == list(range(359)), name
    one, other = (torch.load(folder / f"{name}_{kind}.pt") for kind in ("data", "fsdp"))
    assert shapes(one) == shapes(other), name
    for key in one:
        torch.testing.assert_close(
            other[key], one[key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key} {text}"
        )
    # Each byte once; the first rank has no more than its rounded share of 10 and 32 rows.
    for kind in ("parameter_bytes", "average_bytes", "slot_bytes"):
        assert sum(parts[kind]) == whole[kind][0], (name, kind)
        assert max(parts[kind]) <= whole[kind][0] * (0.51 if count == 2 else 0.26), (name, kind)


def check_checkpoints(ends: list, folder: Path, count: int, *, resumed: list[str]) -> None:
    """Those of runs that went on, and of one with whole weights, beside that of a run which went through."""
    names = ("plain_fsdp", "plain_data", *resumed)
    states = {name: load_checkpoint(folder / name / "checkpoints" / "last.pt") for name in names}
    whole = states["plain_fsdp"]
    assert ends == [[["all epochs done", whole["monitor"]["best"]]] * count] * len(resumed)
    for state in states.values():
        del state["config"], state["stopwatch"]
    assert all(shapes(state) == shapes(whole) for state in states.values())
    for state in states.values():
        del state["optimizer"]["param_groups"]
    for name, state in states.items():
        for part in ("model", "average", "optimizer"):
            # What was stopped goes on to the same bits; what had whole weights is the same but for rounding.
            rtol, atol = (0, 0) if name == "cut" else (1e-3, 1e-6)
            torch.testing.assert_close(state[part], whole[part], rtol=rtol, atol=atol)


def cvtrain(folder: Path, name: str, *overrides: str, start: tuple[str, ...] = (sys.executable,), **variables: str):
    command = (*start, "-m", "cvtrain", *SETTINGS, f"hydra.run.dir={folder / name}", *overrides)
    return run(*command, folder=folder, **variables)


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_the_end_is_the_same_to_the_bit(tmp_path):
    parallel = ("trainer.parallel=fsdp",)
    done = cvtrain(tmp_path, "whole", *parallel, "trainer.devices=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "in this process; whole for the time of their use: the network" in done.stdout
    start = (*TORCHRUN, "--nproc-per-node=2", "--max-restarts=2")
    kill = {"FAIL_AT": "18:1:kill", "FAIL_MARK": str(tmp_path / "mark")}
    done = cvtrain(tmp_path, "killed", *parallel, start=start, **kill)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout and "step 16, 1 epochs done" in done.stdout
    assert "Traceback" not in done.stderr
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


@pytest.mark.slow
def test_a_run_of_spread_weights_goes_on_in_one_process_and_is_evaluated_there(tmp_path):
    done = cvtrain(tmp_path, "two", "trainer.parallel=fsdp", "trainer.devices=2", FAIL_AT="5:0:SIGTERM")
    assert done.returncode == 143, done.stderr
    done = cvtrain(tmp_path, "two", "trainer.parallel=fsdp", "trainer.devices=1")
    assert done.returncode == 0, done.stderr
    assert "trainer.parallel=fsdp has no effect on a run of one process" in done.stdout + done.stderr
    assert "done: all epochs done, 30 steps" in done.stdout
    command = (sys.executable, "-m", "cvtrain", "evaluate", "checkpoint=two/checkpoints/best.pt", "device=cpu")
    options = ("precision=fp32", "model.target=tests.support.rank_parts.Net", "hydra.run.dir=scored")
    done = run(*command, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "scored" / "summary.json").read_text())
    assert summary["metrics"]["val/loss"] == pytest.approx(summary["metrics_in_checkpoint"]["val/loss"], rel=1e-6)


@pytest.mark.slow
def test_a_failing_rank_ends_all_with_its_message_once(tmp_path):
    done = cvtrain(tmp_path, "failed", "trainer.parallel=fsdp", "trainer.devices=2", FAIL_AT="3:1:raise")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1 and done.stderr.count("rank 1 fails at step 3") == 1
